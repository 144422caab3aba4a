"""Losses of one example in nats, as functions of the logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# loss(logits of one example, its target) -> nats
ExampleLoss = Callable[[Float[Array, " classes"], Array], Float[Array, ""]]


def cross_entropy(logits: Float[Array, " classes"], label: Int[Array, ""]) -> Float[Array, ""]:
    """−log p_label of one example, nats."""
    return jax.nn.logsumexp(logits) - logits[label]


def kl_divergence(
    logits: Float[Array, " classes"], reference: Float[Array, " classes"]
) -> Float[Array, ""]:
    """KL(p_reference ‖ p_logits) of one example, nats: what quantization lost of the
    reference network's answer.
    """  # noqa: D205
    log_p, log_q = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


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
