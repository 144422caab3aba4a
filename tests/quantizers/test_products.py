"""Quantized products of activations equal the attention written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.network import Network
from jmpq.quantizers.products import quantize_products

TOKENS, WIDTH, HEADS = 5, 6, 2


def attention(params, x):
    """Two heads, without biases, the mean over tokens."""
    batch, tokens, width = x.shape

    def heads(name):
        return (x @ params[name][None]).reshape(batch, tokens, HEADS, width // HEADS)

    q, k, v = (heads(name) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return mixed.reshape(batch, tokens, width).mean(1) @ params["out"]


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    shapes = {name: (WIDTH, WIDTH) for name in "qkv"} | {"out": (WIDTH, 3)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    return Network.from_function(attention, params, jnp.zeros((2, TOKENS, WIDTH)))


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, TOKENS, WIDTH)))


def rounded(x, bits):
    """On the affine grid of a matrix's range."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = np.round(-low / scale)
    return scale * (np.clip(np.round(x / scale), -zero, 2**bits - 1 - zero))


def by_hand(params, x, bits):
    found = []
    p = {name: np.asarray(w) for name, w in params.items()}
    for example in np.asarray(x):
        mixed = []
        for part in np.split(np.arange(WIDTH), HEADS):
            q, k, v = (rounded((example @ p[name])[:, part], bits) for name in "qkv")
            scores = q @ k.T
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            mixed.append(rounded(weights, bits) @ v)
        found.append(np.concatenate(mixed, axis=1).mean(0) @ p["out"])
    return np.array(found)


@pytest.mark.parametrize("bits", [3, 8])
def test_every_head_of_every_example_has_its_own_range(network, x, bits):
    quantized = quantize_products(network, bits)
    np.testing.assert_allclose(
        quantized.apply(quantized.params, x), by_hand(network.params, x, bits), rtol=1e-9
    )
    assert quantized.layers == network.layers
    assert not np.allclose(quantized.apply(network.params, x), attention(network.params, x))


def test_gradients_pass_straight_through(network, x):
    quantized = quantize_products(network, 16)

    def loss(network):
        return lambda params: jnp.square(network.logits(x, params)).sum()

    exact, rough = (jax.grad(loss(n))(network.params) for n in (network, quantized))
    for name in exact:
        np.testing.assert_allclose(rough[name], exact[name], rtol=1e-2, atol=1e-2)


def test_what_cannot_be_quantized_is_refused(network):
    with pytest.raises(ValueError, match="0 bits of products: expected 1 to 16"):
        quantize_products(network, 0)
    dense = Network.from_function(
        lambda p, x: jax.nn.relu(x @ p["w"]), {"w": jnp.eye(3)}, jnp.zeros((1, 3))
    )
    with pytest.raises(ValueError, match="Nothing in the network multiplies"):
        quantize_products(dense, 8)
