"""Predictions for other images: the committed scores, and the experiment on digits."""

import json

import jax
import numpy as np
import pytest
from scipy import stats

from experiments import prediction
from experiments.claims.claim import load


def test_committed_scores_follow_from_committed_predictions():
    for each in load("prediction_resnet20")["sets"].values():
        measured = each["measured"]["evaluation"]
        for how, values in each["predicted"].items():
            rho = stats.spearmanr(values, measured)[0]
            assert each["rho"]["evaluation"][how][0] == pytest.approx(rho, rel=1e-12)
            ratios = np.array(values) / np.array(measured)
            assert each["scale"][how][1] == pytest.approx(np.median(ratios), rel=1e-12)
        low, high = each["rho_gain"][1:]
        assert low <= each["rho_gain"][0] <= high


@pytest.mark.slow
def test_the_experiment_runs_on_digits_and_goes_on(tmp_path):
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        one = prediction.run(prediction.SMOKE, tmp_path, None)
        sizes = {p.name: p.stat().st_size for p in tmp_path.glob("*.journal")}
        two = prediction.run(prediction.SMOKE, tmp_path, None)
    assert {p.name: p.stat().st_size for p in tmp_path.glob("*.journal")} == sizes
    json.dumps(one, allow_nan=False)
    for name, each in one["sets"].items():
        assert each["measured"] == two["sets"][name]["measured"]
        assert len(each["predicted"]["transferred"]) == 6
