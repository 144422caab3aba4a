"""Rounding by the layer Hessian against the textbook loop with explicit inverses."""

import numpy as np
import pytest

from jmpq.quantizers.rounding import gptq
from jmpq.quantizers.rounding.code_lines import CodeLines
from jmpq.quantizers.rounding.gptq import round_by_hessian

BITS = (2, 4)
LEAST = np.array([-1.0, -7.0])[:, None, None]
MOST = -LEAST
LINES = CodeLines.integers(LEAST, MOST)


def layer(seed, rows=5, columns=12, examples=40):
    """A kernel, the Hessian of correlated inputs (one of them always zero), and scales."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, columns)) @ rng.normal(size=(columns, columns))
    inputs[:, 3] = 0
    matrix = rng.normal(size=(rows, columns))
    scale = np.abs(matrix).max(1)[None, :, None] / MOST
    return matrix, inputs.T @ inputs / examples, scale


def error(matrix, hessian, scale, codes, zero_point=0.0):
    delta = scale * (codes - zero_point) - matrix
    return np.einsum("bri,ij,brj->br", delta, hessian, delta)


def textbook(matrix, hessian, scale, least, most):
    """OBQ with a fixed order: the inverse Hessian of what is left, from scratch each time."""
    codes, w = np.zeros_like(matrix), matrix.copy()
    left = list(np.argsort(-np.diag(hessian), kind="stable"))
    while left:
        j = left[0]
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        codes[:, j] = np.clip(np.round(w[:, j] / scale[:, 0]), least, most)
        miss = w[:, j] - scale[:, 0] * codes[:, j]
        w[:, left] -= np.outer(miss, inverse[0] / inverse[0, 0])
        left = left[1:]
    return codes


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 5, 128])
def test_codes_are_those_of_the_textbook_or_plain_rounding(seed, block, monkeypatch):
    monkeypatch.setattr(gptq, "BLOCK", block)
    matrix, hessian, scale = layer(seed)
    got = round_by_hessian(matrix, hessian, scale, 0 * scale, LINES, damping=0.02)
    damped = hessian + 0.02 * np.diag(hessian).mean() * np.eye(len(hessian))
    plain = np.clip(np.round(matrix / scale), LEAST, MOST)
    want = np.stack(
        [
            textbook(matrix, damped, s, low, high)
            for s, low, high in zip(scale, LEAST.ravel(), MOST.ravel(), strict=True)
        ]
    )
    errors = [error(matrix, damped, scale, codes) for codes in (want, plain)]
    better = (errors[0] <= errors[1])[..., None]
    assert better.sum() > better.size / 2
    np.testing.assert_array_equal(got, np.where(better, want, plain))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_row_is_worse_than_plainly_rounded_and_their_sum_is_far_better(seed):
    matrix, hessian, scale = layer(seed, rows=20, columns=30, examples=100)
    codes = round_by_hessian(matrix, hessian, scale, 0 * scale, LINES, damping=1e-6)
    plain = np.clip(np.round(matrix / scale), LEAST, MOST)
    found, rounded = (error(matrix, hessian, scale, c) for c in (codes, plain))
    assert (found <= rounded * (1 + 1e-4)).all()
    assert found.sum() < 0.6 * rounded.sum()


def test_independent_inputs_are_rounded_to_nearest():
    matrix, _, scale = layer(1)
    hessian = np.diag(np.arange(12.0))
    codes = round_by_hessian(matrix, hessian, scale, 0 * scale, LINES)
    np.testing.assert_array_equal(codes, np.clip(np.round(matrix / scale), LEAST, MOST))
    nothing = np.zeros((12, 12))
    codes = round_by_hessian(matrix, nothing, scale, 0 * scale, LINES)
    np.testing.assert_array_equal(codes, np.clip(np.round(matrix / scale), LEAST, MOST))


def test_two_inputs_by_brute_force():
    """With two columns the second makes up for the first as well as any code can."""
    matrix, hessian = np.array([[0.6, 0.6]]), np.array([[2.0, 0.99], [0.99, 1.0]])
    scale, top = np.ones((1, 1, 1)), np.full((1, 1, 1), 1.0)
    codes = round_by_hessian(
        matrix, hessian, scale, 0 * scale, CodeLines.integers(-top, top), damping=0.0
    )
    grid = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(9, 1, 1, 2)
    errors = [error(matrix, hessian, scale, c).item() for c in grid]
    np.testing.assert_array_equal(codes, grid[int(np.argmin(errors))])
    assert codes.tolist() != [[[1, 1]]]


def test_a_zero_point_shifts_the_codes():
    matrix, hessian, scale = layer(2)
    plain = round_by_hessian(matrix, hessian, scale, 0 * scale, LINES)
    shifted = round_by_hessian(
        matrix, hessian, scale, 0 * scale + 9, CodeLines.integers(LEAST + 9, MOST + 9)
    )
    np.testing.assert_array_equal(shifted, plain + 9)
