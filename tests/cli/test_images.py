"""The steps on a folder of images of any size."""

import io
import json
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from jmpq.run import RunFolder
from jmpq.zoo.architectures import build_module
from jmpq.zoo.tensor_files import save_variables
from jmpq.zoo.weights_torchvision import abstract_variables
from tests.cli.command import jmpq, opened, works

PHOTOS = ("--model", "tests.cli.networks:photos", "--data", "image_folder")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of two classes, in an archive."""
    path = tmp_path_factory.mktemp("photos") / "photos.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(12):
            buffer = io.BytesIO()
            pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, format="png")
            archive.writestr(f"{('cat', 'dog')[i % 2]}/{i}.png", buffer.getvalue())
    return path


def test_steps_run_on_an_archive_of_images(photos, tmp_path):
    run = tmp_path / "run"
    place = (*PHOTOS, "--data-dir", photos, "--preprocessing", "tensorflow")
    works("layers", run, *place)
    bits = ("--w-bits", 4, 8, "--a-bits", 32, "--examples", 5, "--batch-size", 4)
    works("sensitivity", run, *bits, "--metrics", "empirical_fisher")
    few = ("--comparison", "full", "--random", 1, "--joint", 1, "--sweep", 1)
    works("solve", run, *few, "--first-last-bits", 0)
    works("evaluate", run, "--batch-size", 4)
    evaluation = json.loads((run / "evaluation.json").read_text())
    splits = evaluation["splits"]
    assert {name: split["examples"] for name, split in splits.items()} == {
        "calibration": 5,
        "evaluation": 7,
    }
    uniform = evaluation["measured"]["uniform/W8"]["evaluation"]
    assert uniform["kl"] < evaluation["measured"]["uniform/W4"]["evaluation"]["kl"]


def test_preprocessing_must_be_said_and_known(photos, tmp_path):
    place = (*PHOTOS, "--data-dir", photos)
    assert "--preprocessing" in jmpq("layers", tmp_path, *place).err
    result = jmpq("layers", tmp_path, *place, "--preprocessing", "caffe")
    assert "no preprocessing 'caffe'; choose one of torchvision, tensorflow" in result.err
    result = jmpq("layers", tmp_path, "--model", "resnet18", "--data", "digits")
    assert "their own preprocessing; the network expects 224 by 224 pixels" in result.err


def test_folding_changes_the_weights_and_is_kept_for_later_steps(tmp_path):
    module, rng = build_module("digits_resnet"), np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: rng.uniform(0.5, 1.0, s.shape).astype(np.float32),
        abstract_variables(module, (8, 8, 1)),
    )
    weights = tmp_path / "weights.safetensors"
    save_variables(weights, variables, architecture="digits_resnet")
    digits = ("--model", "digits_resnet", "--data", "digits")
    works("layers", tmp_path, *digits)
    before = RunFolder(tmp_path)
    assert before.layers.network.fold is False
    plain, _ = opened(tmp_path)
    works("layers", tmp_path, *digits, "--fold-batch-norm")
    after = RunFolder(tmp_path)
    folded, _ = opened(tmp_path)
    assert after.layers.network.fold is True
    assert after.layers.weights_sha256 != before.layers.weights_sha256
    assert folded.layers == plain.layers
    scales = folded.params["bn1"]["scale"]
    np.testing.assert_array_equal(scales, np.ones_like(scales))
    result = jmpq("layers", tmp_path, *PHOTOS[:2], "--data", "digits", "--fold-batch-norm")
    assert "makes its own network" in result.err
