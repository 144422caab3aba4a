"""Shapes are checked as jaxtyping checks them, other types as beartype does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, PyTree, TypeCheckError

from jmpq.solvers.quadratic.semidefinite import onto_simplex
from jmpq.text import did_you_mean
from tests import light_checks


def total(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    return float(x.sum() + y.sum())


def half(x: float) -> float:
    return x / 2 if x else "nothing"  # pyright: ignore[reportReturnType]


def checked(fn):
    return light_checks.jaxtyped(fn, typechecker=beartype)


def test_shapes_are_checked():
    assert checked(total)(np.ones(2), np.ones(2)) == 4
    with pytest.raises(TypeCheckError):
        checked(total)(np.ones(2), np.ones(3))


def test_arguments_and_results_of_other_types_are_checked():
    assert checked(half)(3.0) == 1.5
    for wrong in ("a", 0.0):
        with pytest.raises(BeartypeCallHintViolation):
            checked(half)(wrong)


def test_local_functions_are_checked_where_they_name_arrays():
    def plain(x: float) -> float:
        return x

    def shaped(x: Float[np.ndarray, " n"]) -> float:
        return float(x.sum())

    assert checked(plain) is plain
    with pytest.raises(TypeCheckError):
        checked(shaped)(np.ones((2, 2)))


@pytest.mark.parametrize(
    "kind",
    [
        Float[np.ndarray, " n"],
        PyTree,
        PyTree[Float[np.ndarray, "..."]],
        list[Float[np.ndarray, " n"]] | None,
        Callable[[Float[np.ndarray, " n"]], int],
        "Float[np.ndarray, ' n']",
    ],
)
def test_whatever_names_an_array_is_left_to_jaxtyping(kind):
    def one(x):
        return x

    one.__annotations__ = {"x": kind}
    assert checked(one) is not one


@pytest.mark.parametrize(
    "kind", [int, np.ndarray, dict[str, float], Callable[[int], Any], None]
)
def test_what_names_none_is_not(kind):
    def one(x):
        return x

    one.__annotations__ = {"x": kind}
    assert checked(one) is one


def test_the_package_is_checked():
    with pytest.raises(BeartypeCallHintViolation):
        did_you_mean("a", 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError):
        onto_simplex(np.ones(2))
