"""Any allocation measured without a plan, example by example, once."""

import dataclasses

import jax
import numpy as np
import pytest

from jmpq import run
from jmpq.allocation import Allocation
from jmpq.deploy.measure import Evaluator
from jmpq.formats import Choice
from jmpq.run.steps.measure import SCORES


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def test_scores_of_examples_have_the_means_of_an_evaluation_and_are_measured_once(
    tmp_path, monkeypatch
):
    run.layers(tmp_path, run.Layers(model="tests.cli.networks:tiny", data="digits"))
    run.sensitivity(tmp_path, run.Sensitivity(
        metrics=("squared_error",), w_bits=(2, 8), a_bits=(8,), examples=24, batch_size=16
    ))  # fmt: skip
    names = run.RunFolder(tmp_path).layers.names
    coarse, fine = (Allocation.uniform(names, Choice(b, 8)) for b in (2, 8))
    options = run.Evaluate(examples=50, batch_size=16)
    run.solve(
        tmp_path, run.Solve(budget=("size_bytes=W8A8",), first_last_bits=0, solvers=("greedy",))
    )
    evaluation = run.evaluate(tmp_path, dataclasses.replace(options, roles=("uniform",)))
    # The evaluation left means in the store; they have no examples and are measured again.
    found = run.measure(tmp_path, [coarse, fine, coarse], options)
    assert found.scores.shape == (3, len(SCORES), 50)
    np.testing.assert_array_equal(found.scores[0], found.scores[2])
    for outcome, scores, label in zip(
        found.outcomes, found.scores, ("W2A8", "W8A8"), strict=False
    ):
        want = evaluation.measured[f"uniform/{label}"]["evaluation"]
        assert outcome.to_json() == pytest.approx(want, rel=1e-6)
        for name, values in zip(SCORES, scores, strict=True):
            mean = found.float_outcome.loss if name == "float_loss" else getattr(outcome, name)
            assert values.mean() == pytest.approx(mean, rel=1e-5, abs=1e-7)
    assert len(set(found.indices.tolist())) == 50

    def not_again(self, allocations, **others):
        raise AssertionError(f"{len(allocations)} allocations are measured again")

    monkeypatch.setattr(Evaluator, "__call__", not_again)
    again = run.measure(tmp_path, [fine], options)
    np.testing.assert_array_equal(again.scores[0], found.scores[1])
    assert run.evaluate(tmp_path, options).measured  # and means are read from what has examples
