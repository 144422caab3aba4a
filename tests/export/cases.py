"""Quantized networks that the tests of exporters share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.spec import InputSpec
from jmpq.zoo.architectures import build_module
from tests import helpers


@functools.cache
def network() -> Network:
    """A small residual network of float32."""
    return helpers.residual_cnn(activation="relu", dtype=jnp.float32)


def images(seed=3, batch=8):
    return helpers.images(seed, batch, jnp.float32)[0]


def quantizers(spec, w_bits, a_bits=(32,), activations=InputSpec(), of=None, inputs=None):
    return calibrate_quantizers(
        of or network(),
        w_bits,
        a_bits,
        inputs or [images(s) for s in (1, 2)],
        weights=spec,
        activations=activations,
    )


def built_in(name, classes, example, vocab_size=None):
    """A built-in network with random weights and statistics of float32."""
    module = build_module(name, classes, vocab_size)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), example)
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    if "batch_stats" in variables:
        stats = helpers.shake(variables["batch_stats"], 1)
        variables = {**variables, "batch_stats": stats}
    return Network.from_linen(module, variables, example)


@functools.cache
def digits_resnet():
    return built_in("digits_resnet", 10, jnp.zeros((1, 8, 8, 1), jnp.float32))


@functools.cache
def bert_tiny():
    tokens = jnp.zeros((1, 6), jnp.int32)
    example = {"input_ids": tokens, "attention_mask": tokens, "token_type_ids": tokens}
    return built_in("bert_tiny", 2, example, vocab_size=50)


def sentences(count=5, seed=0):
    rng = np.random.default_rng(seed)
    mask = (np.arange(6) < rng.integers(2, 7, count)[:, None]).astype(np.int32)
    ids = rng.integers(0, 50, (count, 6)).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * mask}
