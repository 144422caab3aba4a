import io
import json
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import constants

from jmpq.data import cifar10_builder
from jmpq.data.archives import download
from jmpq.data.cifar10 import cifar10
from jmpq.data.cifar10_builder import prepare_cifar10
from jmpq.data.load import load_dataset


def test_official_test_images_are_read_from_the_sheets(shared_data):
    data = cifar10(shared_data, verify=True)  # the parent folder
    split = data.heldout
    assert split.inputs.shape == (10_000, 32, 32, 3)
    assert np.bincount(split.labels).tolist() == [1000] * 10
    assert [data.classes[k] for k in split.labels[:3]] == ["cat", "ship", "ship"]
    labels = np.load(shared_data / "cifar10" / "labels.npz")["test"]
    np.testing.assert_array_equal(split.labels, labels)


def test_sheets_are_cut_row_by_row(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10_000, 4, 4, 3), dtype=np.uint8)
    images = images.repeat(8, 1).repeat(8, 2)
    sheet = np.concatenate(
        [np.concatenate(list(images[100 * r : 100 * r + 100]), axis=1) for r in range(100)]
    )
    Image.fromarray(sheet).save(tmp_path / "test.webp", lossless=True, method=0)
    labels = np.arange(10_000) % 10
    np.savez(tmp_path / "labels.npz", test=labels, train=labels[:0])
    split = cifar10(tmp_path).heldout
    np.testing.assert_array_equal(split.inputs, images)
    with pytest.raises(ValueError, match="images of test differ from the official ones"):
        _ = cifar10(tmp_path, verify=True).heldout


def small_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(6)[:, None],
        "x_test": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
        "y_test": np.arange(4),
    }
    arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    path.mkdir(exist_ok=True, parents=True)
    np.savez(path / "cifar10.npz", **arrays)
    return arrays


def test_plain_npz_of_the_same_name(tmp_path):
    arrays = small_npz(tmp_path / "cifar10")
    for folder in (tmp_path, tmp_path / "cifar10"):
        data = load_dataset("cifar10", folder)
        np.testing.assert_array_equal(data.train.inputs, arrays["x_train"])
        np.testing.assert_array_equal(data.train.labels, np.arange(6))
        np.testing.assert_array_equal(data.heldout.inputs, arrays["x_test"])


def test_missing_folder_and_empty_folder_say_how_to_get_the_data(tmp_path):
    for folder, says in ((tmp_path / "no", "no data folder"), (tmp_path, "No CIFAR-10 in")):
        with pytest.raises(FileNotFoundError, match=says) as error:
            cifar10(folder)
        assert "--data-dir" in str(error.value)
        assert "python -m jmpq.data.cifar10_builder" in str(error.value)
        assert "\n" not in str(error.value)


def test_missing_sheet_is_named(tmp_path):
    np.savez(tmp_path / "labels.npz", train=np.zeros(50_000, np.uint8))
    (tmp_path / "test.webp").touch()
    with pytest.raises(FileNotFoundError, match=r"train_1\.webp is missing"):
        _ = cifar10(tmp_path).train


def test_broken_sheets_are_named(tmp_path):
    np.savez(tmp_path / "labels.npz", test=np.zeros(10_000, np.uint8))
    (tmp_path / "test.webp").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"test\.webp is not a readable image"):
        _ = cifar10(tmp_path).heldout
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "test.webp")
    with pytest.raises(ValueError, match="has 64x32 pixels; expected a sheet of 3200x3200"):
        _ = cifar10(tmp_path).heldout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y_test": None}, "'y_test' is missing"),
        ({"x_test": np.zeros((4, 32, 32, 3))}, r"are float64 \(4, 32, 32, 3\); expected uint8"),
        ({"y_test": np.arange(3)}, "expected 4 labels"),
        ({"y_test": np.array([0, 1, 2, 10])}, "values 0 to 10"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, changes, says):
    small_npz(tmp_path, **changes)
    with pytest.raises(ValueError, match=says):
        _ = cifar10(tmp_path).heldout


def test_broken_archive_is_named(tmp_path):
    (tmp_path / "cifar10.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match=r"cifar10\.npz is not a readable npz archive"):
        _ = cifar10(tmp_path).heldout


def tiny_archive(path, *, payload=None, folder="cifar-10-batches-py"):
    """The original archive's format with 8 images a batch."""
    rng = np.random.default_rng(1)
    images, labels = {}, {}
    with tarfile.open(path, "w:gz") as tar:
        for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
            images[name] = rng.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
            labels[name] = rng.integers(0, 10, 8).tolist()
            batch = {b"data": images[name].reshape(8, -1), b"labels": labels[name]}
            data = pickle.dumps(batch if payload is None else payload, protocol=2)
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return images, labels


def test_archive_prepared_for_tfds_reads_back_equal_in_the_official_order(tmp_path):
    images, labels = tiny_archive(tmp_path / "cifar-10-python.tar.gz")
    folder = prepare_cifar10(
        tmp_path / "cifar-10-python.tar.gz", tmp_path / "data", verify=False
    )
    assert folder == tmp_path / "data" / "cifar10" / "3.0.2"
    data = cifar10(tmp_path / "data")
    train = np.concatenate([images[f"data_batch_{k}"] for k in range(1, 6)])
    np.testing.assert_array_equal(data.train.inputs, train.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(
        data.heldout.inputs, images["test_batch"].transpose(0, 2, 3, 1)
    )
    np.testing.assert_array_equal(data.heldout.labels, labels["test_batch"])
    # the name resolves through tensorflow-datasets itself, and needs no TensorFlow
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"s = tfds.data_source('cifar10', split='test', data_dir={str(tmp_path / 'data')!r},"
        " download=False)\n"
        "r = {x['id'].decode(): int(x['label']) for x in s}\n"
        "print([r[k] for k in sorted(r)], 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{labels['test_batch']} False"


def test_archive_with_other_checksums_is_refused_and_leaves_nothing(tmp_path):
    tiny_archive(tmp_path / "a.tar.gz")
    with pytest.raises(ValueError, match=r"data_batch_1.* is not the official file"):
        prepare_cifar10(tmp_path / "a.tar.gz", tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="No CIFAR-10"):
        cifar10(tmp_path / "data")


@pytest.mark.parametrize(
    "change", [{"folder": "other"}, {"payload": subprocess.run}, {"payload": {b"data": b""}}]
)
def test_other_archives_are_refused_and_nothing_in_them_runs(tmp_path, change):
    tiny_archive(tmp_path / "a.tar.gz", **change)
    with pytest.raises(ValueError, match="not the CIFAR-10 archive in its Python version"):
        list(cifar10_builder.read_archive(tmp_path / "a.tar.gz", ("test_batch",), md5=None))


def test_failed_download_says_what_to_do_instead():
    class Offline(tfds.download.DownloadManager):
        def __init__(self):
            pass

        def download(self, url):
            raise ConnectionError("no route")

    with pytest.raises(OSError, match=r"Cannot download https.*ConnectionError.*--archive"):
        download(Offline(), cifar10_builder.URL)


def test_unprepared_data_folder_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"not prepared in .*cifar10_builder"):
        load_dataset("cifar10")


def test_other_file_formats_are_refused(tmp_path):
    tiny_archive(tmp_path / "a.tar.gz")
    folder = prepare_cifar10(tmp_path / "a.tar.gz", tmp_path / "data", verify=False)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="Prepare it again as array_record"):
        _ = cifar10(tmp_path / "data").heldout


def test_command_line_of_the_builder(tmp_path, monkeypatch, capsys):
    tiny_archive(tmp_path / "a.tar.gz")
    arguments = ["x", "--archive", str(tmp_path / "none.tar.gz"), "--data-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert cifar10_builder.main() == 1
    assert "error: There is no archive" in capsys.readouterr().err
    monkeypatch.setattr(cifar10_builder, "MD5", None)
    arguments[2] = str(tmp_path / "a.tar.gz")
    assert cifar10_builder.main() == 0
    assert "CIFAR-10 is in" in capsys.readouterr().out
