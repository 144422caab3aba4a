"""Increases of a loss from predicted logits, example by example, without JAX.

The ready-made losses are written in NumPy: a search asks for thousands of allocations, a step
for a few hundred, and neither waits for a compiler. They are those of `jmpq.training.losses`,
of many allocations at once. Any other loss is called as the function of JAX that it is.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Shaped

from jmpq.data.positions import check_target, counted
from jmpq.text import did_you_mean

Kind = Literal["loss", "kl"]
Ready = Literal["cross_entropy", "squared_error", "kl"]
READY = get_args(Ready)
# A ready-made loss by name, or loss(output of one example, its target) -> nats, traced by JAX.
Loss = Ready | Callable[[Any, Any], Any]
Logits = Float[np.ndarray, "allocations examples *output"]
PerExample = Float[np.ndarray, "allocations examples"]


def increases(
    kind: Kind,
    loss: Loss,
    q: Logits,
    z: Float[np.ndarray, "examples *output"],
    targets: Shaped[np.ndarray, "examples ..."],
) -> PerExample:
    """Increase of every example with the logits `q` in the place of `z`, nats.

    A divergence, KL(p_z ‖ p_q), is at least zero, rounding errors included. Positions that do
    not count by their targets (`counted`) are left out.

    Raises:
        ValueError: If no ready-made loss has this name, or a divergence is asked for and
            there are not two classes.
    """
    if kind == "kl":
        return np.maximum(_divergence(q, z, targets), 0)
    if callable(loss):
        return _of_function(loss, q, targets) - _of_function(loss, z[None], targets)
    if loss == "cross_entropy":
        return _cross_entropy(q, targets) - _cross_entropy(z[None], targets)
    if loss == "squared_error":
        return _squared_error(q, targets) - _squared_error(z[None], targets)
    if loss == "kl":  # to the float network's own logits, the targets
        return _divergence(q, targets, targets) - _divergence(z[None], targets, targets)
    raise ValueError(
        f"{loss!r} is not a ready-made loss.{did_you_mean(loss, READY)} Expected "
        f"{', '.join(READY)}, or a function of one example's output and its target."
    )


def _log_softmax(x: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    x = x - x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def _divergence(
    q: Logits, reference: Shaped[np.ndarray, "examples ..."], targets: Any
) -> PerExample:
    """KL(p_reference ‖ p_q); the mean over positions, of those that count by `targets`."""
    if q.ndim < 3 or q.shape[-1] < 2:
        raise ValueError(
            "A KL divergence takes the logits of two classes or more; an example's output has "
            f"shape {list(q.shape[2:])}. Predict the increase of a loss instead."
        )
    log_p = _log_softmax(reference)
    p = np.exp(log_p)
    return _position_mean((p * (log_p - _log_softmax(q))).sum(axis=-1), targets)


def _cross_entropy(q: Logits, labels: Shaped[np.ndarray, "examples ..."]) -> PerExample:
    at = np.maximum(labels, 0).astype(np.intp)[None, ..., None]
    own = np.take_along_axis(_log_softmax(q), at, axis=-1)[..., 0]
    return _position_mean(-own, labels)


def _squared_error(q: Logits, targets: Shaped[np.ndarray, "examples ..."]) -> PerExample:
    check_target(targets.shape[1:], q.shape[2:])
    error = (q - targets.astype(q.dtype).reshape(q.shape[1:])).reshape(*q.shape[:2], -1)
    return 0.5 * np.einsum("...c,...c->...", error, error)


def _position_mean(
    values: Float[np.ndarray, "allocations examples *positions"], targets: Any
) -> PerExample:
    """Mean over the positions of every example, of those that count by their targets."""
    counts = counted(targets, values.shape[1:]) if values.ndim > 2 else None
    flat = values.reshape(*values.shape[:2], -1)
    if counts is None:
        return flat.mean(axis=-1)
    counts = counts.reshape(len(counts), -1).astype(values.dtype)
    return np.einsum("aep,ep->ae", flat, counts) / np.maximum(counts.sum(axis=1), 1)


def _of_function(
    loss: Callable[[Any, Any], Any], q: Logits, targets: Shaped[np.ndarray, "examples ..."]
) -> PerExample:
    """A loss of one example, traced once: one compiled call for every allocation."""
    compiled = _compiled(loss)
    return np.stack([np.asarray(compiled(logits, targets)) for logits in q])


@functools.lru_cache(maxsize=16)
def _compiled(loss: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    import jax  # nothing else here needs it

    return jax.jit(jax.vmap(loss))
