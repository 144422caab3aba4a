"""Joint predictors: one interface, sums and products written out."""

import dataclasses
import itertools

import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.formats import UNQUANTIZED
from jmpq.sensitivity.logits.composed import Composed
from jmpq.sensitivity.logits.joint_predictors import JointPredictor, Quadratic
from jmpq.sensitivity.logits.measure import measure_superposed
from jmpq.sensitivity.logits.superposed import PredictedLoss
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
    superposed = measure_superposed(dense.moves, data, newton.choices)
    rows = np.random.default_rng(0).integers(0, 4, (7, 4))
    predictors = [
        newton,
        Quadratic(sensitivity=newton),
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
