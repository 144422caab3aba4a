"""Data sets by name, for the command line."""

import pathlib
from typing import Literal, get_args

from jmpq.data.cifar10 import cifar10
from jmpq.data.dataset import Dataset
from jmpq.data.digits import digits
from jmpq.data.image_folder import image_folder
from jmpq.data.imagenet import PREPARED, imagenet_sample, prepared_imagenet
from jmpq.models.architectures import Preprocessing

DatasetName = Literal[
    "digits",
    "cifar10",
    "imagenet2012",
    "imagenet_v2",
    "imagenette",
    "imagenet_sample",
    "image_folder",
]


def load_dataset(
    name: str,
    data_dir: pathlib.Path | str | None = None,
    preprocessing: Preprocessing | None = None,
) -> Dataset:
    """The data set of a name.

    Args:
        name: ``"digits"`` (embedded), ``"cifar10"``, one of `jmpq.data.imagenet`, or
            ``"image_folder"``.
        data_dir: Local data folder, see `cifar10`, `imagenet_sample`, `prepared_imagenet` and
            `image_folder`; digits need none and ignore it.
        preprocessing: What the network expects of images; digits and CIFAR-10 have their own.

    Raises:
        ValueError: If there is no data set of that name, or preprocessing is missing, or given
            for one that has its own.
        FileNotFoundError: If its data are not there.
    """
    if name not in get_args(DatasetName):
        names = ", ".join(get_args(DatasetName))
        raise ValueError(f"There is no data set {name!r}; choose one of {names}.")
    if name in ("digits", "cifar10"):
        if preprocessing is not None:
            raise ValueError(
                f"Data set {name!r} has small images with their own preprocessing; the network "
                f"expects {preprocessing.crop} by {preprocessing.crop} pixels ("
                f"{preprocessing.origin}). Choose another data set or network."
            )
        return digits() if name == "digits" else cifar10(data_dir)
    if preprocessing is None:
        raise ValueError(
            f"Data set {name!r} has images of any size: say what the network expects, with "
            "--preprocessing."
        )
    if name in PREPARED:
        return prepared_imagenet(name, data_dir, preprocessing)
    if name == "imagenet_sample":
        return imagenet_sample(data_dir, preprocessing)
    if data_dir is None:
        raise ValueError("image_folder needs the folder or zip archive: give --data-dir.")
    return image_folder(data_dir, preprocessing)
