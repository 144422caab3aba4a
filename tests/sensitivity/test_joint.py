"""Joint predictors: one interface, sums and products written out, the fit of the ceiling."""

import dataclasses
import itertools

import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.formats import UNQUANTIZED
from jmpq.sensitivity.logits.composed import Composed
from jmpq.sensitivity.logits.joint_predictors import JointPredictor, Quadratic, Saturated
from jmpq.sensitivity.logits.saturation import saturate, unsaturate
from jmpq.sensitivity.logits.superposed import PredictedLoss, Superposed
from jmpq.sensitivity.metrics.taylor import GaussNewton
from jmpq.training.losses import cross_entropy
from tests.sensitivity.test_result import sensitivity

ALLOCATIONS = np.array(list(itertools.product(range(4), repeat=3)))


def positive(scale=1.0, seed=0):
    """A diagonal metric with positive losses, three layers and four choices."""
    found = sensitivity(seed, whole=False)
    return dataclasses.replace(found, batch_second=scale * np.abs(found.batch_second))


def named(table, rows):
    return [Allocation.from_columns(table.layers, table.choices, row) for row in rows]


def test_every_predictor_has_one_interface(dense):
    data = [(dense.inputs, dense.labels)]
    newton = dense.analyse(GaussNewton(changes="difference"))
    superposed = Superposed.measure(dense.moves, data, newton.choices)
    rows = np.random.default_rng(0).integers(0, 4, (7, 4))
    predictors = [
        newton,
        Quadratic(sensitivity=newton),
        Saturated(sensitivity=newton, c=2 * float(newton.losses.max())),
        superposed,
        Composed(superposed=superposed),
        PredictedLoss(logits=Composed(superposed=superposed)),
        PredictedLoss(logits=superposed),
    ]
    for predictor in predictors:
        assert isinstance(predictor, JointPredictor)
        found = predictor.predict_columns(rows)
        assert found.shape == (7,)
        assert np.all(np.isfinite(found))
        np.testing.assert_allclose(predictor.predict_columns(rows[3:4]), found[3:4], rtol=1e-9)
        assert (predictor.layers, predictor.choices) == (newton.layers, newton.choices)
        np.testing.assert_allclose(predictor.predict(named(newton, rows)), found, rtol=1e-12)
    q = superposed.logits + np.einsum(
        "m,nmc->nc", newton.indicator(rows[:1])[0], superposed.changes
    )
    log_p = [x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (q, superposed.logits)]
    want = -(log_p[0] - log_p[1])[np.arange(3), dense.labels].mean()
    np.testing.assert_allclose(predictors[-1].predict_columns(rows[:1]), want, rtol=1e-9)
    own = PredictedLoss(logits=superposed, loss=twice)
    np.testing.assert_allclose(own.predict_columns(rows[:1]), 2 * want, rtol=1e-9)


def twice(logits, label):
    return cross_entropy(logits, label) * 2.0


def test_unquantized_layers_add_nothing_and_need_no_candidate():
    found = sensitivity(use_first=True)
    layer, other, _ = found.layers
    assert UNQUANTIZED not in found.choices
    taken = [Allocation({layer: found.choices[1]}),
             Allocation({layer: found.choices[1], other: UNQUANTIZED})]  # fmt: skip
    np.testing.assert_allclose(found.predict(taken), found.losses[0, 1], rtol=1e-12)
    full = Quadratic(sensitivity=found).predict(taken)
    np.testing.assert_allclose(full, found.losses[0, 1], rtol=1e-12)  # no pair is left
    positive_one = positive()
    saturated = Saturated(sensitivity=positive_one, c=2 * float(positive_one.losses.max()))
    got = saturated.predict(taken)
    np.testing.assert_allclose(got, positive_one.losses[0, 1], rtol=1e-12)
    with pytest.raises(ValueError, match="names layer 'nobody', which is not among"):
        found.predict([Allocation({"nobody": found.choices[0]})])


def test_quadratic_is_the_whole_form():
    found = sensitivity(use_first=True)
    rows = ALLOCATIONS[::5]
    e = found.indicator(rows)
    want = e @ found.first + 0.5 * np.einsum("am,mk,ak->a", e, found.second, e)
    np.testing.assert_allclose(
        Quadratic(sensitivity=found).predict_columns(rows), want, rtol=1e-12
    )
    with pytest.raises(ValueError, match="'diagonal' has no cross-layer terms: use"):
        Quadratic(sensitivity=positive())


def test_saturated_is_the_product_of_what_each_layer_leaves():
    found = positive()
    c = 1.5 * found.losses.max()
    rows = ALLOCATIONS
    left = np.prod([1 - found.losses[i, rows[:, i]] / c for i in range(3)], axis=0)
    got = Saturated(sensitivity=found, c=c).predict_columns(rows)
    np.testing.assert_allclose(got, c * (1 - left), rtol=1e-12)
    assert np.all(got < c)
    far = Saturated(sensitivity=found, c=1e9 * c).predict_columns(rows)
    np.testing.assert_allclose(far, found.predict_columns(rows), rtol=1e-6)
    with pytest.raises(ValueError, match="is not below the greatest damage"):
        Saturated(sensitivity=found, c=found.losses.max())


@pytest.mark.parametrize("ratio", [1.01, 1.7, 40.0])
def test_the_ceiling_is_found_from_a_few_measured_allocations(ratio):
    found = positive(seed=3)
    true = Saturated(sensitivity=found, c=ratio * found.losses.max())
    rows = ALLOCATIONS[::7]
    got = Saturated.fit(found, named(found, rows), true.predict_columns(rows))
    np.testing.assert_allclose(got.c, true.c, rtol=1e-5)
    noisy = true.predict_columns(rows) * (
        1 + 0.05 * np.random.default_rng(0).normal(size=len(rows))
    )
    fitted = Saturated.fit(found, named(found, rows), noisy)
    errors = [
        np.square(p.predict_columns(rows) - noisy).sum()
        for p in (fitted, true, Saturated(sensitivity=found, c=1.1 * fitted.c))
    ]
    assert errors[0] <= min(errors) * (1 + 1e-9)


def test_the_fit_refuses_what_it_cannot_use():
    found = positive()
    for measured in ([1.0], [1.0, np.nan], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="give at least two, each with its measured"):
            Saturated.fit(
                found,
                named(found, ALLOCATIONS[: 2 if len(measured) > 1 else 1]),
                np.array(measured),
            )
    none = dataclasses.replace(found, batch_second=-found.batch_second)
    with pytest.raises(ValueError, match="'diagonal' predicts no increase at all"):
        Saturated.fit(none, named(none, ALLOCATIONS[:2]), np.ones(2))


def test_saturated_losses_add_up_to_the_saturating_damage():
    c, losses = 3.0, np.array([0.2, 2.9, -0.1, 0.0])
    b = saturate(losses, c)
    np.testing.assert_allclose(unsaturate(b, c), losses, rtol=1e-12, atol=1e-15)
    for made in itertools.product([False, True], repeat=4):
        kept = np.array(made)
        want = c * (1 - np.prod(1 - losses[kept] / c))
        np.testing.assert_allclose(unsaturate(b[kept].sum(), c), want, atol=1e-12)
    np.testing.assert_allclose(saturate(losses, 1e9), losses / 1e9, rtol=1e-6)


def test_saturation_refuses_what_has_no_share():
    with pytest.raises(ValueError, match="increase, 2, is not below the greatest damage c=2"):
        saturate(np.array([1.0, 2.0]), 2.0)
    with pytest.raises(ValueError, match="increase, nan, is not below"):
        saturate(np.array([np.nan]), 2.0)
    for function in (saturate, unsaturate):
        for c in (0.0, -1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match="is no greatest damage: expected a positive"):
                function(np.array([0.1]), c)
