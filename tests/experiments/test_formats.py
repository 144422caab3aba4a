"""The comparison of number formats: on a small configuration, and what its result says."""

import json

import jax
import numpy as np
import pytest

from experiments import formats
from experiments.decoder import kv_cache
from experiments.figures.kv_cache import kv_cache_table


@pytest.mark.slow
def test_formats_run_on_a_small_configuration_and_go_on(tmp_path):
    output = tmp_path / "formats.json"
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = formats.run(formats.SMOKE, tmp_path, None, output)
        again = formats.run(formats.SMOKE, tmp_path, None, output)
    assert json.loads(output.read_text()) == json.loads(json.dumps(again))
    assert again["cells"] == result["cells"]
    check(json.loads(output.read_text()), formats.SMOKE.budgets)


def check(result, budgets):
    """What holds of any result: optima nest, budgets hold, floats have four bits or more."""
    for cell in result["cells"].values():
        found = {
            (row["candidates"], row["effective_bits"], row["solver"]): row
            for row in cell["rows"]
        }
        for name in formats.SETS["all"]:
            assert found["all", None, f"uniform {name}"]["shares"] == {name: 1}
        for bits in budgets:
            rows = {name: found[name, bits, "exact"] for name in formats.SETS}
            losses = {
                name: np.inf if row["predicted_loss"] is None else row["predicted_loss"]
                for name, row in rows.items()
            }
            slack = 1e-6 * abs(losses["integers"])
            assert losses["all"] <= min(losses["integers"], losses["floats"]) + slack
            assert bits >= 4 or rows["floats"]["allocation"] is None
            for row in rows.values():
                if row["allocation"] is not None:
                    assert row["costs"]["average_bits"] <= bits * (1 + 1e-9)
                    assert sum(row["shares"].values()) == pytest.approx(1)


@pytest.mark.slow
def test_keys_and_values_run_on_a_small_configuration(tmp_path, shared_data):
    output = tmp_path / "kv_cache.json"
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        kv_cache.run(kv_cache.SMOKE, tmp_path, shared_data, output)
    result = json.loads(output.read_text())
    for row in result["cells"]["0"]["rows"]:
        if row["bits"] is not None:
            assert row["kv_bytes"] <= 40 * row["bits"]
    assert kv_cache_table(result).count("\n| ") == 1 + 2 + 1 + 4 + 2
