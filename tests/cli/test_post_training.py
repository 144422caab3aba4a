"""Rounding and corrections on the command line: every step sees the same kernels."""

import json

import jax
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.data.batches import batches
from jmpq.data.splits import calibration_split
from jmpq.deploy.measure import Evaluator
from jmpq.quantizers.scales import Quantizers
from jmpq.run import RunFolder, network_of
from jmpq.sensitivity.table import load_arrays, load_sensitivities
from tests.cli.command import FEW, SMALL, TINY, works


@pytest.fixture(scope="module")
def rounded_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "rounded"
    works("layers", run, *TINY)
    rounding = ("--weights.rounding", "gptq")
    works("sensitivity", run, *FEW, *rounding, "--metrics", "squared_error")
    works("solve", run, *SMALL)
    some = ("--roles", "solution", "--calibration-roles", "single")
    works("evaluate", run, *some, "--examples", 60, "--correct", "batch_norm")
    return run


def test_sensitivities_see_the_rounding_and_store_it(rounded_run, tiny_run):
    arrays = load_arrays(rounded_run / "sensitivity.npz")
    found = Quantizers.from_arrays(arrays)
    assert found.weights.spec.rounding == "gptq"
    assert [str(codes.dtype) for codes in found.weights.codes] == ["int8"] * 3
    table = load_sensitivities(rounded_run / "sensitivity.npz")["squared_error"]
    nearest = load_sensitivities(tiny_run / "sensitivity.npz")["squared_error"]
    w2 = [c.label for c in table.choices].index("W2A8")
    assert (table.losses[:, w2] > nearest.losses[:, w2]).all()  # codes are not the nearest


def test_evaluation_measures_the_stored_codes_corrected(rounded_run):
    evaluation = json.loads((rounded_run / "evaluation.json").read_text())
    plan = json.loads((rounded_run / "plan.json").read_text())
    assert (evaluation["correct"], evaluation["correct_examples"]) == ("batch_norm", 40)
    with jax.enable_x64(False):
        network, dataset = network_of(RunFolder(rounded_run))
        quantizers = Quantizers.from_arrays(load_arrays(rounded_run / "sensitivity.npz"))
        calibration, rest = calibration_split(dataset, "heldout", examples=40, seed=0)
        evaluation_examples = rest.take(np.arange(60))
        (batch,) = batches(calibration, 40)
        evaluator = Evaluator(
            network,
            quantizers,
            lambda: batches(evaluation_examples, 60),
            correct="batch_norm",
            examples=batch.inputs,
        )
        rows = [a for a in plan["allocations"] if a["role"] == "solution"]
        outcomes = evaluator([Allocation.from_json(row["allocation"]) for row in rows])
    for row, outcome in zip(rows, outcomes, strict=True):
        found = evaluation["measured"][row["name"]]["evaluation"]
        assert found["kl"] == pytest.approx(outcome.kl, rel=1e-4)
        assert found["top5"] == outcome.top5
