"""Learned rounding against every way to round up and down."""

import itertools

import numpy as np
import pytest

from jmpq.quantizers.rounding.adaround import learn_rounding
from tests.quantizers.test_gptq import LEAST, LINES, MOST, error, layer


def every_rounding(matrix, hessian, scale, least, most):
    """Least error of each row over all 2^columns ways."""
    ways = np.array(list(itertools.product((0, 1), repeat=matrix.shape[1])))
    best = []
    for row, s in zip(matrix, scale[:, 0], strict=True):
        delta = s * np.clip(np.floor(row / s) + ways, least, most) - row
        best.append(np.einsum("wi,ij,wj->w", delta, hessian, delta).min())
    return np.array(best)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_learned_rounding_is_near_the_best_of_all(seed):
    matrix, hessian, scale = layer(seed, rows=6, columns=10)
    damping = 0.02
    damped = hessian + damping * np.diag(hessian).mean() * np.eye(10)
    codes = learn_rounding(matrix, hessian, scale, 0 * scale, LINES, damping=damping)
    exact = matrix / scale
    assert ((codes == np.floor(exact)) | (codes == np.floor(exact) + 1)).all()
    assert (codes >= LEAST).all()
    assert (codes <= MOST).all()
    plain = np.clip(np.round(exact), LEAST, MOST)
    found, rounded = (error(matrix, damped, scale, c) for c in (codes, plain))
    best = np.stack(
        [
            every_rounding(matrix, damped, s, low, high)
            for s, low, high in zip(scale, LEAST.ravel(), MOST.ravel(), strict=True)
        ]
    )
    assert (found <= rounded * (1 + 1e-12)).all()
    assert (best <= found * (1 + 1e-9)).all()
    # Most of what any rounding could save is saved.
    assert (rounded - found).sum() > 0.7 * (rounded - best).sum()


def test_independent_inputs_and_dead_ones_are_rounded_to_nearest():
    matrix, _, scale = layer(1, columns=6)
    plain = np.clip(np.round(matrix / scale), LEAST, MOST)
    for hessian in (np.diag(np.arange(6.0)), np.zeros((6, 6))):
        codes = learn_rounding(matrix, hessian, scale, 0 * scale, LINES, steps=50)
        np.testing.assert_array_equal(codes, plain)
