"""Transferred logits: the composed prediction where nothing is transferred, and its limits."""

import numpy as np
import pytest

from jmpq.formats import Choice, choice_grid
from jmpq.sensitivity.logits.composed import Composed
from jmpq.sensitivity.logits.joint_predictors import JointPredictor
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.sensitivity.logits.transferred import Transferred
from jmpq.sensitivity.table import Move

LAYERS, CLASSES = ("one", "two", "three"), 4
CHOICES = choice_grid((2, 4, 32))
TABLE = np.random.default_rng(9).integers(0, len(CHOICES), (12, len(LAYERS)))
TABLE[0] = CHOICES.index(Choice(32))


def drawn(rng, examples, *, attenuation=0.1):
    """Float logits, most of them certain, and changes of six moves.

    The greatest logit is attenuated by a share of the margin; the rest is noise.
    """
    z = 10.0 * rng.normal(size=(examples, CLASSES))
    top = np.sort(z, axis=1)
    margin = top[:, -1] - top[:, -2]
    moves = [(layer, bits) for layer in LAYERS for bits in (2, 4)]
    changes = np.empty((examples, len(moves), CLASSES))
    for m, (layer, bits) in enumerate(moves):
        size = (0.5 if bits == 2 else 0.1) * (1 + LAYERS.index(layer))
        changes[:, m] = size * rng.normal(size=z.shape)
        changes[np.arange(examples), m, z.argmax(axis=1)] -= attenuation * size * margin
    return z, changes


def composed_of(z, changes):
    moves = tuple(Move(layer, "w", bits) for layer in LAYERS for bits in (2, 4))
    return Composed(
        superposed=Superposed(
            layers=LAYERS,
            choices=CHOICES,
            moves=moves,
            logits=z,
            changes=changes,
            targets=np.zeros(len(z), int),
        )
    )


def test_on_the_calibration_examples_themselves_it_is_the_composed_prediction():
    z, changes = drawn(np.random.default_rng(0), 20)
    composed = composed_of(z, changes)
    same = Transferred(composed=composed, logits=z, bins=20)
    np.testing.assert_array_equal(same.partners, np.arange(20))
    want = composed.predict_examples(TABLE)
    np.testing.assert_allclose(same.predict_examples(TABLE), want, rtol=1e-9, atol=1e-12)
    assert (same.predict_columns(TABLE)[0], same.standard_errors(TABLE)[0]) == (0, 0)
    assert isinstance(same, JointPredictor)


def test_names_of_classes_do_not_matter():
    rng = np.random.default_rng(1)
    composed = composed_of(*drawn(rng, 20))
    other, _ = drawn(rng, 50)
    renamed = np.stack([rng.permutation(row) for row in other])
    one, two = (Transferred(composed=composed, logits=x, bins=4) for x in (other, renamed))
    np.testing.assert_allclose(
        one.predict_examples(TABLE), two.predict_examples(TABLE), rtol=1e-9, atol=1e-12
    )


def test_every_calibration_example_of_a_bin_is_taken_equally_often():
    rng = np.random.default_rng(2)
    z, changes = drawn(rng, 21)
    other, _ = drawn(rng, 400)
    transferred = Transferred(composed=composed_of(z, changes), logits=other, bins=5)
    margin = np.diff(np.sort(z, axis=1)[:, -2:], axis=1)[:, 0]
    for part in np.array_split(np.argsort(margin), 5):
        counts = np.bincount(transferred.partners, minlength=21)[part]
        assert counts.max() - counts.min() <= 1
    assert len(transferred.partners) == 400


def test_many_float_logits_come_nearer_to_what_all_examples_would_say():
    """Truth: very many examples; changes are noise, alike for certain and uncertain ones."""
    rng = np.random.default_rng(3)
    table = TABLE[(TABLE[0] != TABLE).any(axis=1)]
    truth = composed_of(*drawn(rng, 20_000, attenuation=0.0)).predict_columns(table)
    other, _ = drawn(rng, 2000, attenuation=0.0)
    errors = {"composed": [], "transferred": []}
    inside = []
    for _ in range(40):
        composed = composed_of(*drawn(rng, 60, attenuation=0.0))
        transferred = Transferred(composed=composed, logits=other, bins=1)
        found = transferred.predict_columns(table)
        errors["composed"].append(composed.predict_columns(table) / truth - 1)
        errors["transferred"].append(found / truth - 1)
        sem = transferred.standard_errors(table)
        inside.append(np.abs(found - truth) < 2 * sem + 0.1 * truth)
    rms = {name: np.sqrt(np.mean(np.square(e))) for name, e in errors.items()}
    assert rms["transferred"] < 0.7 * rms["composed"]
    assert np.mean(inside) > 0.85


def test_allocations_by_name_and_by_column_are_the_same():
    from jmpq.allocation import Allocation

    rng = np.random.default_rng(4)
    transferred = Transferred(composed=composed_of(*drawn(rng, 20)), logits=drawn(rng, 30)[0])
    allocations = [Allocation.from_columns(LAYERS, CHOICES, row) for row in TABLE]
    np.testing.assert_array_equal(
        transferred.predict(allocations), transferred.predict_columns(TABLE)
    )
    assert "16 bins of certainty" in " ".join(repr(transferred).split())


def test_what_cannot_be_transferred_is_refused():
    composed = composed_of(*drawn(np.random.default_rng(5), 20))
    with pytest.raises(ValueError, match="do not go with changes of shape"):
        Transferred(composed=composed, logits=np.zeros((5, CLASSES + 1)))
    with pytest.raises(ValueError, match="give 1 to 20"):
        Transferred(composed=composed, logits=np.zeros((5, CLASSES)), bins=21)
