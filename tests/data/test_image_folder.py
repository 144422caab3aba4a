import io
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from jmpq.data.batches import batches
from jmpq.data.image_folder import image_folder, parse_classes
from jmpq.data.images import EncodedImages, resized_crop
from jmpq.data.load import load_dataset
from jmpq.data.splits import calibration_split
from jmpq.data.stream import Stream
from jmpq.zoo.architectures import PREPROCESSINGS, Preprocessing

RULE = Preprocessing(
    resize=10, crop=8, scale=255.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), origin="tests"
)
FILES = (
    "train/cat/1.png",
    "train/dog/2.png",
    "val/cat/3.png",
    "val/cat/4.png",
    "val/dog/5.png",
)


def png(value, size=(20, 10)):
    """An image of one grey, wider than high."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, format="png")
    return buffer.getvalue()


def write(place, files, **more):
    """The same files as a folder or as an archive."""
    contents = {name: png(10 * i) for i, name in enumerate(files)} | more
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
    else:
        for name, data in contents.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
    return place


@pytest.mark.parametrize("place", ["images", "images.zip"])
def test_folders_of_classes_in_two_parts(tmp_path, place):
    data = load_dataset("image_folder", write(tmp_path / place, FILES), RULE)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1]
    assert data.heldout.labels.tolist() == [0, 0, 1]
    assert data.heldout.inputs.shape == (3, 8, 8, 3)
    first, last = batches(data.heldout, 2)
    assert first.inputs.dtype == np.float32
    np.testing.assert_allclose(first.inputs[1], 30 / 127.5 - 1, rtol=1e-5)
    assert last.weights.tolist() == [1, 0]


def test_numbered_files_without_parts_are_all_held_out(tmp_path):
    files = ("0002_a.jpg", "0000_b.jpg", "0000_c.jpg")
    path = write(tmp_path / "numbered.zip", files, **{"classes.txt": b"0\tcat\n"})
    with pytest.raises(ValueError, match=r"is of class 2, which classes\.txt does not list"):
        _ = image_folder(path, RULE).heldout
    data = image_folder(write(tmp_path / "plain", files), RULE)
    assert data.heldout.labels.tolist() == [0, 0, 2]  # in the order of names
    assert data.classes == ("0", "1", "2")
    with pytest.raises(FileNotFoundError, match="no train images: expected a folder train in"):
        _ = data.train


def test_names_of_cameras_are_no_classes(tmp_path):
    path = write(tmp_path / "camera", ("20240101_120000.jpg", "20240102_120000.jpg"))
    with pytest.raises(ValueError, match="of class 20240102: the number and '_' before a name"):
        image_folder(path, RULE)


def test_listed_classes_number_a_part_of_them(tmp_path):
    listed = "0\tn01\ttench\n1\tn02\tgoldfish\n2\tn03\tshark\n"
    path = write(tmp_path / "some.zip", ("n03/1.png", "n01/2.png"))
    (tmp_path / "classes.txt").write_text(listed)
    data = image_folder(path, RULE)
    assert data.classes == ("tench", "goldfish", "shark")
    assert data.heldout.labels.tolist() == [0, 2]
    write(tmp_path / "more", ("n04/1.png",), **{"classes.txt": listed.encode()})
    with pytest.raises(ValueError, match=r"'n04', which classes\.txt does not list"):
        _ = image_folder(tmp_path / "more", RULE).heldout


@pytest.mark.parametrize("text", ["0 a\n1 b\n", "1\ta\n", "0\ta\n0\tb\n"])
def test_wrong_lists_of_classes_are_refused(text):
    with pytest.raises(ValueError, match=r"the classes 0, 1, .* in order"):
        parse_classes(text, "classes.txt")


def test_missing_empty_and_unclassified_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a zip archive"):
        image_folder(tmp_path / "none", RULE)
    with pytest.raises(ValueError, match="no image in"):
        image_folder(tmp_path, RULE)
    with pytest.raises(ValueError, match=r"'portrait\.png' has no class"):
        image_folder(write(tmp_path / "a", ("portrait.png", "cat/1.png")), RULE)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"no image", r"is not an image of a known format\. Replace it"),
        (b"", r"is not an image of a known format"),
        (png(3)[:45], r"is not a readable image: \w.*\. Replace it, or move it away"),
    ],
)
def test_unreadable_images_are_named_by_their_file(tmp_path, data, match):
    path = write(tmp_path / "b", (), **{"cat/broken.png": data})
    with pytest.raises(ValueError, match=rf"b/cat/broken\.png {match}") as raised:
        _ = image_folder(path, RULE).heldout.inputs[np.array([0])]
    assert "BytesIO" not in str(raised.value)


def test_data_sets_of_images_need_a_preprocessing_and_others_have_their_own(tmp_path):
    with pytest.raises(ValueError, match="the network expects, with --preprocessing unit") as e:
        load_dataset("image_folder", tmp_path)
    assert all(f"{name} (" in str(e.value) for name in PREPROCESSINGS)
    with pytest.raises(ValueError, match=r"their own .* network expects 8 by 8 pixels"):
        load_dataset("digits", None, RULE)
    with pytest.raises(ValueError, match="give --data-dir"):
        load_dataset("image_folder", None, RULE)


def test_resize_keeps_the_ratio_and_the_crop_is_the_middle():
    ramp = np.repeat(np.arange(40, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2)
    got = resized_crop(Image.fromarray(ramp), RULE)
    assert got.shape == (8, 8, 3)  # of 20 by 10 pixels, the columns 6 to 13
    np.testing.assert_allclose(got[0, :, 0], 2 * np.arange(6, 14) + 0.5, atol=0.51)
    np.testing.assert_array_equal(got, np.broadcast_to(got[:1], got.shape))


def test_images_are_decoded_when_a_batch_asks_and_not_before(tmp_path):
    asked = []

    def read(i):
        asked.append(i)
        return png(i)

    data = image_folder(write(tmp_path / "i.zip", [f"c/{i:02d}.png" for i in range(9)]), RULE)
    lazy = EncodedImages(read=read, name=str, indices=np.arange(9), preprocessing=RULE)
    object.__setattr__(data.heldout, "inputs", lazy)
    calibration, evaluation = calibration_split(data, examples=4, seed=1)
    assert not asked
    assert sorted([*calibration.indices, *evaluation.indices]) == list(range(9))
    stream = batches(calibration, 2)
    asked.clear()  # the type checker of the tests looks into sequences
    batch = stream[1]
    assert sorted(asked) == calibration.indices[2:].tolist()
    np.testing.assert_allclose(
        batch.inputs[:, 0, 0, 0], calibration.indices[2:] / 127.5 - 1, rtol=1e-5
    )


def test_hash_is_of_the_stored_bytes_the_labels_and_the_crop(tmp_path):
    split = image_folder(write(tmp_path / "a.zip", FILES), RULE).heldout
    again = image_folder(write(tmp_path / "again", FILES), RULE).heldout
    assert split.sha256 == again.sha256
    changed = write(tmp_path / "b", FILES, **{"val/dog/5.png": png(1)})
    larger = Preprocessing(
        resize=12, crop=8, scale=255.0, mean=RULE.mean, std=RULE.std, origin=""
    )
    others = [
        image_folder(changed, RULE).heldout,
        image_folder(tmp_path / "again", larger).heldout,
        split.take(np.array([1, 0, 2])),
    ]
    assert len({s.sha256 for s in (split, *others)}) == 4


def test_notes_go_into_what_is_recorded(tmp_path):
    data = image_folder(write(tmp_path / "a", FILES), RULE, note="of the training set")
    assert data.train.record()["note"] == "of the training set"


def test_a_loop_makes_the_next_batch_beside_and_no_more():
    made, go = [], [threading.Event() for _ in range(5)]

    def make(i):
        made.append(i)
        go[i].set()
        return i

    stream = Stream((1,) * 5, make, ahead=1).map(lambda i: 10 * i)
    seen = []
    for item in stream:
        following = len(seen) + 1
        if following < 5:
            assert go[following].wait(5)  # made while this one is in use
        assert len(made) <= following + 1
        seen.append(item)
    assert seen == [0, 10, 20, 30, 40]
    assert made == [0, 1, 2, 3, 4]


def test_an_error_beside_the_loop_is_raised_in_it():
    def make(i):
        if i == 2:
            raise ValueError("broken")
        return i

    seen = []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(Stream((1,) * 4, make, ahead=2))
    assert seen == [0, 1]


def test_a_rule_fits_other_sizes_and_grey():
    grey = PREPROCESSINGS["unit"].fitted(5, 1)
    assert (grey.resize, grey.crop, grey.mean, grey.std) == (5, 5, (0.0,), (1.0,))
    coloured = PREPROCESSINGS["torchvision"].fitted(112, 3)
    assert (coloured.resize, coloured.crop) == (128, 112)
    assert PREPROCESSINGS["tensorflow"].fitted(224, 3) == PREPROCESSINGS["tensorflow"]
    with pytest.raises(ValueError, match=r"mean for each of 3 colours.*one of unit, tensorfl"):
        PREPROCESSINGS["torchvision"].fitted(8, 1)


def test_grey_images_are_the_luma_of_theirs(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(buffer, format="png")
    path = write(tmp_path / "i", (), **{"cat/1.png": buffer.getvalue(), "dog/.2.png": b"no"})
    data = image_folder(path, PREPROCESSINGS["unit"].fitted(4, 1))
    assert data.classes == ("cat",)
    (batch,) = batches(data.heldout, 1)
    assert batch.inputs.shape == (1, 4, 4, 1)
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50  # ITU-R 601
    np.testing.assert_allclose(batch.inputs * 255, luma, atol=1)


def test_pixels_of_sixteen_bits_are_refused(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(buffer, format="png")
    path = write(tmp_path / "i", (), **{"cat/1.png": buffer.getvalue()})
    with pytest.raises(ValueError, match=r"cat/1\.png .*expected 8 bits a channel"):
        _ = image_folder(path, RULE).heldout.inputs[np.array([0])]


def test_folders_that_are_numbers_in_another_order_are_refused(tmp_path):
    files = [f"{i}/1.png" for i in range(11)]
    with pytest.raises(ValueError, match=r"by name '10' comes before '2'.*classes\.txt"):
        image_folder(write(tmp_path / "a", files), RULE)
    ten = image_folder(write(tmp_path / "b", files[:10]), RULE)
    assert ten.guessed
    assert ten.heldout.labels.tolist() == list(range(10))


def test_images_in_parts_and_beside_them_are_refused(tmp_path):
    files = ("train/cat/1.png", "other/cat/2.png")
    match = r"'train/cat/1\.png' lies in the part 'train' and 'other/cat/2\.png' in none"
    with pytest.raises(ValueError, match=match):
        image_folder(write(tmp_path / "a", files), RULE)
    trains = image_folder(write(tmp_path / "b", ("train/1.png", "car/2.png")), RULE)
    assert trains.classes == ("car", "train")
