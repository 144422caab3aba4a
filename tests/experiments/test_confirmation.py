"""The confirmation of the default on other networks."""

import json

import jax
import numpy as np
import pytest

from experiments import confirmation
from experiments.figures.confirmation import confirmation_table, verdict
from jmpq.study.statistics import holm

pytestmark = pytest.mark.slow  # the steps that it takes are tested each by itself


@pytest.fixture(scope="module", autouse=True)
def _as_users_have_it():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("confirmation")
    return confirmation.run(confirmation.SMOKE, folder, None, folder / "result.json"), folder


def test_rivals_stand_beside_the_default_at_equal_size(result):
    found, folder = result
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(found))
    rows = found["parts"]["digits_resnet/W"]["rows"]
    methods = [row["method"] for row in rows]
    names = [confirmation.DEFAULT, "squared_error/exact", "uniform", "reversed", "random"]
    assert methods == names
    default, *rivals = rows
    assert "kl_difference" not in default
    for row in rivals:
        assert max(row["size_bytes"]) <= max(rows[2]["size_bytes"])  # of uniform bits
        difference = row["kl_difference"]
        np.testing.assert_allclose(
            difference["mean"], row["kl"]["mean"] - default["kl"]["mean"]
        )
        np.testing.assert_allclose(np.mean(row["kl_draws"]), row["kl"]["mean"])
        assert difference["low"] <= difference["mean"] <= difference["high"]
    p_values = np.array([row["top1_difference"]["p"] for row in rivals])
    np.testing.assert_allclose([r["top1_difference"]["p_holm"] for r in rivals], holm(p_values))


def test_a_second_run_computes_nothing(result):
    found, folder = result
    again = confirmation.run(confirmation.SMOKE, folder, None, folder / "result.json")
    assert (
        again["parts"]["digits_resnet/W"]["rows"] == found["parts"]["digits_resnet/W"]["rows"]
    )


def test_a_mark_says_what_the_corrected_test_says(result):
    row = {"kl_difference": {"mean": -0.1, "p_holm": 0.01}}
    assert verdict(row, "kl") == "better"
    assert verdict({"top1_difference": row["kl_difference"]}, "top1") == "worse"
    assert verdict({"kl_difference": {"mean": -0.1, "p_holm": 0.05}}, "kl") == "level"
    table = confirmation_table(result[0], "kl")
    assert "| a small residual network, nearest, size of 4 bits |" in table
    assert "Gauss–Newton, default" in table
