"""Networks that the command line imports as ``tests.cli.networks:NAME``."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jmpq.network.network import Network

SEED, SCALE = 0, 1.0  # of the weights; tests change them


class Tiny(nn.Module):
    """Three layers for digits: 8x8x1 images, 10 classes."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="stem")(x))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="body")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def tiny() -> Network:
    example = jnp.zeros((1, 8, 8, 1), jnp.float32)
    variables = Tiny().init(jax.random.key(SEED), example)
    return Network.from_linen(Tiny(), jax.tree.map(lambda x: SCALE * x, variables), example)


def photos() -> Network:
    """`Tiny` for colour images of 224 pixels."""
    example = jnp.zeros((1, 224, 224, 3), jnp.float32)
    variables = Tiny().init(jax.random.key(SEED), example)
    return Network.from_linen(Tiny(), variables, example)


def without_layers() -> Network:
    return Network.from_function(
        lambda params, x: x.mean((1, 2)) * params["scale"],
        {"scale": jnp.ones(10)},
        jnp.zeros((1, 8, 8, 10)),
    )


def a_module() -> nn.Module:
    return Tiny()


def broken() -> Network:
    raise KeyError("lost")


def with_argument(depth) -> Network:
    return tiny()


class Half(nn.Module):
    """`Tiny` in half precision, its parameters and its arithmetic."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        kind = {"dtype": self.dtype, "param_dtype": self.dtype}
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="stem", **kind)(x))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="body", **kind)(x))
        return nn.Dense(10, name="head", **kind)(x.mean((1, 2)))


def half(dtype) -> Network:
    example = jnp.zeros((1, 8, 8, 1), jnp.float32)
    variables = Half(dtype).init(jax.random.key(SEED), example)
    return Network.from_linen(Half(dtype), variables, example)


def bfloat16() -> Network:
    return half(jnp.bfloat16)


def float16() -> Network:
    return half(jnp.float16)


class Pixels(nn.Module):
    """Classes of the four quarters of a digit: [batch, 2, 2, 10]."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="stem")(x))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="body")(x))
        return nn.Dense(10, name="head")(x)


def pixels() -> Network:
    example = jnp.zeros((1, 8, 8, 1), jnp.float32)
    variables = Pixels().init(jax.random.key(SEED), example)
    return Network.from_linen(Pixels(), variables, example)


def number() -> Network:
    """The mean of the logits of `Tiny`: one number an example."""
    example = jnp.zeros((1, 8, 8, 1), jnp.float32)
    params = Tiny().init(jax.random.key(SEED), example)["params"]
    return Network.from_function(
        lambda params, x: Tiny().apply({"params": params}, x).mean(1), params, example
    )
