"""Composed logits: exact single moves, linear maps, composition by hand, main effects."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.formats import Choice, choice_grid
from jmpq.sensitivity.logits.composed import Composed, ridge_for
from jmpq.sensitivity.logits.measure import measure_superposed
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.sensitivity.metrics.measured_moves import measured_increases
from jmpq.sensitivity.table import Move

CHOICES = choice_grid((2, 4, 32), (3, 8, 32))  # nine; the last changes nothing


@pytest.fixture(scope="module")
def superposed(dense):
    data = [(dense.inputs[:2], dense.labels[:2]), (dense.inputs[2:], dense.labels[2:])]
    return measure_superposed(dense.moves, data, CHOICES)


def squared(logits, label):
    return jnp.square(logits - label.astype(logits.dtype)).sum()


@pytest.mark.parametrize("kind", ["kl", "loss"])
def test_single_moves_are_exact(dense, superposed, kind):
    choices = [Choice(2), Choice(4), Choice(32, 3), Choice(32, 8)]
    rows = np.full((16, 4), 8)
    for m, (layer, choice) in enumerate(itertools.product(range(4), choices)):
        rows[m, layer] = CHOICES.index(choice)
    got = Composed(superposed=superposed).predict_columns(rows, kind)
    sets = [[m] for m in range(16)]
    measured = measured_increases(dense.moves, sets, dense.inputs, dense.labels, kind=kind)
    np.testing.assert_allclose(got, measured, rtol=0, atol=1e-12)


def test_moves_are_composed_input_before_kernel_and_layer_by_layer(superposed):
    composed = Composed(superposed=superposed, ridge=0.3)
    z, u, maps = superposed.logits, superposed.changes, composed.maps
    table = np.random.default_rng(0).integers(0, 9, (11, 4))
    want = []
    for row in table:
        q = z.copy()
        for layer, c in enumerate(row):
            bits = CHOICES[c]
            for at in ({3: 2, 8: 3}.get(bits.a_bits), {2: 0, 4: 1}.get(bits.w_bits)):
                if at is not None:
                    m = 4 * layer + at
                    q = q + q @ maps[m] + u[:, m] - z @ maps[m]
        labels = superposed.targets[:, None]
        want.append((np.square(q - labels) - np.square(z - labels)).sum() / len(z))
    got = composed.predict_columns(table, "loss", loss=squared)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    one = superposed.logits.nbytes * 4
    chunked = composed.predict_columns(table, "loss", loss=squared, memory_bytes=3 * one)
    np.testing.assert_allclose(chunked, got, rtol=1e-12)
    assert composed.predict_columns(table[:0]).shape == (0,)


def test_allocations_that_begin_alike_are_predicted_as_alone(superposed):
    composed, rng = Composed(superposed=superposed), np.random.default_rng(3)
    start = rng.integers(0, 9, 4)
    near = [np.where(np.arange(4) == i, c, start) for i in range(4) for c in range(9)]
    table = np.concatenate([rng.permutation(near), rng.integers(0, 9, (5, 4))])
    alone = [composed.joint_logits(row[None])[0] for row in table]
    np.testing.assert_array_equal(composed.joint_logits(table), alone)


def test_a_move_that_is_linear_in_the_logits_is_found_and_composed_exactly():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(40, 3))
    maps = 0.3 * rng.normal(size=(2, 3, 3))
    data = Superposed(
        layers=("a", "b"),
        choices=(Choice(2), Choice(32)),
        moves=(Move("a", "w", 2), Move("b", "w", 2)),
        logits=z,
        changes=np.moveaxis(z @ maps, 0, 1),
        targets=np.zeros(40, np.int32),
    )
    composed = Composed(superposed=data, ridge=1e-12)
    np.testing.assert_allclose(composed.maps, maps, atol=1e-10)
    q = z @ (np.eye(3) + maps[0]) @ (np.eye(3) + maps[1])
    want = (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - jax.nn.log_softmax(q))).sum(1).mean()
    np.testing.assert_allclose(composed.predict_columns(np.array([[0, 0]])), want, rtol=1e-9)
    added = data.predict_columns(np.array([[0, 0]]))
    assert abs(added / want - 1) > 0.01  # added changes miss it


def test_a_large_ridge_leaves_one_gain_per_move(superposed):
    composed = Composed(superposed=superposed, ridge=1e12)
    z, u = superposed.logits, superposed.changes
    gains = 1 + np.einsum("nc,nmc->m", z, u) / np.square(z).sum()
    np.testing.assert_allclose(composed.gains, gains, rtol=1e-9)
    np.testing.assert_allclose(composed.maps, (gains - 1)[:, None, None] * np.eye(3), atol=1e-9)
    alone = Composed(superposed=superposed, ridge=math.inf)
    np.testing.assert_allclose(1 + alone.maps, gains[:, None, None], rtol=1e-12)
    np.testing.assert_allclose(alone.gains, gains, rtol=1e-12)
    table = np.random.default_rng(0).integers(0, 9, (11, 4))
    np.testing.assert_allclose(
        alone.predict_columns(table), composed.predict_columns(table), rtol=1e-8
    )


def test_many_classes_take_one_gain_a_move():
    assert ridge_for(10) == 1.0
    assert ridge_for(1000) == math.inf


def test_a_network_without_logits_has_no_maps(superposed):
    dead = dataclasses.replace(superposed, logits=np.zeros_like(superposed.logits))
    assert not Composed(superposed=dead).maps.any()


def every_move(superposed):
    """The same with choices that move the kernel and the input of every layer."""
    return dataclasses.replace(superposed, choices=choice_grid((2, 4), (3, 8)))


def test_main_effects_are_the_nearest_additive_losses(superposed):
    composed = Composed(superposed=every_move(superposed))
    found = composed.main_effects([2, 1], draws=4096)
    assert found.metric == "composed"
    assert found.use_first
    every = np.array(list(itertools.product(range(4), repeat=4)))
    values = composed.predict_columns(every)
    rest = values - found.predict_columns(every)
    # The full factorial: main effects leave a rest that the bits of one kernel don't explain.
    w_bits = np.array([choice.w_bits for choice in composed.superposed.choices])
    for layer, bits in itertools.product(range(4), (2, 4)):
        same = w_bits[every[:, layer]] == bits
        assert abs(rest[same].mean()) < 0.05 * values.std()
    # Any other additive losses are further away.
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = rest + 0.2 * rng.normal(size=(4, 4))[np.arange(4), every].sum(axis=1)
        assert np.square(other).sum() > np.square(rest).sum()


def test_main_effects_of_one_layer_are_its_measured_increases(superposed):
    one = dataclasses.replace(
        superposed,
        layers=superposed.layers[:1],
        moves=superposed.moves[:2],
        choices=(Choice(2), Choice(4)),
        changes=superposed.changes[:, :2],
    )
    composed = Composed(superposed=one)
    found = composed.main_effects([1, 1, 1])
    want = composed.predict_columns(np.array([[0], [1]]))
    np.testing.assert_allclose(found.losses[0], want, rtol=1e-6)
    assert np.isfinite(found.sem).all()


def test_what_makes_no_sense_is_refused(superposed):
    with pytest.raises(ValueError, match="ridge=0 must be positive"):
        Composed(superposed=superposed, ridge=0.0)
    composed = Composed(superposed=superposed)
    with pytest.raises(ValueError, match="Batches of 4 examples in all, but 3 were measured"):
        composed.main_effects([2, 2])
    with pytest.raises(ValueError, match="draws=15: 16 moves take at least as many"):
        composed.main_effects([3], draws=15)
    with pytest.raises(ValueError, match=r"must be \[allocations, 4 layers\]"):
        composed.predict_columns(np.zeros((1, 3), int))
