"""The steps on a folder of images of any size."""

import io
import json
import shutil
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from jmpq.data.batches import batches
from jmpq.data.load import load_dataset
from jmpq.run import RunFolder
from jmpq.zoo.architectures import build_module
from jmpq.zoo.tensor_files import save_variables
from jmpq.zoo.weights_torchvision import abstract_variables
from tests.cli.command import jmpq, opened, works
from tests.cli.test_errors import refuses

PHOTOS = ("--model", "tests.cli.networks:photos", "--data", "image_folder")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of two classes of ten, in an archive."""
    path = tmp_path_factory.mktemp("photos") / "photos.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(12):
            buffer = io.BytesIO()
            pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, format="png")
            archive.writestr(f"{('cat', 'dog')[i % 2]}/{i}.png", buffer.getvalue())
        names = ("cat", "dog", *"abcdefgh")
        archive.writestr("classes.txt", "".join(f"{i}\t{n}\n" for i, n in enumerate(names)))
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


@pytest.fixture
def grey(tmp_path):
    """Images of the digits 3 and 7, by class folder."""
    digits = load_dataset("digits").heldout
    for i in np.flatnonzero(np.isin(digits.labels, (3, 7)))[:40]:
        path = tmp_path / "grey" / str(digits.labels[i]) / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.inputs[i, ..., 0] * 15).save(path)
    return tmp_path / "grey"


def test_a_grey_network_of_eight_pixels_takes_a_folder_of_its_own(grey, tmp_path):
    """Two of ten classes: by name they would be 0 and 1, which nobody is left to find out."""
    run = tmp_path / "run"
    place = ("--data", "image_folder", "--data-dir", grey, "--preprocessing", "unit")
    tiny = ("--model", "tests.cli.networks:tiny", *place)
    match = (
        r"network has 10 classes, data set 'image_folder' has 2 class folders, by name 3 = 0, "
        r"7 = 1\. Write classes\.txt there, a line for each of the network's classes"
    )
    refuses(tmp_path, ("layers", run, *tiny), match)
    listed = "".join(f"{i}\t{i}\tdigit {i}\n" for i in range(10))
    (grey / "classes.txt").write_text(listed)
    assert "numbered by name" not in works("layers", run, *tiny).out
    network, data = opened(run)
    assert sorted(set(data.heldout.labels)) == [3, 7]
    (batch,) = batches(data.heldout, 40)
    assert batch.inputs.shape == (40, 8, 8, 1)
    assert 0 <= batch.inputs.min() < 0.1 < 0.8 < batch.inputs.max() <= 1
    spec = RunFolder(run).layers.network
    assert (spec.image_size, spec.image_channels) == (8, 1)
    assert network.logits(batch.inputs).shape == (40, 10)
    match = "takes 1 channel, .*mean for each of 3 colours .*Choose one of unit, tensorflow"
    refuses(tmp_path, ("layers", tmp_path / "b", *tiny[:-1], "torchvision"), match)


def test_folders_in_the_number_of_the_classes_are_numbered_by_name_and_told(grey, tmp_path):
    for i in set(range(10)) - {3, 7}:
        shutil.copytree(grey / "3", grey / str(i))
    place = ("--data", "image_folder", "--data-dir", grey, "--preprocessing", "unit")
    said = works("layers", tmp_path / "run", "--model", "tests.cli.networks:tiny", *place)
    assert "Classes are numbered by name of folder: 0 = 0, 1 = 1, 2 = 2" in said.out


def test_a_network_without_square_images_is_told_to_bring_arrays(grey, tmp_path):
    place = ("--data", "image_folder", "--data-dir", grey, "--preprocessing", "unit")
    match = r"inputs of shape \(8, 8, 10\) for one example.*--data package\.module:function"
    args = ("layers", tmp_path / "run", "--model", "tests.cli.networks:ten_channels", *place)
    refuses(tmp_path, args, match)


def test_preprocessing_must_be_said_and_known(photos, tmp_path):
    place = (*PHOTOS, "--data-dir", photos)
    assert "--preprocessing" in jmpq("layers", tmp_path, *place).err
    result = jmpq("layers", tmp_path, *place, "--preprocessing", "caffe")
    assert "no preprocessing 'caffe'; choose one of unit, torchvision, tensorflow" in result.err
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
