import io
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from jmpq.data import imagenet_builder
from jmpq.data.imagenet import imagenet_sample, prepared_imagenet
from jmpq.data.imagenet_builder import prepare_images
from jmpq.data.load import load_dataset
from jmpq.zoo.architectures import PREPROCESSINGS, Preprocessing

RULE = Preprocessing(
    resize=10, crop=8, scale=255.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), origin="tests"
)
# Index of the ten classes of Imagenette among the 1,000.
IMAGENETTE = {"n01440764": 0, "n02102040": 217, "n03888257": 701}
TARS = {
    "imagenette": [
        f"imagenette2/{part}/{wnid}/{wnid}_{k}.JPEG"
        for part, count in (("train", 2), ("val", 1))
        for wnid in IMAGENETTE
        for k in range(count)
    ],
    "imagenet_v2": [
        f"imagenetv2-matched-frequency-format-val/{label}/{k}.jpeg"
        for label in (0, 7, 999)
        for k in range(2)
    ],
}


def jpeg(value):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (value, value, value)).save(buffer, format="jpeg", quality=95)
    return buffer.getvalue()


def archive(path, files):
    """An archive in the data set's own format; the grey of an image is its place in it."""
    with tarfile.open(path, "w:gz") as tar:
        for i, name in enumerate(files):
            member = tarfile.TarInfo(name)
            member.size = len(data := jpeg(10 * i))
            tar.addfile(member, io.BytesIO(data))
    return path


def greys(split):
    pixels = split.inputs[np.arange(len(split))]
    assert pixels.shape == (len(split), 8, 8, 3)
    return (pixels[:, 0, 0, 0] / 10).round().astype(int).tolist()


def test_imagenette_prepared_from_its_archive_reads_back_without_tensorflow(tmp_path):
    files = TARS["imagenette"]
    place = prepare_images("imagenette", archive(tmp_path / "a.tgz", files), tmp_path / "data")
    assert place == tmp_path / "data" / "imagenette" / "full-size-v2" / "1.0.0"
    data = load_dataset("imagenette", tmp_path / "data", RULE)
    assert len(data.classes) == 1000
    expected = {i: IMAGENETTE[name.split("/")[2]] for i, name in enumerate(files)}
    for split, images in ((data.train, range(6)), (data.heldout, range(6, 9))):
        found = dict(
            zip(greys(split), split.labels[np.arange(len(split))].tolist(), strict=True)
        )
        assert found == {i: expected[i] for i in images}
    assert data.train.take(np.array([1, 4])).labels.shape == (2,)
    assert "tensorflow" not in sys.modules


def test_imagenet_v2_is_a_held_out_set_alone(tmp_path):
    made = archive(tmp_path / "a.tar.gz", TARS["imagenet_v2"])
    prepare_images("imagenet_v2", made, tmp_path)
    data = load_dataset("imagenet_v2", tmp_path, RULE)
    found = dict(zip(greys(data.heldout), data.heldout.labels.tolist(), strict=True))
    assert found == {0: 0, 1: 0, 2: 7, 3: 7, 4: 999, 5: 999}
    with pytest.raises(FileNotFoundError, match="has no train images, only heldout"):
        _ = data.train


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("imagenet2012", r"ILSVRC2012_img_val\.tar.*image-net\.org.*tfds build imagenet2012"),
        ("imagenette", r"python -m jmpq\.data\.imagenet_builder imagenette"),
        ("imagenet_v2", r"python -m jmpq\.data\.imagenet_builder imagenet_v2"),
    ],
)
def test_what_is_not_prepared_says_how_to_prepare_it(tmp_path, name, says):
    with pytest.raises(FileNotFoundError, match=f"not prepared in .*{says}"):
        prepared_imagenet(name, tmp_path, RULE)


def test_other_archives_are_refused(tmp_path, monkeypatch, capsys):
    other = archive(tmp_path / "a.tgz", ["images/cat/1.jpg"])
    with pytest.raises(ValueError, match=r"no images in imagenette2/train/CLASS/"):
        prepare_images("imagenette", other, tmp_path / "data")
    (tmp_path / "b.tgz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not a readable tar archive"):
        list(imagenet_builder.read_tar(tmp_path / "b.tgz", "x"))
    monkeypatch.setattr(sys, "argv", ["x", "imagenette", "--archive", str(tmp_path / "none")])
    assert imagenet_builder.main() == 1
    assert "error: There is no archive" in capsys.readouterr().err


def test_sample_has_an_image_of_every_class(shared_data):
    data = imagenet_sample(shared_data, PREPROCESSINGS["torchvision"])
    assert data.heldout.labels.tolist() == list(range(1000))
    assert data.classes[:2] == ("tench", "goldfish")
    assert "training set" in data.heldout.record()["note"]
    images = data.heldout.inputs
    assert images.shape == (1000, 224, 224, 3)
    first = images[np.array([3])]
    with Image.open(io.BytesIO(images.read(3))) as image:  # neither resized nor cropped
        np.testing.assert_array_equal(first[0], np.asarray(image))


def test_missing_sample_and_larger_images_are_refused(tmp_path, shared_data):
    with pytest.raises(FileNotFoundError, match=r"No images224\.zip in .*--data-dir"):
        imagenet_sample(tmp_path, RULE)
    large = Preprocessing(
        resize=331, crop=331, scale=1.0, mean=RULE.mean, std=RULE.std, origin=""
    )
    with pytest.raises(ValueError, match="the network wants 331"):
        imagenet_sample(shared_data, large)
