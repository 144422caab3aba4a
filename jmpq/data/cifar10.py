"""CIFAR-10: from a local folder, or prepared by tensorflow-datasets (read without TensorFlow).

All ways give the same arrays in the official order.
"""

import hashlib
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from jmpq.data.dataset import Dataset, Normalization, Source, Split, whole_split

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Of ImageNet, as the published ResNet weights were trained with.
NORMALIZATION = Normalization(
    scale=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
SHEETS: dict[Source, tuple[str, ...]] = {
    "train": ("train_1", "train_2", "train_3", "train_4", "train_5"),
    "heldout": ("test",),
}
TFDS_VERSION = "3.0.2"
# Of the decoded (10000, 32, 32, 3) uint8 arrays of the official batches.
SHA256 = {
    "test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "train_1": "fc115a3de050d667b88cbd5b0b9612ebf996c54230fe7758f3a14bb5af9a1c27",
    "train_2": "89e609b642f687bc796fa3bfa4211005582a0e8131d463d996d11ddb297d312e",
    "train_3": "93a365823e61729490a8801d80864ccd0ab1e8c98f19d71af65644d1c5f1486e",
    "train_4": "809eb95ecd057a36516318f5023ea619009dd70dd38193db9da43125a928e6fa",
    "train_5": "d05b7d66d216d6df882cc760cdc0ff2f1f0437abf699ed16005c021ef0add9cb",
}

Images = UInt8[np.ndarray, "examples 32 32 3"]
Labels = Int[np.ndarray, " examples"]
Reader = Callable[[Source], tuple[np.ndarray, np.ndarray]]


def cifar10(data_dir: pathlib.Path | str | None = None, *, verify: bool = False) -> Dataset:
    """CIFAR-10: 50,000 examples to train on, the official 10,000 test images held out.

    Args:
        data_dir: A folder (or the one that has it as ``cifar10/``) with one of: lossless WebP
            sheets ``test.webp``, ``train_1.webp`` ... of 100 x 100 images and ``labels.npz``;
            an archive ``cifar10.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test``;
            ``3.0.2/`` as prepared by tensorflow-datasets. None: the data folder of
            tensorflow-datasets.
        verify: Compare images with the hashes of the official ones when they are read.

    Raises:
        FileNotFoundError: If the data are not there (the message says how to get them).
        ValueError: If a file is not what it should be (raised when a split is read).
    """
    if data_dir is None:
        reader = _prepared_reader(None)
    else:
        reader = _local_reader(pathlib.Path(data_dir))

    def read(source: Source) -> Split:
        images, labels = reader(source)
        _check(images, labels, source)
        if verify:
            _verify(images, source)
        return whole_split("cifar10", source, images, labels, NORMALIZATION)

    return Dataset(name="cifar10", classes=CLASSES, read=read)


def _local_reader(data_dir: pathlib.Path) -> Reader:
    if not data_dir.is_dir():
        raise FileNotFoundError(f"There is no data folder {data_dir}. {_HOW_TO_GET}")
    for folder in (data_dir, data_dir / "cifar10"):
        if (folder / "labels.npz").is_file() and (folder / "test.webp").is_file():
            return lambda source, folder=folder: _read_sheets(folder, source)
        if (folder / "cifar10.npz").is_file():
            return lambda source, folder=folder: _read_npz(folder / "cifar10.npz", source)
        if (folder / TFDS_VERSION).is_dir():
            return _prepared_reader(folder.parent)
    raise FileNotFoundError(
        f"No CIFAR-10 in {data_dir} or {data_dir / 'cifar10'}. {_HOW_TO_GET}"
    )


def _read_sheets(folder: pathlib.Path, source: Source) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image, UnidentifiedImageError

    labels = _arrays(folder / "labels.npz", ("train" if source == "train" else "test",))
    sheets = []
    for name in SHEETS[source]:
        path = folder / f"{name}.webp"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing. {_HOW_TO_GET}")
        try:
            with Image.open(path) as image:
                sheet = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} is not a readable image: {error}.") from error
        if sheet.shape != (3200, 3200, 3):
            raise ValueError(
                f"{path} has {sheet.shape[1]}x{sheet.shape[0]} pixels; expected a sheet of "
                "3200x3200: 100 rows of 100 images."
            )
        tiles = sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4)
        sheets.append(tiles.reshape(-1, 32, 32, 3))
    return np.concatenate(sheets), labels[0]


def _read_npz(path: pathlib.Path, source: Source) -> tuple[np.ndarray, np.ndarray]:
    suffix = "train" if source == "train" else "test"
    images, labels = _arrays(path, (f"x_{suffix}", f"y_{suffix}"))
    return images, labels.reshape(-1)


def _arrays(path: pathlib.Path, names: tuple[str, ...]) -> list[np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a readable npz archive. {_HOW_TO_GET}")
    with np.load(path) as file:
        if missing := [name for name in names if name not in file]:
            raise ValueError(
                f"{path} has the arrays {', '.join(sorted(file))}; {missing[0]!r} is missing."
            )
        return [file[name] for name in names]


def _prepared_reader(data_dir: pathlib.Path | None) -> Reader:
    """Reader of the array_record files of tensorflow-datasets, in the official order."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    place = pathlib.Path(data_dir or constants.DATA_DIR).expanduser()
    folder = place / "cifar10" / TFDS_VERSION
    if not (folder / "dataset_info.json").is_file():
        raise FileNotFoundError(f"CIFAR-10 is not prepared in {place}. {_HOW_TO_GET}")

    def read(source: Source) -> tuple[np.ndarray, np.ndarray]:
        name = "train" if source == "train" else "test"
        try:
            records: Any = tfds.data_source(
                "cifar10", split=name, data_dir=place, download=False
            )
        except (NotImplementedError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{folder} cannot be read without TensorFlow ({reason}). Prepare it again as "
                "array_record. " + _HOW_TO_GET
            ) from error
        examples = sorted(
            ((r["id"], r["image"], r["label"]) for r in records), key=lambda e: e[0]
        )  # ids as b"test_00012": the records are stored shuffled
        return np.stack([e[1] for e in examples]), np.asarray([e[2] for e in examples])

    return read


def _check(images: np.ndarray, labels: np.ndarray, source: Source) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise ValueError(
            f"CIFAR-10 {source} images are {images.dtype} {images.shape}; expected uint8 "
            "(examples, 32, 32, 3)."
        )
    if (
        labels.shape != images.shape[:1]
        or labels.min(initial=0) < 0
        or labels.max(initial=0) > 9
    ):
        raise ValueError(
            f"CIFAR-10 {source} labels have shape {labels.shape} and values "
            f"{labels.min(initial=0)} to {labels.max(initial=0)}; expected {len(images)} "
            "labels of 0 to 9."
        )


def _verify(images: np.ndarray, source: Source) -> None:
    for number, name in enumerate(SHEETS[source]):
        part = np.ascontiguousarray(images[10_000 * number : 10_000 * (number + 1)])
        if hashlib.sha256(part.data).hexdigest() != SHA256[name]:
            raise ValueError(
                f"CIFAR-10 images of {name} differ from the official ones in their order. Get "
                "the data again, or read them with verify=False."
            )


_HOW_TO_GET = (
    "Give a folder with the data (--data-dir), or download and prepare CIFAR-10 with: "
    "python -m jmpq.data.cifar10_builder"
)
