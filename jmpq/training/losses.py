"""Losses of one example in nats, as functions of the logits."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

# loss(logits of one example, its target) -> nats
ExampleLoss = Callable[[Float[Array, " classes"], Array], Float[Array, ""]]
# Increase of a loss, or KL(p_reference ‖ p_logits), which needs no target
Increase = Literal["loss", "kl"]


def cross_entropy(logits: Float[Array, " classes"], label: Int[Array, ""]) -> Float[Array, ""]:
    """−log p_label of one example, nats."""
    return jax.nn.logsumexp(logits) - logits[label]


def smoothed_cross_entropy(
    logits: Float[Array, " classes"], label: Int[Array, ""], *, smoothing: float
) -> Float[Array, ""]:
    """Cross entropy to a label of which a share is spread evenly over all classes, nats.

    References:
        Szegedy et al. (2016), Rethinking the Inception Architecture, section 7.
    """
    spread = jax.nn.logsumexp(logits) - logits.mean()
    return (1 - smoothing) * cross_entropy(logits, label) + smoothing * spread


def kl_divergence(
    logits: Float[Array, " classes"], reference: Float[Array, " classes"]
) -> Float[Array, ""]:
    """KL(p_reference ‖ p_logits) of one example, nats; zero where both answer alike."""
    log_p, log_q = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def increase(
    kind: Increase,
    loss: ExampleLoss,
    logits: Float[Array, " classes"],
    reference: Float[Array, " classes"],
    target: Shaped[Array, "..."],
) -> Float[Array, ""]:
    """Increase of one example with `logits` in the place of `reference`, nats."""
    if kind == "kl":
        return kl_divergence(logits, reference)
    return loss(logits, target) - loss(reference, target)


def squared_error(
    outputs: Float[Array, " outputs"], target: Float[Array, "..."]
) -> Float[Array, ""]:
    """½‖outputs − target‖² of one example: nats of a Gaussian of variance one, less a constant.

    For regression, and for an encoder whose output is a similarity. With the float network's
    own outputs as targets it needs no labels: its gradient is zero there, its Hessian is the
    Gauss-Newton matrix mean uuᵀ, and the empirical Fisher, which has the residual as a factor,
    is zero. With labels that matrix is the same and the Fisher is not.
    """
    return 0.5 * jnp.square(outputs - target).sum()
