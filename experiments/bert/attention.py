"""How far the attention of a quantized encoder is from the float one's."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.zoo.bert import Bert, Tokens, attention_weights


@functools.partial(jax.jit, static_argnums=0)
def attention_divergence(
    module: Bert, reference: PyTree, params: PyTree, tokens: Tokens
) -> Float[Array, " layers"]:
    """Mean KL(p_reference ‖ p) of the attention of a token, encoder layer by layer, nats.

    Args:
        module: The encoder.
        reference: Parameters of the float network.
        params: Parameters to compare, quantized ones for one.
        tokens: Sentences; what is padding is left out of the mean, which runs over tokens,
            heads and examples.

    References:
        Shen et al. (2020), Q-BERT, arXiv 1909.05840: the distance of attention before and
        after fine-tuning. Here before and after quantization.
    """
    mask = jnp.asarray(tokens["attention_mask"])

    def divergence(p: Array, q: Array) -> Float[Array, ""]:
        tiny = jnp.finfo(p.dtype).tiny
        terms = p * (jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(q, tiny)))
        kl = terms.sum(axis=-1)  # [*batch, heads, length]
        weights = jnp.broadcast_to(mask[..., None, :], kl.shape).astype(kl.dtype)
        return (kl * weights).sum() / weights.sum()

    pairs = zip(
        attention_weights(module, reference, tokens),
        attention_weights(module, params, tokens),
        strict=True,
    )
    return jnp.stack([divergence(p, q) for p, q in pairs])
