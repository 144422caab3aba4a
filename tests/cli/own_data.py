"""Data that the command line imports as ``tests.cli.own_data:NAME``."""

import numpy as np

from jmpq.data.dataset import Dataset
from jmpq.data.digits import digits

SHIFT = 0.0  # of all inputs; tests change it


def halves(source="heldout"):
    """Digits from 0 to 1, as the network of a newcomer takes them, in the widest types."""
    split = getattr(digits(), source)
    return split.inputs / 16.0 + SHIFT, split.labels.astype(np.int64)


def arrays() -> Dataset:
    return Dataset.from_arrays(*halves(), train=halves("train"))


def heldout_only() -> Dataset:
    return Dataset.from_arrays(*halves())


def pair():
    return halves()


def broken() -> Dataset:
    raise KeyError("lost")


def fewer_labels() -> Dataset:
    inputs, labels = halves()
    return Dataset.from_arrays(inputs, labels[:-3])


def words() -> Dataset:
    inputs, labels = halves()
    return Dataset.from_arrays(inputs, labels.astype(str))


def flat() -> Dataset:
    inputs, labels = halves()
    return Dataset.from_arrays(inputs.reshape(-1, 64), labels)


def one_hot() -> Dataset:
    inputs, labels = halves()
    return Dataset.from_arrays(inputs, np.eye(10)[labels])


def from_one() -> Dataset:
    inputs, labels = halves()
    return Dataset.from_arrays(inputs, labels + 1, classes=tuple("0123456789"))


def counted_from_one() -> Dataset:
    inputs, labels = halves()
    return Dataset.from_arrays(inputs, labels + 1)


def undefined() -> Dataset:
    inputs, labels = halves()
    inputs[1:, 0, 0] = np.nan  # the first example is looked at before any work
    return Dataset.from_arrays(inputs, labels)
