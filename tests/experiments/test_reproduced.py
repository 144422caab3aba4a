"""Today's integers give the losses of a result that was committed before other formats."""

import json

import jax
import numpy as np
import pytest

from experiments.resnet20_cifar10 import RESULTS
from jmpq import run
from jmpq.formats import Choice
from jmpq.sensitivity.table import load_sensitivities


@pytest.mark.slow
def test_integers_of_kernels_and_inputs_reproduce_a_committed_result(tmp_path, shared_data):
    """Squared errors of kernels and inputs, which quantizers alone decide.

    They are equal digit by digit on the processor that made the result; on another one sums
    of float32 may differ in the last digit.
    """
    result = json.loads((RESULTS / "resnet20_cifar10.json").read_text())
    config, committed = result["config"], result["runs"]["heldout"]
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        layers = run.Layers(
            model=config["model"],
            weights=shared_data / config["weights"],
            data=config["data"],
            data_dir=shared_data,
        )
        run.layers(tmp_path, layers)
        options = run.Sensitivity(
            metrics=("squared_error",),
            w_bits=(2, 4),
            a_bits=(8,),
            calibration_from="heldout",
            examples=config["examples"],
            batch_size=config["batch_size"],
            seed=config["seed"],
        )
        run.sensitivity(tmp_path, options)
    found = load_sensitivities(tmp_path / "sensitivity.npz")["squared_error"]
    assert (
        found.provenance["calibration"]["sha256"]
        == (committed["splits"]["calibration"]["sha256"])
    )
    columns = [committed["choices"].index(choice.label) for choice in found.choices]
    assert found.choices == (Choice(2, 8), Choice(4, 8))
    want = np.array(committed["sensitivities"]["squared_error"]["losses"])[:, columns]
    np.testing.assert_allclose(found.losses, want, rtol=1e-6)
