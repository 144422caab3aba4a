import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import vit_cifar
from experiments.common.arguments import RESULTS
from jmpq.data.load import load_dataset
from jmpq.training.evaluate import evaluate
from jmpq.zoo.architectures import build_module
from jmpq.zoo.tensor_files import load_variables, weights_sha256
from jmpq.zoo.weights import load_weights


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
    assert build_module("vit_cifar").config == vit_cifar.Config().network
    with pytest.raises(ValueError, match=r"label_smoothing=1\.0: expected at least 0"):
        dataclasses.replace(vit_cifar.Config().training, label_smoothing=1.0)


def test_the_committed_weights_are_those_of_the_committed_result():
    record = json.loads((RESULTS / "vit_cifar.json").read_text())
    path = RESULTS / "vit_cifar.safetensors"
    variables, header = load_variables(path, architecture="vit_cifar")
    assert weights_sha256(variables) == record["weights_sha256"]
    assert header["metadata"]["heldout_top1"] == record["test"]["top1"]
    config = json.loads(json.dumps(dataclasses.asdict(vit_cifar.Config())))
    assert record["config"] == config
    assert path.stat().st_size < 4e6


def test_the_committed_weights_have_their_accuracy(shared_data):
    """On 512 test images, within three standard errors of that on all."""
    record = json.loads((RESULTS / "vit_cifar.json").read_text())["test"]
    module = build_module("vit_cifar")
    variables = load_weights(
        RESULTS / "vit_cifar.safetensors", module, architecture="vit_cifar"
    )
    images = load_dataset("cifar10", shared_data / "cifar10").heldout.take(np.arange(512))
    found = evaluate(module.apply, variables, images)
    assert abs(found.top1 - record["top1"]) < 3 * np.sqrt(0.75 * 0.25 / 512)
    assert found.top1_sem > 0.01
