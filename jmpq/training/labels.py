"""Labels against the outputs of a network: the one check of both, where data enters."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from jmpq.data.batches import make_batch
from jmpq.data.dataset import Split
from jmpq.data.positions import IGNORED


def check_labels(
    labels: Any, output: tuple[int, ...], where: str, *, classes: bool = True
) -> Shaped[np.ndarray, "..."]:
    """The labels of some examples as an array, once they fit the network's output for these.

    Args:
        labels: One label an example, or one a position of an example. A list of whole numbers
            is converted.
        output: Shape of the output for these examples: examples first, classes last,
            positions between them.
        where: Name of the examples, for the message.
        classes: Whether cross-entropy is the loss: labels must then be classes from 0, or
            `IGNORED` at positions that do not count. Another loss may take targets of any
            type and shape, and only their number is looked at.

    Raises:
        ValueError: If number, shape, type or range are wrong; one sentence says which label is
            worst, how many classes both sides have, and what to do.
    """
    array = label_array(labels, where)
    if not array.size or array.shape[:1] != output[:1]:
        count = 0 if not array.size else len(array) if array.ndim else 1
        raise ValueError(
            f"There are {output[0]} inputs and {count} labels in {where}: give one label for "
            "every example, and at least one example."
        )
    if not classes:
        return array
    if len(output) < 2 or output[-1] < 2:
        raise ValueError(
            f"The network's output has shape {list(output)} for {where}, one number an "
            "example, and cross-entropy takes the logits of two classes or more: give a loss "
            "of your own, squared_error for a regression, or choose a network that classifies."
        )
    _check_shape(array, output, where)
    if array.dtype.kind not in "iu":
        _refuse_type(array, where)
    _check_range(array, output[-1], where)
    return array


def check_split(
    split: Split, logits: Callable[[PyTree], Array], *, classes: bool = True
) -> None:
    """`check_labels` of all examples of a split, before any work.

    Args:
        split: The examples.
        logits: The network's output for inputs of a batch; only its shape is asked for.
        classes: Whether cross-entropy is the loss.

    Raises:
        ValueError: See `check_labels`.
    """
    output = jax.eval_shape(logits, make_batch(split, np.arange(1)).inputs).shape
    check_labels(
        split.labels[np.arange(len(split))],
        (len(split), *output[1:]),
        f"the {split.source} split of {split.dataset}",
        classes=classes,
    )


def check_label(label: Any, logits: tuple[int, ...]) -> None:
    """Raise `ValueError` where a label cannot belong to the logits of one example.

    Shape and type alone: it is called while a program is traced, where values are not known.
    """
    shape, whole = np.shape(label), np.issubdtype(label.dtype, np.integer)
    if shape != logits[:-1] or not whole:
        raise ValueError(
            f"A label is {label.dtype}{list(shape)} and its logits have shape {list(logits)}: "
            f"cross-entropy takes classes last and whole numbers of shape {list(logits[:-1])}. "
            "Pass class numbers, or a loss of your own."
        )


WITHOUT_SOFTMAX = (
    "Cross-entropy takes logits: leave the softmax out of the network, or return the logarithm "
    "of its output."
)


def check_unnormalised(outputs: Any, where: str) -> None:
    """Refuse outputs that are class probabilities already, as cross-entropy takes logits.

    A network that ends in a softmax has hardly any loss, KL divergence or curvature left.

    Args:
        outputs: Outputs of some examples, classes last.
        where: Name of the examples, for the message.

    Raises:
        ValueError: If no output is negative and all sum to one over the classes.
    """
    array = np.asarray(outputs)
    if array.ndim < 2 or array.shape[-1] < 2 or not array.size or array.min() < 0:
        return
    if np.abs(array.sum(axis=-1, dtype=np.float64) - 1).max() < 1e-3:
        raise ValueError(
            f"The network's outputs for {where} are probabilities: none is negative, and over "
            f"the {array.shape[-1]} classes they sum to 1. {WITHOUT_SOFTMAX}"
        )


def label_array(labels: Any, where: str) -> np.ndarray:
    """The labels as an array of numbers.

    Raises:
        ValueError: If they are none.
    """
    try:
        array = np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The labels of {where} are {type(labels).__name__}s of different lengths or no "
            "numbers at all: give one whole number for every example."
        ) from error
    if array.dtype.kind not in "iufb" and not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"The labels of {where} are {type(labels).__name__} of {array.dtype}: give whole "
            "numbers, the position of each class in the network's output."
        )
    return array


def _check_shape(array: np.ndarray, output: tuple[int, ...], where: str) -> None:
    want = output[:-1]
    if array.shape == want:
        return
    advice = f"give one class number for each of {list(want)}"
    if array.shape[:-1] == want:
        ones = array.shape[-1] > 1 and np.all((array == 0) | (array == 1))
        if ones and np.all(array.sum(axis=-1) == 1):
            advice = (
                f"they are one-hot over {array.shape[-1]} classes, the network has "
                f"{output[-1]}: pass labels.argmax(-1)"
            )
        elif array.shape[-1] == 1:
            advice = "pass " + ("labels[:, 0]" if array.ndim == 2 else "labels[..., 0]")
        else:
            advice = (
                "cross-entropy takes class numbers, not probabilities or logits: pass "
                "labels.argmax(-1), or loss=kl_divergence for logits"
            )
    raise ValueError(
        f"The labels of {where} have shape {list(array.shape)}, expected {list(want)} for an "
        f"output of shape {list(output)}: {advice}."
    )


def _refuse_type(array: np.ndarray, where: str) -> None:
    if array.dtype.kind == "b":
        raise ValueError(
            f"The labels of {where} are truth values, expected whole numbers: pass "
            "labels.astype(int)."
        )
    wide = array.astype(np.float64)
    off = np.abs(wide - np.round(wide))
    off = np.where(np.isfinite(off), off, np.inf)
    if not off.max():
        raise ValueError(
            f"The labels of {where} are {array.dtype}, expected whole numbers: pass "
            "labels.astype(int)."
        )
    index = np.unravel_index(int(off.argmax()), off.shape)
    raise ValueError(
        f"Label {wide[index]:g} of {_place(index)} of {where} is not the number of a class: "
        "give whole numbers, or for a regression a loss of your own or squared_error."
    )


def _check_range(array: np.ndarray, classes: int, where: str) -> None:
    values = array.astype(np.int64)
    if values.ndim > 1:
        counts = values != IGNORED
        empty = ~counts.reshape(len(values), -1).any(axis=1)
        if empty.any():
            raise ValueError(
                f"All positions of example {int(empty.argmax())} of {where} have the label "
                f"{IGNORED}, which marks positions that do not count: leave the example out."
            )
    else:
        counts = np.ones_like(values, bool)
    excess = np.where(counts, np.maximum(values - (classes - 1), -values), 0)
    if excess.max() <= 0:
        return
    index = np.unravel_index(int(excess.argmax()), excess.shape)
    present = np.unique(values[counts])
    wrong = present[(present < 0) | (present >= classes)]
    worst, low, high = int(values[index]), int(present.min()), int(present.max())
    if low >= 1 and high == classes:
        advice = "subtract one, labels - 1"
    elif np.isin(wrong, (IGNORED, -100, 255)).all():
        advice = f"if {worst} marks examples without a class, leave these out"
        if values.ndim > 1:
            advice = (
                f"if {worst} marks positions that do not count, write {IGNORED} there, "
                f"np.where(labels == {worst}, {IGNORED}, labels)"
            )
    else:
        advice = "choose a network with as many classes as the data, or count classes from 0"
    raise ValueError(
        f"Label {worst} of {_place(index)} of {where} has no class: the network has {classes}, "
        f"0 to {classes - 1}, the labels have {len(present)}, {low} to {high}; {advice}."
    )


def _place(index: tuple[Any, ...]) -> str:
    first, *rest = (int(i) for i in index)
    position = f" at position {', '.join(map(str, rest))}" if rest else ""
    return f"example {first}{position}"
