"""Races end with the winner of the full measurement, for less work."""

import jax
import numpy as np
import pytest

from jmpq.data.batches import Batch
from jmpq.deploy.measure import Evaluator
from jmpq.deploy.race import _may_be_best, race
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from tests import helpers

SIZE, BATCHES = 40, 6


@pytest.fixture(scope="module")
def evaluator():
    network = helpers.residual_cnn(3)
    inputs, _ = helpers.images(5, SIZE * BATCHES)
    labels = np.asarray(helpers.apply(network, network.params, inputs)).argmax(1)
    spec = InputSpec(clipping="minmax")
    quantizers = Quantizers(
        weights=calibrate_weights(network, KernelSpec(), (2, 3, 4, 8)),
        activations=calibrate_activations(
            network, spec, (3, 8), [inputs], key=jax.random.key(0)
        ),
    )

    def data():
        for x, y in zip(
            np.split(np.asarray(inputs), BATCHES), np.split(labels, BATCHES), strict=True
        ):
            yield Batch(x, y.astype(np.int32), np.ones(SIZE, np.float32))

    return Evaluator(network, quantizers, data, candidates_per_call=4)


def allocations(evaluator, count, seed):
    rng = np.random.default_rng(seed)
    bits = rng.choice([2, 3, 4, 8], (count, 4)), rng.choice([3, 8], (count, 4))
    return helpers.allocations(evaluator.network, bits)


@pytest.mark.parametrize("by", ["loss", "kl"])
def test_the_winner_is_that_of_the_full_measurement(evaluator, by):
    runners = allocations(evaluator, 14, 0)
    every = evaluator(runners)
    found = race(evaluator, runners, by=by)
    assert found.best == int(np.argmin([getattr(o, by) for o in every]))
    assert found.finished[found.best]
    assert 1 <= found.finished.sum() < 14
    assert 1 / BATCHES < found.share < 0.8
    for finished, got, want in zip(found.finished, found.outcomes, every, strict=True):
        assert (got.examples == SIZE * BATCHES) == finished
        if finished:
            np.testing.assert_allclose(got.loss, want.loss, rtol=1e-12)
            np.testing.assert_allclose(got.increase_sem, want.increase_sem, rtol=1e-12)


def test_one_allocation_wins_alone(evaluator):
    found = race(evaluator, allocations(evaluator, 1, 1))
    assert (found.best, found.finished.tolist(), found.share) == (0, [True], 1.0)


def test_corrections_follow_their_allocations(evaluator):
    examples = next(evaluator.batches()).inputs
    corrected = Evaluator(
        evaluator.network,
        evaluator.quantizers,
        evaluator.batches,
        candidates_per_call=4,
        correct="bias",
        examples=examples,
    )
    runners = allocations(evaluator, 6, 2)
    every, found = corrected(runners), race(corrected, runners)
    assert found.best == int(np.argmin([o.loss for o in every]))
    for finished, got, want in zip(found.finished, found.outcomes, every, strict=True):
        if finished:
            np.testing.assert_allclose(got.loss, want.loss, rtol=1e-12)


def test_a_true_best_is_seldom_dropped():
    """Equal means, the hardest case: the first is lost no more often than the level allows."""
    rng = np.random.default_rng(0)
    error, count, lost = 0.2, 5, 0
    for _ in range(1000):
        values = rng.normal(size=(count, 40))
        best = int(values.mean(axis=1).argmin())
        lost += not _may_be_best(values, best, error / count)[0]
    assert 0 < lost <= 1000 * error
    values[0] += 10
    assert not _may_be_best(values, best if best else 1, 1e-6)[0]


def test_a_destroyed_network_is_dropped_and_one_example_decides_nothing():
    values = np.array([[1.0, 2.0], [np.inf, np.inf], [np.nan, 1.0], [1.0, 2.0]])
    assert _may_be_best(values, 0, 0.01).tolist() == [True, False, False, True]
    assert _may_be_best(values[:, :1], 0, 0.01).all()


def test_a_race_without_runners_or_with_a_wrong_error_is_refused(evaluator):
    with pytest.raises(ValueError, match="A race needs an allocation"):
        race(evaluator, [])
    with pytest.raises(ValueError, match=r"error=0\.5"):
        race(evaluator, allocations(evaluator, 2, 0), error=0.5)
