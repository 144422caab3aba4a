"""How well the float network does on examples, and whether that is better than guessing.

Wrong labels and wrongly scaled inputs leave no other trace: every later step would compare the
quantized network with a float network that answers nonsense.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jmpq.data.batches import Batch
from jmpq.data.dataset import Split
from jmpq.data.positions import IGNORED
from jmpq.training.evaluate import hits
from jmpq.training.labels import check_unnormalised
from jmpq.training.losses import ExampleLoss, cross_entropy, has_classes

DOUBT = "labels or the scale of the inputs are probably wrong"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloatQuality:
    """Means over the examples, and the range of the inputs.

    Attributes:
        examples: Number of examples.
        loss: Mean loss, nats per example.
        top1: Share of examples (of their positions) whose largest logit is the label's; None
            where labels are no classes.
        low: Least input; None of tokens.
        high: Greatest input; None of tokens.
    """

    examples: int
    loss: float
    top1: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        top1 = "" if self.top1 is None else f"top-1 {100 * self.top1:.2f} %, "
        given = "" if self.low is None else f"; inputs from {self.low:.3g} to {self.high:.3g}"
        return f"{top1}loss {self.loss:.4g} nats on {self.examples} calibration examples{given}"


def float_quality(
    logits: Callable[[PyTree], Array], batches: Iterable[Batch], loss: ExampleLoss
) -> FloatQuality:
    """Loss and top-1 of the float network, one batch at a time.

    Args:
        logits: Output of the network for the inputs of a batch.
        batches: The examples; padding does not count.
        loss: Loss of one example.

    Raises:
        ValueError: If the outputs are no logits but probabilities.
    """
    losses_of = jax.jit(jax.vmap(loss))
    losses: list[np.ndarray] = []
    right: list[np.ndarray] = []
    ranges: list[tuple[float, float]] = []
    for batch in batches:
        counts = batch.weights > 0
        z = logits(batch.inputs)
        if loss is cross_entropy:
            check_unnormalised(np.asarray(z)[counts], "the calibration examples")
        losses.append(np.asarray(losses_of(z, batch.labels), np.float64)[counts])
        if batch.labels.dtype.kind in "iu" and batch.labels.shape == z.shape[:-1]:
            if has_classes(z.shape[1:]):
                right.append(hits(np.asarray(z), batch.labels)[counts])
        floats = [x for x in jax.tree.leaves(batch.inputs) if x.dtype.kind == "f"]
        ranges += [(float(x.min()), float(x.max())) for x in floats]
    every = np.concatenate(losses)
    return FloatQuality(
        examples=len(every),
        loss=float(every.mean()),
        top1=float(np.concatenate(right).mean()) if right else None,
        low=min(low for low, _ in ranges) if ranges else None,
        high=max(high for _, high in ranges) if ranges else None,
    )


def chance(split: Split) -> dict[str, float]:
    """Share of a split's most frequent class, which guessing reaches; empty for regressions.

    Of labels by position, the share of all that count.
    """
    labels = split.labels[np.arange(len(split))]
    if labels.dtype.kind not in "iu":
        return {}
    counts = np.unique(labels[labels != IGNORED], return_counts=True)[1]
    return {"chance": float(counts.max() / counts.sum())}


def guessing(
    loss: float, top1: float | None, split: Split, *, measured: ExampleLoss, classes: int
) -> str:
    """A warning where a float network answers no better than by guessing; else empty.

    Args:
        loss: Mean loss of the float network, nats per example.
        top1: Top-1 of the float network, 0 to 1; None where there is none.
        split: The examples that both are of.
        measured: The loss of one example.
        classes: Outputs of the network.
    """
    known: dict[str, Any] = chance(split)
    if top1 is not None and known and top1 <= known["chance"]:
        return (
            f"Warning: float top-1 {100 * top1:.2f} % on the {split.source} split of "
            f"{split.dataset} (its most frequent class: {100 * known['chance']:.2f} %) is "
            f"no better than guessing: {DOUBT}."
        )
    if measured is cross_entropy and loss >= np.log(classes):
        return (
            f"Warning: float loss {loss:.4g} nats on the {split.source} split of "
            f"{split.dataset} is not below that of equal probabilities, ln {classes} = "
            f"{np.log(classes):.4g}: {DOUBT}."
        )
    return ""
