"""Importance and landscape: what the experiments count and measure, on digits."""

import json

import jax
import numpy as np
import pytest

from experiments.perturbation import importance, landscape


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.slow
def test_importance_runs_on_digits_and_goes_on(tmp_path, monkeypatch):
    result = importance.run(importance.SMOKE, tmp_path, None)
    monkeypatch.setattr(importance, "tables", None)  # nothing is measured twice
    again = importance.run(importance.SMOKE, tmp_path, None)
    assert json.loads(json.dumps(result["cells"], allow_nan=False)) == again["cells"]
    (layers,) = result["layers"].values()
    for cell in result["cells"]:
        damage = np.array(cell["losses"]["measured_kl"])
        assert damage.shape == (2, len(layers))
        assert (damage >= 0).all()
        assert damage[0].sum() > damage[1].sum()  # 2 bits, then 8


@pytest.mark.slow
def test_landscape_runs_on_digits_and_counts_every_weight(tmp_path):
    result = landscape.run(landscape.SMOKE, tmp_path, None)
    json.dumps(result, allow_nan=False)
    for row in result["histograms"]:
        assert sum(row["counts"]) + row["beyond"] == row["weights"]
        assert sum(row["codes"].values()) == row["weights"]
        assert len(row["codes"]) <= 2 ** row["bits"]
        assert row["zero"] == row["codes"]["0"] / row["weights"]
    plane = result["plane"]
    first, second = plane["eigenvalues"]
    assert first > second > 0
    middle = len(plane["steps"]) // 2
    surface = np.array(plane["loss"]["32"])
    assert surface[middle, 0] > surface[middle, middle] < surface[middle, -1]
    assert plane["loss"]["2"][middle][middle] > surface[middle, middle]
