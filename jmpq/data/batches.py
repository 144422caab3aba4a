"""Batches for the network: normalised inputs, in a fixed order."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped

from jmpq.data.dataset import Split
from jmpq.data.images import EncodedImages
from jmpq.data.stream import Stream

LastBatch = Literal["pad", "keep", "drop"]
# What to do about logits that are not finite: the end of messages.
CHECK_LOGITS = (
    "Check the weights, the normalisation of the inputs, and that tokens are below the size of "
    "the vocabulary."
)


class Batch(NamedTuple):
    """Arrays on the host; a pytree."""

    inputs: PyTree[Shaped[np.ndarray, "batch ..."]]  # normalised: float32 images, or tokens
    labels: Shaped[np.ndarray, "batch ..."]  # int32 classes, or float32
    weights: Float[np.ndarray, " batch"]  # float32: 1, or 0 where the example is padding


def batches(split: Split, batch_size: int, *, last: LastBatch = "pad") -> Stream[Batch]:
    """The examples of a split in their order, `batch_size` at a time.

    Args:
        split: The examples.
        batch_size: Examples per batch.
        last: Treatment of a last batch with fewer examples. ``"pad"`` repeats the split's
            first example with weight 0 up to `batch_size`, so that one compilation serves all
            batches: means must use `Batch.weights`. ``"keep"`` leaves it smaller. ``"drop"``
            leaves it out.

    Returns:
        A sequence whose batches are normalised when they are asked for, and not kept. Encoded
        images are decoded then too, those of the next batch while one is in use.

    Raises:
        ValueError: If `batch_size` is not positive, `last` is unknown, or dropping leaves
            nothing.
    """
    if last not in ("pad", "keep", "drop"):
        raise ValueError(f"last={last!r}: choose 'pad', 'keep' or 'drop'.")

    def make(index: int) -> Batch:
        start = index * batch_size
        positions = np.arange(start, min(start + batch_size, len(split)))
        weights = np.ones(len(positions), np.float32)
        if last == "pad":
            missing = batch_size - len(positions)
            positions = np.pad(positions, (0, missing))
            weights = np.pad(weights, (0, missing))
        return make_batch(split, positions, weights)

    sizes = [batch_size] * count_batches(split, batch_size, last=last)
    if last == "keep":
        sizes[-1] = len(split) - batch_size * (len(sizes) - 1)
    return Stream(tuple(sizes), make, ahead=isinstance(split.inputs, EncodedImages))


def make_batch(
    split: Split,
    positions: Int[np.ndarray, " batch"],
    weights: Float[np.ndarray, " batch"] | None = None,
) -> Batch:
    """One batch of the examples at `positions`, of weight 1 if nothing else is said."""
    if weights is None:
        weights = np.ones(len(positions), np.float32)
    inputs = split.normalization(jax.tree.map(lambda x: x[positions], split.inputs))
    labels = split.labels[positions]
    check_finite((inputs, labels), f"the {split.source} split of {split.dataset}")
    dtype = np.float32 if labels.dtype.kind == "f" else np.int32
    return Batch(inputs, labels.astype(dtype), weights)


def check_pairs(batches: Any) -> None:
    """Refuse what is not a sequence of (inputs, labels), batch by batch.

    A list is looked at, a sequence that makes its batches is believed.

    Raises:
        ValueError: If so.
    """
    shape = getattr(batches, "shape", None)
    listed = batches if isinstance(batches, list | tuple) else ()
    wrong = [b for b in listed if not (isinstance(b, list | tuple) and len(b) == 2)]
    if wrong or shape is not None:
        got = "an array" if shape is not None else f"a {type(batches).__name__}"
        inside = f" with {type(wrong[0]).__name__} in it" if wrong else ""
        raise ValueError(
            f"The batches are {got}{inside}: pass a list of (inputs, labels), one pair a "
            "batch, as [(inputs, labels)]."
        )


def check_finite(examples: PyTree, where: str) -> None:
    """Refuse examples that are NaN or infinite.

    Compiled code may drop a NaN on its way (on a CPU, a convolution with ReLU does), so that
    losses and outcomes look well.

    Args:
        examples: Inputs and labels of a batch; whole numbers are not looked at.
        where: Name of the examples, for the message.

    Raises:
        ValueError: If a value is not finite.
    """
    for leaf in jax.tree.leaves(examples):
        array = np.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 is, NumPy does not know
            continue
        if bad := int(np.sum(~np.isfinite(array.astype(np.promote_types(array.dtype, "f4"))))):
            raise ValueError(
                f"{bad} of {array.size} values in a batch of {where} are NaN or infinite. "
                "Check the data and how they are normalised."
            )


def count_batches(split: Split, batch_size: int, *, last: LastBatch = "pad") -> int:
    """Number of batches that `batches` makes.

    Raises:
        ValueError: If `batch_size` is not positive, or dropping leaves nothing.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give at least 1.")
    full, rest = divmod(len(split), batch_size)
    if last == "drop" and not full:
        raise ValueError(
            f"batch_size={batch_size} with last='drop' leaves no batch of {len(split)} "
            "examples. Use a smaller batch or last='pad'."
        )
    return full + bool(rest and last != "drop")
