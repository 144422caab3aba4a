"""Superposed logits: exact single moves, sums by hand, second order, files, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.formats import Choice, choice_grid
from jmpq.quantizers.calibrate import calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import KernelSpec
from jmpq.sensitivity import batch_memory
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.logits.measure import measure_superposed
from jmpq.sensitivity.logits.superposed import Superposed, changes_bytes
from jmpq.sensitivity.metrics.measured_moves import measured_increases
from jmpq.sensitivity.metrics.taylor import GaussNewton
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy, kl_divergence
from tests.helpers import rewritten

CHOICES = choice_grid((2, 4, 32), (3, 8, 32))  # nine; the last changes nothing


@pytest.fixture(scope="module")
def superposed(dense):
    data = [(dense.inputs[:2], dense.labels[:2]), (dense.inputs[2:], dense.labels[2:])]
    return measure_superposed(dense.moves, data, CHOICES, provenance={"seed": 1})


def alone(layer, choice):
    row = np.full(4, 8)
    row[layer] = CHOICES.index(choice)
    return row


@pytest.mark.parametrize("kind", ["kl", "loss"])
def test_single_moves_are_exact(dense, superposed, kind):
    choices = [Choice(2), Choice(4), Choice(32, 3), Choice(32, 8)]
    rows = np.stack([alone(layer, choice) for layer in range(4) for choice in choices])
    got = superposed.predict_columns(rows, kind)
    z = dense.logits(dense.point)
    want = []
    for delta in dense.deltas:
        q = dense.logits(dense.point + delta)
        if kind == "kl":
            want.append(jax.vmap(kl_divergence)(q, z).mean())
        else:
            want.append((dense.losses(dense.point + delta) - dense.losses(dense.point)).mean())
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    sets = [[m] for m in range(16)]
    measured = measured_increases(dense.moves, sets, dense.inputs, dense.labels, kind=kind)
    np.testing.assert_allclose(got, measured, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["kl", "loss"])
def test_joint_allocations_are_the_loss_of_added_changes(dense, superposed, kind):
    table = np.random.default_rng(0).integers(0, 9, (11, 4))
    z = np.asarray(dense.logits(dense.point))
    log_p = jax.nn.log_softmax(z)
    want = []
    for row in table:
        q = z.copy()
        for layer, c in enumerate(row):
            for kind_bits, at in ((CHOICES[c].w_bits, (2, 4)), (CHOICES[c].a_bits, (3, 8))):
                if kind_bits != 32:
                    m = 4 * layer + (0 if at == (2, 4) else 2) + at.index(kind_bits)
                    q += np.asarray(dense.logits(dense.point + dense.deltas[m])) - z
        log_q = jax.nn.log_softmax(q)
        if kind == "kl":
            want.append(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))
        else:
            want.append(-np.mean((log_q - log_p)[np.arange(3), dense.labels]))
    got = superposed.predict_columns(table, kind)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-13)
    one = superposed.logits.nbytes * 4
    assert superposed.allocations_per_chunk(3 * one + 1) == 3
    chunked = superposed.predict_columns(table, kind, memory_bytes=3 * one)
    np.testing.assert_allclose(chunked, got, rtol=1e-12)
    assert superposed.predict_columns(table[:0], kind).shape == (0,)


def test_any_loss(superposed):
    def squared(logits, label):
        return jnp.square(logits - label.astype(logits.dtype)).sum()

    table = np.array([[0, 4, 8, 2]])
    q = superposed.logits + superposed.changes[
        :, [0, 2, 5, 7, 12]  # stem W2A3, conv1 W4A8, conv2 unchanged, head W2
    ].sum(axis=1)
    labels = superposed.targets[:, None]
    want = (np.square(q - labels) - np.square(superposed.logits - labels)).sum() / 3
    np.testing.assert_allclose(superposed.predict_columns(table, "loss", loss=squared), want)


def test_second_order_is_the_gauss_newton_form_by_difference(dense, superposed):
    data = [(dense.inputs, dense.labels)]
    newton = analyse(dense.moves, GaussNewton(changes="difference"), data, CHOICES)
    table = np.random.default_rng(1).integers(0, 9, (20, 4))
    scale = 1e-3
    both = [
        dataclasses.replace(superposed, changes=s * superposed.changes).predict_columns(table)
        for s in (scale, -scale)  # the cubic term cancels
    ]
    want = newton.predict_columns(table, interactions=True)
    np.testing.assert_allclose(np.mean(both, axis=0) / scale**2, want, rtol=1e-5, atol=1e-9)


def test_saved_and_loaded(superposed, tmp_path):
    superposed.save(tmp_path / "s.npz")
    again = Superposed.load(tmp_path / "s.npz")
    for field in dataclasses.fields(again):
        np.testing.assert_equal(getattr(again, field.name), getattr(superposed, field.name))
    table = np.random.default_rng(2).integers(0, 9, (5, 4))
    np.testing.assert_array_equal(
        again.predict_columns(table), superposed.predict_columns(table)
    )


def test_files_that_are_none_are_refused(superposed, tmp_path):
    path = tmp_path / "s.npz"
    with pytest.raises(FileNotFoundError, match=r"not found: run `jmpq sensitivity .*` first"):
        Superposed.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"not a file of superposed logits\): run `jmpq"):
        Superposed.load(path)
    np.savez(path, header=np.array("[1]"))
    with pytest.raises(ValueError, match="has schema None version None; this jmpq reads"):
        Superposed.load(path)
    superposed.save(path)
    rewritten(path, lambda header: header.update(version=1))
    with pytest.raises(
        ValueError, match=r"superposed' version 1; this jmpq reads .* version 2"
    ):
        Superposed.load(path)


def test_memory_limits(dense, superposed):
    assert changes_bytes(16, 3, 3, itemsize=8) == superposed.changes.nbytes
    with pytest.raises(ValueError, match="take 1152 bytes, more than memory_bytes=1151"):
        measure_superposed(
            dense.moves, [(dense.inputs, dense.labels)], CHOICES, memory_bytes=1151
        )
    with pytest.raises(ValueError, match="One allocation takes about 288 bytes"):
        superposed.predict_columns(np.zeros((1, 4), int), memory_bytes=287)


def test_a_limit_of_the_process_cuts_batches_and_changes_nothing(
    dense, superposed, monkeypatch
):
    """As if the process had nothing before, and took what is planned."""
    monkeypatch.setattr(batch_memory, "resident_bytes", lambda: 0)
    monkeypatch.setattr(batch_memory, "bytes_per_planned", lambda programs: 1.0)
    batches = [(jnp.concatenate([dense.inputs] * 8), np.concatenate([dense.labels] * 8))]
    measure = functools.partial(measure_superposed, dense.moves, batches, CHOICES)
    whole, told = measure(), []
    measure(process_bytes=10**9, announce=told.append)
    limit = told[0].resident // 2 + whole.changes.nbytes
    found = measure(process_bytes=limit, announce=told.append)
    assert [x.examples == len(batches[0][1]) for x in told] == [True, False]
    np.testing.assert_allclose(found.changes, whole.changes, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(found.logits, whole.logits, rtol=1e-14)
    with pytest.raises(ValueError, match=r"'composed' takes .* for 1 example"):
        measure(process_bytes=whole.changes.nbytes + 10)


def test_wrong_tables_are_refused(superposed):
    with pytest.raises(ValueError, match=r"\[allocations, 4 layers\]; got \(2, 3\)"):
        superposed.predict_columns(np.zeros((2, 3), int))
    some = dataclasses.replace(superposed, choices=superposed.choices[:-1])
    with pytest.raises(ValueError, match="'conv1' is not named by the allocation"):
        some.predict([Allocation({"stem": CHOICES[0]})])
    with pytest.raises(ValueError, match="holds columns 0 to 9; there are choices 0 to 8"):
        superposed.predict_columns(np.array([[0, 0, 9, 0]]))
    with pytest.raises(ValueError, match=r"must be .* = .3, 16, 3. .* got .3, 15, 3."):
        dataclasses.replace(superposed, changes=superposed.changes[:, 1:])
    with pytest.raises(ValueError, match="`targets` hold one per example"):
        dataclasses.replace(superposed, targets=superposed.targets[1:])


def test_what_was_not_calibrated_is_refused(dense, superposed):
    with pytest.raises(
        ValueError, match=r"W3: layer 'stem' .* its weights; calibrated are 2, 4"
    ):
        dataclasses.replace(superposed, choices=(Choice(3),))
    data = [(dense.inputs, dense.labels)]
    with pytest.raises(
        ValueError, match=r"W2A4: layer 'stem' .* its activations; calibrated are 3, 8"
    ):
        measure_superposed(dense.moves, data, (Choice(2, 4),))
    with pytest.raises(ValueError, match="Nothing to measure: 0 batches, 16 moves"):
        measure_superposed(dense.moves, [], CHOICES)
    none = Quantizers(
        weights=calibrate_weights(dense.network, KernelSpec(), ()), activations=None
    )
    moves = MoveNetwork(network=dense.network, quantizers=none)
    with pytest.raises(ValueError, match="Nothing to measure: 1 batches, 0 moves"):
        measure_superposed(moves, data, (Choice(32),))


def test_logits_that_are_not_finite_are_refused_by_layer(dense):
    weights = dense.quantizers.weights
    scale = (*weights.scale[:1], weights.scale[1].at[1].set(jnp.nan), *weights.scale[2:])
    spoilt = Quantizers(
        weights=dataclasses.replace(weights, scale=scale),
        activations=dense.quantizers.activations,
    )
    moves = MoveNetwork(network=dense.network, quantizers=spoilt)
    with pytest.raises(ValueError, match="NaN or infinite when layer 'conv1' is at w4"):
        measure_superposed(moves, [(dense.inputs, dense.labels)], CHOICES)


def test_progress_is_told_and_losses_default_to_cross_entropy(dense):
    done = []
    found = measure_superposed(
        dense.moves,
        [(dense.inputs, dense.labels)],
        CHOICES,
        progress=lambda *x: done.append(x),
    )
    assert done == [(0, 1), (1, 1)]
    table = np.array([[0, 1, 2, 3]])
    got = found.predict_columns(table, "loss")
    own = found.predict_columns(table, "loss", loss=cross_entropy)
    np.testing.assert_allclose(got, own, rtol=1e-12)
