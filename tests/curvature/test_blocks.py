"""Blocks are the diagonal blocks of the dense Hessian."""

import jax
import numpy as np
import pytest

from jmpq.curvature.blocks import restrict
from jmpq.curvature.eigen import top_eigenpairs
from jmpq.curvature.hvp import hessian
from tests.curvature.helpers import dense_hessian, tiny_mlp

KEY = jax.random.key(0)
ROWS = {"a": np.arange(8), "b": np.arange(8, 20), "c": np.arange(20, 23)}


def test_eigenvalues_of_named_groups():
    _, loss, params, _ = tiny_mlp(2)
    matrix = dense_hessian(loss, params)
    for leaves in (["a", "c"], ["b"]):
        of_block, block = restrict(loss, params, leaves)
        options = {"which": "largest", "tolerance": 1e-9}
        pairs = top_eigenpairs(hessian(of_block), block, 2, key=KEY, **options)
        rows = np.concatenate([ROWS[leaf] for leaf in leaves])
        want = np.linalg.eigvalsh(matrix[np.ix_(rows, rows)])[::-1][:2]
        np.testing.assert_allclose(pairs.values, want, rtol=1e-8)
        assert list(pairs.vectors[0]) == leaves


def test_a_block_hands_on_further_arguments_and_keeps_the_others():
    _, _, params, _ = tiny_mlp(1)
    of_block, block = restrict(lambda p, x: (p["a"].sum() + p["c"].sum()) * x, params, ["c"])
    want = params["a"].sum() + 2 * params["c"].sum()
    np.testing.assert_allclose(of_block({"c": 2 * block["c"]}, 3.0), 3 * want)


def test_blocks_that_do_not_exist_are_refused():
    _, loss, params, _ = tiny_mlp(1)
    with pytest.raises(
        ValueError, match=r"no parameter named \['d'\]: choose from \['a', 'b', 'c'\]"
    ):
        restrict(loss, params, ["a", "d"])
    with pytest.raises(ValueError, match="at least one parameter"):
        restrict(loss, params, [])
