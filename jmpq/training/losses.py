"""Losses of one example in nats, as functions of the logits.

The output of an example may have positions before its classes, as the tokens of a text or the
pixels of a segmentation: ``[*positions, classes]``. The loss of an example is then the mean
over its positions, those with the label `IGNORED` left out. So every example counts alike,
however many of its positions count, and standard errors are those over examples. All are
computed in float32 or wider, whatever the type of the output.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jmpq.data.positions import check_target, counted
from jmpq.network.precision import widened
from jmpq.training.labels import check_label

# loss(output of one example, its target) -> nats; the output is often [classes]
ExampleLoss = Callable[[Float[Array, "*output"], Array], Float[Array, ""]]
# Increase of a loss, or KL(p_reference ‖ p_logits), which needs no target
Increase = Literal["loss", "kl"]


def cross_entropy(
    logits: Float[Array, "*positions classes"], label: Shaped[Array, "..."]
) -> Float[Array, ""]:
    """−log p_label of one example, nats; the mean over its positions where there are some.

    Raises:
        ValueError: If the label is not one whole number a position; while it is traced.
    """
    check_label(label, logits.shape)
    logits = widened(logits)
    if not label.ndim:
        return jax.nn.logsumexp(logits) - logits[label]
    own = jnp.take_along_axis(logits, jnp.maximum(label, 0)[..., None], axis=-1)
    return position_mean(jax.nn.logsumexp(logits, axis=-1) - own[..., 0], label)


def smoothed_cross_entropy(
    logits: Float[Array, "*positions classes"],
    label: Shaped[Array, "..."],
    *,
    smoothing: float,
) -> Float[Array, ""]:
    """Cross entropy to a label of which a share is spread evenly over all classes, nats.

    References:
        Szegedy et al. (2016), Rethinking the Inception Architecture, section 7.
    """
    spread = position_mean(-jax.nn.log_softmax(widened(logits)).mean(axis=-1), label)
    return (1 - smoothing) * cross_entropy(logits, label) + smoothing * spread


def kl_divergence(
    logits: Float[Array, "..."],
    reference: Float[Array, "..."],
    label: Shaped[Array, "..."] | None = None,
) -> Float[Array, ""]:
    """KL(p_reference ‖ p_logits) of one example, nats; zero where both answer alike.

    Where there are positions their mean: of those that count by `label`, or by the reference
    itself (`jmpq.data.positions.reference_logits`); of all where neither says so.

    Raises:
        ValueError: If there are not two classes or more; while it is traced.
    """
    if not has_classes(logits.shape):
        raise ValueError(
            "A KL divergence takes the logits of two classes or more; an example's output has "
            f"shape {list(logits.shape)}. Measure the increase of a loss instead."
        )
    log_p, log_q = (jax.nn.log_softmax(z) for z in map(widened, (reference, logits)))
    divergences = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return position_mean(divergences, reference if label is None else label)


def increase(
    kind: Increase,
    loss: ExampleLoss,
    logits: Float[Array, "*output"],
    reference: Float[Array, "*output"],
    target: Shaped[Array, "..."],
) -> Float[Array, ""]:
    """Increase of one example with `logits` in the place of `reference`, nats.

    A divergence is at least zero, rounding errors included: not to be differentiated. Of
    positions, those whose label says so do not count (`position_mean`).
    """
    if kind == "kl":
        return jnp.maximum(kl_divergence(logits, reference, target), 0)
    return loss(logits, target) - loss(reference, target)


def position_mean(
    values: Shaped[Array, "*positions"], target: Shaped[Array, "..."]
) -> Float[Array, ""]:
    """Mean over the positions of one example, of those that count by its target (`counted`)."""
    counts = counted(target, values.shape)
    if counts is None:
        return values.mean()
    number = jnp.maximum(counts.sum(), 1).astype(values.dtype)
    return jnp.where(counts, values, 0).sum() / number


def has_classes(output: tuple[int, ...]) -> bool:
    """Whether an example's output of this shape can be class probabilities."""
    return len(output) > 0 and output[-1] > 1


def squared_error(
    outputs: Float[Array, "*output"], target: Shaped[Array, "..."]
) -> Float[Array, ""]:
    """½‖outputs − target‖² of one example: nats of a Gaussian of variance one, less a constant.

    For regression, and for an encoder whose output is a similarity. With the float network's
    own outputs as targets it needs no labels: its gradient is zero there, its Hessian is the
    Gauss-Newton matrix mean uuᵀ, and the empirical Fisher, which has the residual as a factor,
    is zero. With labels that matrix is the same and the Fisher is not.

    Raises:
        ValueError: If the target has not as many numbers as the output; while it is traced.
    """
    check_target(target.shape, outputs.shape)
    outputs = widened(outputs)
    target = target.astype(outputs.dtype).reshape(outputs.shape)
    return 0.5 * jnp.square(outputs - target).sum()


def check_loss(
    loss: ExampleLoss,
    output: Any,
    target: Any,
    name: str | None = None,
) -> None:
    """Whether a loss takes the output and the target of one example and returns one number.

    Shapes and types alone; nothing is computed.

    Args:
        loss: The loss.
        output: Output of one example, or its shape and type.
        target: Label or target of that example.
        name: Name of the loss, for the message; its own by default.

    Raises:
        ValueError: If it fails, or returns no real scalar.
    """
    name = name or getattr(loss, "__name__", repr(loss))
    shape = list(output.shape)
    call = f"It is called with the logits of one example, {shape}, and its label."
    try:
        value = jax.eval_shape(loss, output, target)
    except Exception as error:  # someone else's code
        first = str(error).partition("\n")[0]
        raise ValueError(
            f"Loss {name!r} failed with {type(error).__name__}: {first}. {call}"
        ) from error
    got, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if got != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        what = type(value).__name__ if got is None else f"{dtype}{list(got)}"
        raise ValueError(f"Loss {name!r} returned {what}; expected one real number. {call}")
