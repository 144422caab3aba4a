"""Data sets by name, for the command line."""

import pathlib
from typing import Literal, get_args

from jmpq.data.cifar10 import cifar10
from jmpq.data.dataset import Dataset
from jmpq.data.digits import digits

DatasetName = Literal["digits", "cifar10"]


def load_dataset(name: str, data_dir: pathlib.Path | str | None = None) -> Dataset:
    """The data set of a name.

    Args:
        name: ``"digits"`` (embedded) or ``"cifar10"``.
        data_dir: Local data folder, see `cifar10`; digits need none and ignore it.

    Raises:
        ValueError: If there is no data set of that name.
        FileNotFoundError: If its data are not there.
    """
    if name == "digits":
        return digits()
    if name == "cifar10":
        return cifar10(data_dir)
    names = ", ".join(get_args(DatasetName))
    raise ValueError(f"There is no data set {name!r}; choose one of {names}.")
