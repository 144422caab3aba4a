import dataclasses
import json

import jax
import pytest

from experiments import vit_cifar
from jmpq.zoo.tensor_files import load_variables


@pytest.mark.slow
def test_vit_cifar_runs_on_a_small_configuration_and_resumes(tmp_path):
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = vit_cifar.run(vit_cifar.SMOKE, tmp_path, None)
        again = vit_cifar.run(vit_cifar.SMOKE, tmp_path, None)
    assert again["weights_sha256"] == result["weights_sha256"]
    assert json.loads(json.dumps(result, allow_nan=False))["test"]["top1_sem"] > 0
    _, header = load_variables(tmp_path / "vit_cifar.safetensors", architecture="vit_cifar")
    assert header["metadata"]["heldout_top1"] == result["test"]["top1"]


def test_the_recipe_is_that_of_the_built_in_network():
    from jmpq.zoo.architectures import build_module

    assert build_module("vit_cifar").config == vit_cifar.Config().network
    with pytest.raises(ValueError, match=r"label_smoothing=1\.0: expected at least 0"):
        dataclasses.replace(vit_cifar.Config().training, label_smoothing=1.0)
