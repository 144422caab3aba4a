"""Results on disk and in sums; NumPy only."""

import dataclasses

import numpy as np
import pytest

from jmpq.formats import Choice, choice_grid
from jmpq.sensitivity.table import (
    Move,
    Sensitivity,
    choice_members,
    load_arrays,
    load_sensitivities,
    save_sensitivities,
)
from tests.helpers import rewritten

LAYERS = ("stem", "block/conv", "head")
CHOICES = choice_grid((2, 4), (8, 32))  # W2A8 W2 W4A8 W4
MOVES = tuple(Move(layer, *move) for layer in LAYERS for move in (("w", 2), ("w", 4), ("a", 8)))


def sensitivity(seed=0, *, whole=True, use_first=False, batches=3):
    rng = np.random.default_rng(seed)
    members = choice_members(LAYERS, CHOICES, MOVES)
    sizes = rng.integers(1, 9, batches).astype(float)
    first = rng.normal(size=(batches, 9))
    second = rng.normal(size=(batches, 9, 9))
    second = second + second.transpose(0, 2, 1)
    if whole:
        quadratic = 0.5 * np.einsum("icm,bmk,ick->bic", members, second, members)
    else:
        second = second[:, 0]
        quadratic = 0.5 * np.einsum("icm,bm->bic", members, second)
    return Sensitivity(
        metric="whole" if whole else "diagonal",
        unit="nats per example",
        layers=LAYERS,
        choices=CHOICES,
        moves=MOVES,
        first=np.average(first, axis=0, weights=sizes),
        second=np.average(second, axis=0, weights=sizes),
        batch_first=np.einsum("icm,bm->bic", members, first),
        batch_second=quadratic,
        batch_examples=sizes,
        use_first=use_first,
        provenance={"seed": seed, "weights_sha256": "abc", "nested": {"bits": [2, 4]}},
    )


def test_files_hold_several_metrics_and_what_travels_along(tmp_path):
    path = tmp_path / "new" / "sensitivity.npz"
    saved = {
        "a": sensitivity(0, use_first=True),
        "b": sensitivity(1, whole=False, batches=1),
    }
    save_sensitivities(path, saved, {"quantizers/weights/0": np.arange(3.0)})
    found = load_sensitivities(path)
    assert list(found) == ["a", "b"]
    for name, other in saved.items():
        for field in dataclasses.fields(Sensitivity):
            got, want = getattr(found[name], field.name), getattr(other, field.name)
            if isinstance(want, np.ndarray):
                np.testing.assert_array_equal(got, want)
                assert got.dtype == want.dtype
            else:
                assert got == want, field.name
        np.testing.assert_array_equal(found[name].losses, other.losses)
        np.testing.assert_array_equal(found[name].sem, other.sem)
    np.testing.assert_array_equal(load_arrays(path)["quantizers/weights/0"], np.arange(3.0))
    assert [p.name for p in path.parent.iterdir()] == ["sensitivity.npz"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 1}, "'jmpq/sensitivity' version 1; this jmpq reads .* version 3: run"),
        ({"schema": "other"}, "has schema 'other' version 3"),
    ],
)
def test_files_of_another_schema_are_refused(tmp_path, change, match):
    path = tmp_path / "sensitivity.npz"
    save_sensitivities(path, {"a": sensitivity()})
    rewritten(path, lambda record: record.update(change))
    with pytest.raises(ValueError, match=match):
        load_sensitivities(path)


def test_what_is_no_sensitivity_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not found: run `jmpq sensitivity .*` first"):
        load_sensitivities(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", scale=np.ones(2))
    with pytest.raises(ValueError, match=r"other.npz .* \(not a sensitivity file\): run"):
        load_sensitivities(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", header=np.array([{}], object))
    with pytest.raises(ValueError, match="not a sensitivity file"):
        load_sensitivities(tmp_path / "pickled.npz")


def test_a_choice_makes_its_two_moves():
    members = choice_members(LAYERS, CHOICES, MOVES)
    made = {
        (LAYERS[i], CHOICES[c].label): {MOVES[m][1:] for m in np.flatnonzero(members[i, c])}
        for i in range(3)
        for c in range(4)
    }
    assert made["stem", "W2A8"] == {("w", 2), ("a", 8)}
    assert made["head", "W4"] == {("w", 4)}
    assert all(members[i, :, 3 * j : 3 * j + 3].sum() == 0
               for i in range(3) for j in range(3) if i != j)  # fmt: skip
    assert choice_members(LAYERS, [Choice(32)], MOVES).sum() == 0


@pytest.mark.parametrize("use_first", [False, True])
def test_losses_are_the_quadratic_form_of_one_layer(use_first):
    found = sensitivity(use_first=use_first)
    for i in range(3):
        for c in range(4):
            e = found.members[i, c]
            want = 0.5 * e @ found.second @ e + (found.first @ e if use_first else 0)
            np.testing.assert_allclose(found.losses[i, c], want, rtol=1e-12)


@pytest.mark.parametrize("use_first", [False, True])
def test_predictions_of_joint_allocations(use_first):
    found = sensitivity(2, use_first=use_first)
    choices = np.array([[0, 3, 2], [1, 1, 1]])
    alone, together = (
        found.predict_columns(choices),
        found.predict_columns(choices, interactions=True),
    )
    for n, row in enumerate(choices):
        e = sum(found.members[i, c] for i, c in enumerate(row))
        want = 0.5 * e @ found.second @ e + (found.first @ e if use_first else 0)
        np.testing.assert_allclose(together[n], want, rtol=1e-12)
        added = sum(found.losses[i, c] for i, c in enumerate(row))
        np.testing.assert_allclose(alone[n], added, rtol=1e-12)
        cross = found.interactions()
        pairs = [cross[i, row[i], j, row[j]] for i in range(3) for j in range(3) if i != j]
        np.testing.assert_allclose(together[n] - alone[n], 0.5 * sum(pairs), rtol=1e-10)


def test_a_diagonal_has_no_interactions():
    found = sensitivity(whole=False)
    assert not found.has_interactions
    with pytest.raises(ValueError, match="'diagonal' has no cross-layer terms"):
        found.predict_columns(np.zeros((1, 3), int), interactions=True)
    with pytest.raises(ValueError, match="'diagonal' has no cross-layer terms"):
        found.interactions()
    np.testing.assert_allclose(
        found.predict_columns(np.zeros((1, 3), int)), found.losses[:, 0].sum(), rtol=1e-12
    )


def test_projection_is_the_nearest_positive_semidefinite_matrix():
    table = sensitivity(4)
    projected = table.positive_semidefinite()
    assert (projected.metric, projected.projected) == (table.metric, True)
    s, p = table.second, projected.second
    assert np.linalg.eigvalsh(s)[0] < -1  # there is something to project
    # P ⪰ 0, P − S ⪰ 0 and ⟨P, P − S⟩ = 0 hold for the nearest matrix and for no other
    for matrix in (p, p - s):
        assert np.linalg.eigvalsh(matrix)[0] > -1e-10
    assert abs(np.sum(p * (p - s))) < 1e-9
    rows = np.random.default_rng(0).integers(len(CHOICES), size=(20, len(LAYERS)))
    made = table.indicator(rows)
    np.testing.assert_allclose(
        projected.predict_columns(rows, interactions=True),
        0.5 * np.sum((made @ p) * made, axis=1),
    )
    blocks = np.einsum("icm,mk,ick->ic", table.members, p, table.members) / 2
    np.testing.assert_allclose(projected.losses, blocks)
    np.testing.assert_allclose(projected.sem, table.sem)
    with pytest.raises(ValueError, match="no cross-layer terms"):
        sensitivity(whole=False).positive_semidefinite()
