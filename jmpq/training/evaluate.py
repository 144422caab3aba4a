"""Loss and accuracy of any parameters on any split, by one compiled forward pass."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.special
from jaxtyping import Array, Float, PyTree, Shaped

from jmpq.data.batches import CHECK_LOGITS, batches
from jmpq.data.dataset import Split
from jmpq.data.positions import IGNORED
from jmpq.training.labels import check_labels

# apply(params, inputs) -> logits
Apply = Callable[[PyTree, PyTree], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over the examples with their standard errors.

    Attributes:
        examples: Number of examples.
        loss: Mean cross entropy, nats per example.
        loss_sem: Standard error of `loss` over examples; NaN of a single example.
        top1: Fraction of examples (of their positions) whose largest logit is the label's.
        top1_sem: Standard error of `top1`; NaN of a single example.
    """

    examples: int
    loss: float
    loss_sem: float
    top1: float
    top1_sem: float

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def evaluate(apply: Apply, params: PyTree, split: Split, *, batch_size: int = 500) -> Scores:
    """Mean loss and accuracy of ``apply(params, ·)`` on a split.

    Args:
        apply: Pure function of parameters and inputs; compiled once per function and batch
            size, so pass the same function object again for other parameters.
        params: Any pytree of arrays.
        split: The examples; the last batch is padded and the padding left out of the means.
        batch_size: Examples per forward pass.

    Raises:
        ValueError: If logits are not finite, or not one row per example.
    """
    labels = split.labels[np.arange(len(split))]
    return evaluate_logits(logits(apply, params, split, batch_size=batch_size), labels)


def logits(
    apply: Apply, params: PyTree, split: Split, *, batch_size: int = 500
) -> Float[np.ndarray, "examples *positions classes"]:
    """Logits of every example of a split, in its order, on the host.

    Raises:
        ValueError: If `apply` does not return one row of logits per example.
    """
    size = min(batch_size, len(split))
    rows = []
    for batch in batches(split, size):
        out = np.asarray(_forward(apply, params, batch.inputs))
        if out.ndim < 2 or len(out) != size:
            raise ValueError(
                f"`apply` returned shape {out.shape} for {size} inputs; expected one row of "
                "logits per input, classes last."
            )
        rows.append(out[batch.weights > 0])
    return np.concatenate(rows)


@functools.partial(jax.jit, static_argnums=0)
def _forward(apply: Apply, params: PyTree, inputs: PyTree) -> Array:
    return apply(params, inputs)


def evaluate_logits(
    logits: Float[np.ndarray, "examples *positions classes"],
    labels: Shaped[np.ndarray, "..."],
) -> Scores:
    """Mean loss and accuracy from logits; float64 on the host.

    An example with several positions counts by the mean over its positions
    (`jmpq.training.losses`).

    Raises:
        ValueError: If a logit is not finite or labels do not fit (`check_labels`).
    """
    wide = np.asarray(logits, np.float64)
    if bad := int(np.sum(~np.isfinite(wide).reshape(len(wide), -1).all(1))):
        raise ValueError(
            f"The logits of {bad} of {len(wide)} examples are NaN or infinite. {CHECK_LOGITS}"
        )
    labels = check_labels(labels, wide.shape, "the examples")
    own = np.take_along_axis(wide, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    losses = _examples(np.asarray(scipy.special.logsumexp(wide, axis=-1)) - own, labels)
    right = hits(wide, labels)
    return Scores(
        examples=len(wide),
        loss=float(losses.mean()),
        loss_sem=standard_error(losses),
        top1=float(right.mean()),
        top1_sem=standard_error(right),
    )


def hits(
    logits: Float[np.ndarray, "examples *positions classes"],
    labels: Shaped[np.ndarray, "examples *positions"],
) -> Float[np.ndarray, " examples"]:
    """Share of every example's positions whose largest logit is the label's."""
    return _examples(logits.argmax(-1) == labels, labels)


def _examples(
    values: Shaped[np.ndarray, "examples *positions"],
    labels: Shaped[np.ndarray, "examples *positions"],
) -> Float[np.ndarray, " examples"]:
    """Means over the positions that count."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    if labels.ndim == 1:
        return values[:, 0]
    return np.average(values, axis=1, weights=labels.reshape(values.shape) != IGNORED)


def standard_error(values: Float[np.ndarray, " examples"]) -> float:
    """Standard error of the mean; NaN of a single value."""
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(len(values)))
