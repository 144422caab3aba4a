"""Measured increases against a quantized network written out by hand, float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.formats import choice_grid
from jmpq.quantizers.calibrate import calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.metrics.measured_moves import (
    SETS_PER_CALL,
    MeasuredMoves,
    measured_increases,
    possible_pairs,
)
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy, kl_divergence
from tests import helpers
from tests.sensitivity.dense import A_BITS, W_BITS, Dense


class ByHand(Dense):
    """`Dense`, and the network with moves made one after the other, as they act."""

    def __init__(self):
        super().__init__()
        self.forward = jax.jit(
            lambda kernels, shifts: helpers.manual_logits(
                self.network, kernels, shifts, self.inputs
            )
        )
        self.clean = self.forward(self.network.kernels(), self.shifts)
        self.increase = functools.cache(self._increase)

    def quantized(self, made):
        """Logits with `made`; the error of an input is that of the perturbed one."""
        kernels, shifts = self.network.kernels(), list(self.shifts)
        for m in made:
            if m % 4 < 2:  # each layer has moves w2 w4 a3 a8
                kernels[m // 4] = (
                    kernels[m // 4] + self.unravel(jnp.asarray(self.deltas[m]))[0][m // 4]
                )
        for m in sorted(made):
            if m % 4 >= 2:
                layer, b = m // 4, A_BITS[m % 4 - 2]
                x = np.asarray(self.forward(kernels, shifts)[1][layer])
                clean = np.asarray(self.clean[1][layer])
                low, high = min(clean.min(), 0.0), max(clean.max(), 0.0)
                step = (high - low) / (2**b - 1)
                zero_point = np.round(-low / step)
                codes = np.clip(np.round(x / step) + zero_point, 0, 2**b - 1)
                shifts[layer] = jnp.asarray((codes - zero_point) * step - x)
        return self.forward(kernels, shifts)[0]

    def _increase(self, kind, made):
        q, z = self.quantized(made), self.clean[0]
        if kind == "kl":
            return float(jax.vmap(kl_divergence)(q, z).mean())
        losses = [jax.vmap(cross_entropy)(x, self.labels) for x in (q, z)]
        return float((losses[0] - losses[1]).mean())


@pytest.fixture(scope="module")
def by_hand():
    return ByHand()


def form(second, made):
    e = np.zeros(len(second))
    e[list(made)] = 1
    return 0.5 * e @ second @ e


@pytest.mark.parametrize("kind", ["loss", "kl"])
def test_single_reproduces_every_measured_choice(by_hand, kind):
    got = by_hand.analyse(MeasuredMoves(kind=kind))
    assert got.metric == f"measured_{kind}"
    for layer, (c, choice) in itertools.product(range(4), enumerate(got.choices)):
        w = 4 * layer + W_BITS.index(choice.w_bits)
        a = 4 * layer + 2 + A_BITS.index(choice.a_bits)
        want = by_hand.increase(kind, (w, a))
        np.testing.assert_allclose(got.losses[layer, c], want, rtol=0, atol=1e-10)
        for made in ((w,), (a,), (w, a)):
            want = by_hand.increase(kind, made)
            np.testing.assert_allclose(form(got.second, made), want, rtol=0, atol=1e-10)
    assert not got.has_interactions  # none across layers
    np.testing.assert_array_equal(got.first, 0)


@pytest.mark.parametrize("kind", ["loss", "kl"])
def test_pairs_reproduce_every_measured_move_and_pair(by_hand, kind):
    got = by_hand.analyse(MeasuredMoves(pairs="all", kind=kind))
    assert got.metric == f"measured_pairs_{kind}"
    pairs = possible_pairs(by_hand.moves)
    assert len(pairs) == 16 * 15 // 2 - 8  # w2–w4 and a3–a8 of four layers exclude each other
    for made in [*((m,) for m in range(16)), *pairs[::7]]:
        want = by_hand.increase(kind, made)
        np.testing.assert_allclose(form(got.second, made), want, rtol=0, atol=1e-10)
    sets = [(m,) for m in range(16)] + pairs
    found = measured_increases(by_hand.moves, sets, by_hand.inputs, by_hand.labels, kind=kind)
    forms = [form(got.second, made) for made in sets]
    np.testing.assert_allclose(forms, found, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(got.second, got.second.T)
    excluded = [(0, 1), (2, 3), (12, 13)]
    assert all(got.second[pair] == 0 for pair in excluded)


def test_pairs_agree_with_single_inside_a_layer(by_hand):
    single, pairs = (
        by_hand.analyse(MeasuredMoves()),
        by_hand.analyse(MeasuredMoves(pairs="all")),
    )
    np.testing.assert_allclose(single.losses, pairs.losses, rtol=1e-12)


def test_any_loss_and_any_set(by_hand):
    def squared(logits, label):
        return jnp.square(logits - label.astype(logits.dtype)).sum()

    sets = [(), (0, 6, 9, 15), (1, 2)] * (SETS_PER_CALL // 3 + 1)  # more than one call
    found = measured_increases(
        by_hand.moves, sets, by_hand.inputs, by_hand.labels, loss=squared
    )
    z = by_hand.clean[0]
    for made, got in zip(sets[:3], found[-3:], strict=True):
        q, labels = by_hand.quantized(made), by_hand.labels[:, None].astype(z.dtype)
        want = (jnp.square(q - labels) - jnp.square(z - labels)).sum(axis=1).mean()
        np.testing.assert_allclose(got, want, atol=1e-10)
    np.testing.assert_array_equal(found[:3], found[-3:])
    assert measured_increases(by_hand.moves, [], by_hand.inputs, by_hand.labels).shape == (0,)


def test_weights_only_have_no_pairs_inside_a_layer(by_hand):
    weights = calibrate_weights(by_hand.network, KernelSpec(clipping="minmax"), W_BITS)
    quantizers = Quantizers(weights=weights, activations=None)
    moves = MoveNetwork(network=by_hand.network, quantizers=quantizers)
    args = (by_hand.inputs, by_hand.labels, jax.random.key(0))
    second = MeasuredMoves()(moves, *args).second
    want = [by_hand.increase("loss", (4 * i + j,)) for i in range(4) for j in range(2)]
    np.testing.assert_allclose(second, 2 * np.diag(want), atol=1e-10)


def test_choices_of_float_bits_cost_nothing(by_hand):
    data, choices = [(by_hand.inputs, by_hand.labels)], choice_grid((2, 32), (3, 32))
    got = analyse(by_hand.moves, MeasuredMoves(kind="kl"), data, choices)
    np.testing.assert_array_equal(got.losses[:, -1], 0)
    want = by_hand.increase("kl", (4,))  # conv1 W2, input untouched
    np.testing.assert_allclose(got.losses[1, 1], want, atol=1e-10)
