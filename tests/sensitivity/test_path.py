"""Path attribution against gradients of a network written out by hand."""

import jax
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.quantizers.scales import Quantizers
from jmpq.sensitivity.metrics.path_attribution import PathAttribution, path_attribution
from tests.sensitivity.dense import Dense

LAYERS = "stem", "conv1", "conv2", "head"
W2, W4, A3, A8 = (list(range(k, 16, 4)) for k in range(4))  # each layer has w2 w4 a3 a8


def everywhere(w_bits, a_bits=32):
    return Allocation.uniform(LAYERS, Choice(w_bits, a_bits))


class Smooth(Dense):
    """`Dense` with its mean loss and gradient compiled."""

    def __init__(self):
        super().__init__()
        self.mean = jax.jit(lambda w: self.losses(w).mean())
        self.slope = jax.jit(jax.grad(self.mean))


@pytest.fixture(scope="module")
def dense():
    return Smooth()


def shares(dense, made, points):
    """φ by hand: gradients on the straight path to all of `made`."""
    total = dense.deltas[made].sum(axis=0)
    times = (np.arange(points) + 0.5) / points
    slopes = [np.asarray(dense.slope(dense.point + t * total)) for t in times]
    found = np.zeros(16)
    found[made] = dense.deltas[made] @ np.mean(slopes, axis=0)
    return found


@pytest.mark.parametrize("points", [1, 2])
def test_shares_are_gradients_along_the_path_of_each_bit_width(dense, points):
    got = dense.analyse(PathAttribution(points=points))
    want = sum(shares(dense, made, points) for made in (W2, W4, A3, A8))
    np.testing.assert_allclose(got.first, want, rtol=1e-8, atol=1e-14)
    np.testing.assert_array_equal(got.second, 0)
    np.testing.assert_allclose(got.losses, got.members @ want, rtol=1e-8, atol=1e-14)


def test_bit_width_of_weights_and_activations_is_one_path(dense):
    """Activations that are called 2 bits: W2 and A2 then share their path."""
    activations = dense.quantizers.activations
    renamed = Quantizers(
        weights=dense.quantizers.weights,
        activations=type(activations)(
            **{k: getattr(activations, k) for k in ("spec", "scale", "zero_point")},
            bits=(2, 4),
        ),
    )
    moves = type(dense.moves)(network=dense.network, quantizers=renamed)
    args = (dense.inputs, dense.labels)
    got = PathAttribution()(moves, *args, jax.random.key(0)).first
    want = sum(path_attribution(moves, everywhere(b, b), *args) for b in (2, 4))
    np.testing.assert_allclose(got, want, rtol=1e-10)
    apart = path_attribution(moves, everywhere(2), *args)
    assert np.abs(apart - want)[W2].max() > 1e-3 * np.abs(want).max()


@pytest.mark.parametrize("made", [W2, W2 + A3, [0, 6, 9, 14]])
def test_shares_add_up_to_the_damage_with_error_as_one_over_points_squared(dense, made):
    allocation = dense.moves.allocation(made)
    damage = dense.mean(dense.point + dense.deltas[made].sum(axis=0)) - dense.mean(dense.point)
    errors = []
    for points in (16, 32):
        got = path_attribution(
            dense.moves, allocation, dense.inputs, dense.labels, points=points
        )
        np.testing.assert_allclose(got, shares(dense, made, points), rtol=1e-8, atol=1e-14)
        errors.append(abs(got.sum() - damage))
    assert errors[1] < 1e-3 * abs(damage)
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.15)


def test_path_of_no_move_and_unknown_bits(dense):
    args = (dense.inputs, dense.labels)
    none = path_attribution(dense.moves, Allocation({}), *args)
    np.testing.assert_array_equal(none, 0)
    with pytest.raises(ValueError, match="'stem': weight bits 5 were not calibrated"):
        path_attribution(dense.moves, everywhere(5), *args)
    for call in (
        lambda: PathAttribution(points=0),
        lambda: path_attribution(dense.moves, everywhere(2, 3), *args, points=0),
    ):
        with pytest.raises(ValueError, match="points=0: the path needs at least one point"):
            call()
