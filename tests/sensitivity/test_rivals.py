"""Small rivals against per-example gradients of the dense float64 network."""

import jax
import numpy as np
import pytest

from jmpq.sensitivity.metrics.absolute_gradient import AbsoluteGradient
from jmpq.sensitivity.metrics.fisher_trace import FisherTrace


@pytest.fixture(scope="module")
def gradients(dense):
    """∂L_n of every example with respect to all kernels and inputs."""
    return np.asarray(jax.jit(jax.jacobian(dense.losses))(dense.point))


def test_absolute_gradient(dense, gradients):
    want = np.abs(gradients @ dense.deltas.T).mean(axis=0)
    got = dense.analyse(AbsoluteGradient())
    np.testing.assert_allclose(got.losses, got.members @ want, rtol=1e-9)
    assert (got.losses > 0).all()


def test_fisher_trace(dense, gradients):
    blocks = [jax.tree.leaves(dense.unravel(g)) for g in gradients]
    tensors = len(blocks[0])  # four kernels, then the inputs of four sites
    squares = [np.mean([float(np.square(b[t]).sum()) for b in blocks]) for t in range(tensors)]
    examples = len(gradients)
    want = []
    for m, delta in enumerate(dense.deltas):
        parts = jax.tree.leaves(dense.unravel(delta))
        layer, kernel = m // 4, m % 4 < 2
        t = layer if kernel else 4 + layer
        size = parts[t].size if kernel else parts[t].size // examples
        norm = float(np.square(parts[t]).sum()) / (1 if kernel else examples)
        want.append(0.5 * squares[t] / size * norm)
    got = dense.analyse(FisherTrace())
    np.testing.assert_allclose(got.losses, got.members @ np.array(want), rtol=1e-9)


def test_fisher_trace_of_parts_of_a_batch_is_that_of_the_whole_for_weights(dense):
    from jmpq.formats import choice_grid
    from jmpq.sensitivity.analyse import analyse

    whole = dense.analyse(FisherTrace())
    parts = [(dense.inputs[i : i + 1], dense.labels[i : i + 1]) for i in range(3)]
    split = analyse(dense.moves, FisherTrace(), parts, choice_grid((2, 4), (3, 8)))
    weights = [m for m, move in enumerate(whole.moves) if move.kind == "w"]
    np.testing.assert_allclose(split.second[weights], whole.second[weights], rtol=1e-9)
    assert split.sem.shape == whole.losses.shape
