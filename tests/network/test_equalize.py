"""Equalised ranges leave the function alone, and only where channels may be scaled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.equalize import equalization_pairs, equalize_ranges, without_caps
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_weights
from jmpq.quantizers.fake_quant import quantize_params
from jmpq.quantizers.spec import KernelSpec


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class Separable(nn.Module):
    """Convolution, depthwise convolution, 1x1 convolution, pooling, dense layer."""

    capped: bool = False
    normalised: bool = False

    @nn.compact
    def __call__(self, x):
        f = nn.relu6 if self.capped else nn.relu
        x = nn.Conv(6, (3, 3), name="stem")(x)
        if self.normalised:
            x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        x = nn.max_pool(f(x), (2, 2), (2, 2))
        x = f(nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise")(x))
        x = f(nn.Conv(5, (1, 1), use_bias=False, name="pointwise")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


def separable(rng, *, uneven=False, **options):
    """A network of random parameters, with two inputs; uneven: channels of other sizes."""
    module = Separable(**options)
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    variables = module.init(jax.random.key(0), x)
    if options.get("normalised"):
        mean = variables["batch_stats"]["norm"]["mean"]
        variables["batch_stats"]["norm"]["mean"] = mean + 1
    params = jax.tree.map(
        lambda w: np.asarray(w) + 0.1 * rng.normal(size=w.shape).astype("f"),
        variables["params"],
    )
    if uneven:  # the same function, its channels written at scales far apart
        for name, after in (("stem", "depthwise"), ("depthwise", "pointwise")):
            factor = (10.0 ** rng.uniform(-1.5, 1.5, 6)).astype("f")
            params[name] = {k: w * factor for k, w in params[name].items()}
            axis = (1, 1, 1, 6) if after == "depthwise" else (1, 1, 6, 1)
            kernel = params[after]["kernel"] / factor.reshape(axis)
            params[after] = {**params[after], "kernel": kernel}
    params = jax.tree.map(jnp.asarray, params)
    return Network.from_linen(module, {**variables, "params": params}, x), x


def test_two_layers_have_the_geometric_mean_of_their_ranges(rng):
    params = {
        "w1": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=5), jnp.float32),
        "w2": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32),
    }
    params["w2"] = params["w2"].at[1].set(0)  # a channel that nothing reads stays

    def apply(p, x):
        return jax.nn.relu(x @ p["w1"] - p["b"][None]) @ p["w2"]

    x = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    network = Network.from_function(apply, params, x)
    equal = equalize_ranges(network)
    r1, r2 = np.abs(params["w1"]).max(0), np.abs(params["w2"]).max(1)
    mean = np.where(r2 > 0, np.sqrt(r1 * r2), r1)
    np.testing.assert_allclose(np.abs(equal.params["w1"]).max(0), mean, rtol=1e-5)
    np.testing.assert_allclose(
        np.abs(equal.params["w2"]).max(1), np.where(r2 > 0, mean, 0), rtol=1e-5
    )
    np.testing.assert_allclose(
        equal.apply(equal.params, x), apply(params, x), rtol=1e-4, atol=1e-6
    )


def test_a_depthwise_chain_is_equal_on_both_sides_and_the_same_function(rng):
    network, x = separable(rng, uneven=True)
    assert equalization_pairs(network) == [
        ("stem", "depthwise"),
        ("depthwise", "pointwise"),
        ("pointwise", "head"),
    ]
    equal = equalize_ranges(network)
    before, after = network.apply(network.params, x), equal.apply(equal.params, x)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    stem, depthwise, pointwise, head = (
        np.abs(equal.params[name]["kernel"])
        for name in ("stem", "depthwise", "pointwise", "head")
    )
    each = depthwise.max((0, 1, 2))
    np.testing.assert_allclose(stem.max((0, 1, 2)), each, rtol=2e-3)
    np.testing.assert_allclose(each, pointwise.max((0, 1, 3)), rtol=2e-3)
    np.testing.assert_allclose(pointwise.max((0, 1, 2)), head.max(1), rtol=2e-3)


def test_one_scale_a_tensor_serves_uneven_channels_once_they_are_equal(rng):
    network, x = separable(rng, uneven=True)
    spec = KernelSpec(grid="symmetric", granularity="tensor", clipping="minmax")

    def error(network):
        scales = calibrate_weights(network, spec, [6])
        bits = jnp.full(len(network.layers), 6)
        quantized = quantize_params(network, scales, bits)
        exact = network.apply(network.params, x)
        return float(jnp.linalg.norm(network.apply(quantized, x) - exact))

    assert error(equalize_ranges(network)) < 0.2 * error(network)


def test_a_cap_is_refused_and_can_be_taken_off(rng):
    network, x = separable(rng, capped=True)
    with pytest.raises(
        ValueError, match=r"after 'stem' and 2 more: `min` does not pass scales on"
    ):
        equalize_ranges(network)
    open_ended = without_caps(network)
    relu = Separable().apply({"params": network.params}, x)
    np.testing.assert_array_equal(open_ended.apply(network.params, x), relu)
    assert len(equalization_pairs(open_ended)) == 3
    with pytest.raises(ValueError, match="Nothing in the network is capped"):
        without_caps(open_ended)


def test_a_mean_that_is_not_folded_stands_between(rng):
    network, _ = separable(rng, normalised=True)
    assert ("stem", "depthwise") not in equalization_pairs(network)


def test_what_is_read_twice_or_added_is_left_alone():
    def apply(p, x):
        hidden = jax.nn.relu(x @ p["a"])
        twice = jax.nn.relu(hidden @ p["b"])
        return (
            (hidden + twice) @ p["c"]
            + jax.nn.relu(x @ p["d"] + p["e"][None]) @ p["f"]
            + p["e"][None]
        )

    params = {name: jnp.eye(3) for name in "abcdf"} | {"e": jnp.ones(3)}
    network = Network.from_function(apply, params, jnp.ones((1, 3)))
    assert equalization_pairs(network) == []  # b is added to, e is used twice
    with pytest.raises(ValueError, match=r"after 'a': its output is read more than once"):
        equalize_ranges(network)


def test_kernels_that_are_shared_or_read_elsewhere_and_divisors_stay():
    eye = jnp.eye(3)

    def shared(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"] @ p["c"]

    def read(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"] + jnp.square(p["b"]).sum()[None, None]

    def divided(p, x):
        return (p["s"][None] / jnp.exp(x @ p["a"])) @ p["b"] + (
            p["s"][None] / (x @ p["c"])
        ) @ p["d"]

    cases = (
        (shared, {"a": eye, "b": 2 * eye, "c": eye}),  # a and c: one buffer
        (read, {"a": eye, "b": 2 * eye}),
        (divided, {"a": 1 * eye, "b": 2 * eye, "c": 3 * eye, "d": 4 * eye, "s": jnp.ones(3)}),
    )
    for apply, params in cases:
        network = Network.from_function(apply, params, jnp.ones((1, 3)))
        assert equalization_pairs(network) == []
