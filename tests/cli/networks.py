"""Networks that the command line imports as ``tests.cli.networks:NAME``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jmpq.network.network import Network

SEED, SCALE = 0, 1.0  # of the weights; tests change them
ACTIVATION, STRIDE = nn.relu, 2  # of the code; tests change them too


class Tiny(nn.Module):
    """Three layers for digits: 8x8x1 images, 10 classes."""

    @nn.compact
    def __call__(self, x):
        x = ACTIVATION(nn.Conv(4, (3, 3), strides=2, name="stem")(x))
        x = ACTIVATION(nn.Conv(8, (3, 3), strides=STRIDE, name="body")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def tiny() -> Network:
    example = jnp.zeros((1, 8, 8, 1), jnp.float32)
    variables = Tiny().init(jax.random.key(SEED), example)
    return Network.from_linen(Tiny(), jax.tree.map(lambda x: SCALE * x, variables), example)


def probabilities() -> Network:
    """`Tiny` with a softmax at its end."""
    example = jnp.zeros((1, 8, 8, 1), jnp.float32)
    params = Tiny().init(jax.random.key(SEED), example)["params"]
    return Network.from_function(
        lambda params, x: nn.softmax(Tiny().apply({"params": params}, x)), params, example
    )


def photos() -> Network:
    """`Tiny` for colour images of 224 pixels."""
    example = jnp.zeros((1, 224, 224, 3), jnp.float32)
    variables = Tiny().init(jax.random.key(SEED), example)
    return Network.from_linen(Tiny(), variables, example)


class TwoHeads(nn.Module):
    """Features beside logits, an auxiliary head, and the head applied to positions too."""

    @nn.compact
    def __call__(self, x):
        head = nn.Dense(10, name="head")
        x = nn.relu(nn.Conv(4, (3, 3), strides=4, name="stem")(x))
        positions = head(x)
        aux = nn.Dense(16, name="aux")(x.mean((1, 2)))
        return {"aux": aux, "logits": head(x.mean((1, 2))), "positions": positions}


def two_heads(output=None) -> Network:
    example = jnp.zeros((1, 8, 8, 1), jnp.float32)
    variables = TwoHeads().init(jax.random.key(SEED), example)
    return Network.from_linen(TwoHeads(), variables, example, output=output)


def fixed_batch() -> Network:
    """It takes batches of 8 only."""
    params = {"w": jnp.ones((64, 10))}
    return Network.from_function(
        lambda params, x: x.reshape(8, 64) @ params["w"], params, jnp.zeros((8, 8, 8, 1))
    )


def batch_statistics() -> Network:
    """Its inputs are centred over the batch."""
    params = {"w": jnp.ones((64, 10))}
    return Network.from_function(
        lambda params, x: (x - x.mean(0)).reshape(x.shape[0], 64) @ params["w"],
        params,
        jnp.zeros((1, 8, 8, 1)),
    )


def deep(output=None) -> Network:
    """Three dense layers in a loop over stacked parameters, and a head."""
    keys = jax.random.split(jax.random.key(SEED))
    params = {
        "layers": {"kernel": jax.random.normal(keys[0], (3, 64, 64)) / 8},
        "head": {"kernel": jax.random.normal(keys[1], (64, 10)) / 8},
    }

    def apply(params, x):
        step = lambda x, kernel: (x + jax.nn.relu(x @ kernel), None)  # noqa: E731
        x = x.reshape(x.shape[0], 64)
        x, _ = jax.lax.scan(step, x, params["layers"]["kernel"])
        return {"logits": x @ params["head"]["kernel"]}

    return Network.from_function(apply, params, jnp.zeros((1, 8, 8, 1)), output=output)


def recurrent() -> Network:
    """A recurrent NNX module over the rows of an image."""

    class Rows(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.GRUCell(8, 4, rngs=rngs), rngs=rngs)
            self.head = nnx.Linear(4, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(self.rnn(x[..., 0])[:, -1])

    return Network.from_nnx(Rows(nnx.Rngs(SEED)), jnp.zeros((1, 8, 8, 1)))


def deaf(output) -> Network:
    """Its `output` is not handed on."""
    return tiny()


def without_layers() -> Network:
    return Network.from_function(
        lambda params, x: x.mean((1, 2)) * params["scale"],
        {"scale": jnp.ones(10)},
        jnp.zeros((1, 8, 8, 10)),
    )


def ten_channels() -> Network:
    """A dense layer on the mean over ten channels."""
    params = {"w": jnp.ones((10, 10))}
    return Network.from_function(
        lambda params, x: x.mean((1, 2)) @ params["w"], params, jnp.zeros((1, 8, 8, 10))
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


class Attention(nn.Module):
    """One attention over the rows of a digit, its keys and values from layers of their own."""

    @nn.compact
    def __call__(self, x):
        tokens = nn.Dense(8, name="rows")(x[..., 0])
        q, k, v = (nn.Dense(8, name=name)(tokens) for name in ("query", "key", "value"))
        weights = nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k))
        return nn.Dense(10, name="head")(jnp.einsum("bqk,bkd->bqd", weights, v).mean(1))


def attention() -> Network:
    example = jnp.zeros((1, 8, 8, 1), jnp.float32)
    variables = Attention().init(jax.random.key(SEED), example)
    variables = jax.tree.map(lambda x: 3 * x, variables)
    return Network.from_linen(Attention(), variables, example)
