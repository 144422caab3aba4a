"""Blocks are the diagonal blocks of the dense Hessian."""

import jax
import numpy as np
import pytest

from jmpq.curvature.blocks import each_block, restrict
from jmpq.curvature.eigen import top_eigenpairs
from jmpq.curvature.hvp import hessian
from tests.curvature.helpers import dense_hessian, tiny_mlp

KEY = jax.random.key(0)
ROWS = {"a": np.arange(8), "b": np.arange(8, 20), "c": np.arange(20, 23)}


def top_two(product, block, key):
    return top_eigenpairs(product, block, 2, key=key, which="largest", tolerance=1e-9)


def test_eigenvalues_of_named_groups():
    blocks = {"outer": ["a", "c"], "b": ["b"]}
    _, loss, params, _ = tiny_mlp(2)
    matrix = dense_hessian(loss, params)
    got = each_block(top_two, loss, params, key=KEY, blocks=blocks)
    assert list(got) == list(blocks)
    for name, leaves in blocks.items():
        rows = np.concatenate([ROWS[leaf] for leaf in leaves])
        want = np.linalg.eigvalsh(matrix[np.ix_(rows, rows)])[::-1][:2]
        np.testing.assert_allclose(got[name].values, want, rtol=1e-8)
        assert list(got[name].vectors[0]) == leaves


def test_every_leaf_is_a_block_of_its_own_by_default():
    _, loss, params, _ = tiny_mlp(2)
    got = each_block(lambda product, block, key: (list(block), key), loss, params, key=KEY)
    assert {name: names for name, (names, _) in got.items()} == {n: [n] for n in params}
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for _, key in got.values()}) == 3


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
        each_block(top_two, loss, params, key=KEY, blocks={"none": []}, make=hessian)
