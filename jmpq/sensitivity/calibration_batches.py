"""Calibration batches: their sizes, and labels that fit the output of the network."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jmpq.data.batches import check_pairs
from jmpq.data.stream import Stream
from jmpq.network.network import Network
from jmpq.training.labels import check_labels
from jmpq.training.losses import ExampleLoss, check_loss, cross_entropy

Batches = Sequence[tuple[PyTree, Any]]  # (inputs, labels) of every batch


def batch_sizes(batches: Sequence[tuple[Any, ...]]) -> list[int]:
    """Examples in each batch, its targets last: `sizes`, or by loading one after another."""
    known = getattr(batches, "sizes", None)
    return [int(n) for n in known] if known else [len(t) for *_, t in batches]


def checked_batches(batches: Batches, network: Network, loss: ExampleLoss | None) -> Batches:
    """The same batches with labels as arrays; they are refused where they do not fit.

    A list is looked at at once, a sequence that makes its batches when they are asked for
    then.

    Args:
        batches: The batches.
        network: The network.
        loss: Loss of one example, which must take them; where it is cross-entropy, labels
            must be classes. None where labels are not looked at.

    Raises:
        ValueError: If they are no pairs, the network does not take the inputs, or labels do
            not fit (`jmpq.training.labels.check_labels`), or the loss is none of one example
            (`jmpq.training.losses.check_loss`).
    """
    shapes: dict[Any, tuple[int, ...]] = {}  # of an example's output, by those of the inputs

    def checked(batch: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        inputs, labels = batch
        leaves = jax.tree.leaves(inputs)
        key = tuple(np.shape(x)[1:] for x in leaves)
        where = "the calibration examples"
        new = key not in shapes
        if new:
            shapes[key] = network.output_shape(inputs, where)
        output = (len(leaves[0]), *shapes[key])
        labels = check_labels(labels, output, where, classes=loss is cross_entropy)
        if new and loss is not None:
            dtype = network.tap.jaxpr.outvars[0].aval.dtype
            check_loss(loss, jax.ShapeDtypeStruct(output[1:], dtype), labels[0])
        return inputs, labels

    check_pairs(batches)
    if isinstance(batches, list | tuple):
        return [checked(batch) for batch in batches]
    sizes, ahead = tuple(batch_sizes(batches)), getattr(batches, "ahead", 0)
    return Stream(sizes, lambda i: checked(batches[i]), ahead)
