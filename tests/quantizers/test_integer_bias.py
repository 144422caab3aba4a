"""Biases rounded to the grid of the products that they are added to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.fake_quant import quantized_logits
from jmpq.quantizers.spec import InputSpec, KernelSpec

SPEC = InputSpec(clipping="minmax", int32_biases=True)


def affine_network():
    """Two matrix products, each with a factor, a shift that is taken away and a bias."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": jax.random.normal(keys[0], (5, 4)),
        "second": jax.random.normal(keys[1], (4, 3)),
        "bias": 0.1 * jax.random.normal(keys[2], (4,)),
        "factor": jax.random.normal(keys[3], (4,)),
    }

    def apply(p, x):
        y = ((x @ p["first"]) - 0.3) * p["factor"] + p["bias"]
        return jnp.maximum(0.2 - y, 0) @ p["second"] / 3.0 + jnp.array([0.01, 0.5, 0.0])

    x = jax.random.normal(jax.random.key(9), (6, 5))
    return Network.from_function(apply, params, x), params, x


def by_hand(params, found, x, bits):
    """Integers throughout: codes, their products, biases on the products' grid."""

    def product(x, layer, name):
        scale, zero = (
            float(a[layer][0, 0]) for a in (activations.scale, activations.zero_point)
        )
        most = 2**bits - 1
        codes = np.clip(np.round(x / scale) + zero, 0, most) - zero
        step = np.asarray(found.weights.scale[layer][0])
        kernel = np.clip(np.round(np.asarray(params[name]) / step), -127, 127)
        return codes @ kernel, scale * step

    def on_grid(shift, grid):
        return grid * np.round(shift / grid)

    activations = found.activations
    sums, step = product(np.asarray(x), 0, "first")
    factor, bias = -np.asarray(params["factor"]), np.asarray(params["bias"])
    y = factor * step * sums + on_grid(0.2 - (0.3 * factor + bias), factor * step)
    sums, step = product(np.maximum(y, 0), 1, "second")
    return step * sums / 3 + on_grid(np.array([0.01, 0.5, 0.0]), step / 3)


@pytest.mark.parametrize("bits", [8, 4])
def test_biases_are_multiples_of_the_products_step(bits):
    network, params, x = affine_network()
    found = calibrate_quantizers(network, (8,), (4, 8), [x], activations=SPEC)
    row = found.activations.bits.index(bits)
    at = dataclasses.replace(
        found.activations,
        scale=tuple(s[row:] for s in found.activations.scale),
        zero_point=tuple(z[row:] for z in found.activations.zero_point),
    )
    want = by_hand(params, dataclasses.replace(found, activations=at), x, bits)
    run = jax.jit(quantized_logits)
    got = run(network, found, jnp.full(2, 8), jnp.full(2, bits), x)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    plain = dataclasses.replace(
        found, activations=dataclasses.replace(found.activations, spec=InputSpec())
    )
    other = run(network, plain, jnp.full(2, 8), jnp.full(2, bits), x)
    assert 1e-6 < np.abs(got - other).max() < 0.1


def test_biases_stay_where_products_are_not_integers():
    network, _, x = affine_network()
    run = jax.jit(quantized_logits)
    for weights, activations, bits in (
        (KernelSpec(), SPEC, (32, 8)),
        (KernelSpec(), SPEC, (8, 32)),
        (KernelSpec(granularity="group", group_size=1), SPEC, (8, 8)),
        (KernelSpec(), dataclasses.replace(SPEC, granularity="channel"), (8, 8)),
    ):
        floating = dataclasses.replace(activations, int32_biases=False)
        logits = [
            run(
                network,
                calibrate_quantizers(
                    network, (8,), (8,), [x], weights=weights, activations=spec
                ),
                jnp.full(2, bits[0]),
                jnp.full(2, bits[1]),
                x,
            )
            for spec in (activations, floating)
        ]
        np.testing.assert_allclose(*logits, rtol=1e-10)
