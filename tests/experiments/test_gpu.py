"""The script of the accelerator runs on a CPU as it is, on a small configuration."""

import json
import math

import jax
import pytest

from experiments import gpu


@pytest.mark.parametrize("parts", [("tests", "sensitivities", "evaluation")])
def test_the_script_of_the_accelerator_runs_on_a_cpu(parts, tmp_path):
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = gpu.run(gpu.SMOKE, parts, tmp_path)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert result["device"]["platform"] == "cpu"
    assert result["network"]["moves"] == result["network"]["layers"] * 2
    for found in result["sensitivities"].values():
        assert found["finite"]
        assert 0 < found["seconds"] <= found["first_s"]
    per_s = result["evaluation"]["images_per_s"]
    assert math.isclose(per_s * result["evaluation"]["seconds"], 8 * 2)


def test_failing_device_tests_are_reported_and_not_hidden():
    found = gpu._tests(("tests/there_is_no_such_file.py",))
    assert not found["passed"]
    assert found["summary"]
