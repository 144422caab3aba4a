"""Stored codes: the layers' Hessians by hand, and one quantized kernel for every stage."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_weights
from jmpq.quantizers.fake_quant import quantize_kernel, quantized_logits
from jmpq.quantizers.rounding import codes as rounding
from jmpq.quantizers.rounding.gptq import round_by_hessian
from jmpq.quantizers.rounding.layer_hessian import layer_hessians
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import KernelSpec
from tests import helpers

GPTQ = KernelSpec(rounding="gptq")
BITS = (2, 3, 8)


@pytest.fixture(scope="module")
def network():
    return helpers.residual_cnn()


@pytest.fixture(scope="module")
def batches():
    return [helpers.images(seed, 3 + seed)[0] for seed in (1, 2)]


@pytest.fixture(scope="module")
def weights(network, batches):
    return calibrate_weights(network, GPTQ, BITS, batches)


def output_change(network, layer, kernels, x):
    """Squared change of a layer's output, mean over examples, by the operation itself."""
    found = []

    def at_site(site, x, op):
        if site.layer_index == layer:
            found.append(jnp.square(op(x, kernels[layer]) - op(x)).sum())
        return op(x)

    network.run(x, at_site)
    return float(sum(found)) / len(x)


@pytest.mark.parametrize("most_bytes", [1, 2**30])
def test_hessians_give_the_squared_change_of_a_layers_output(network, batches, most_bytes):
    whole = jnp.concatenate(batches)
    found = dict(layer_hessians(network, batches, most_bytes=most_bytes))
    assert list(found) == [0, 1, 2, 3]
    rng = np.random.default_rng(0)
    for layer, kernel in enumerate(network.kernels()):
        delta = jnp.asarray(rng.normal(size=kernel.shape))
        changed = {layer: kernel + delta}
        (hessian,) = found[layer]
        rows = np.asarray(network.to_matrix(layer, delta))
        got = np.trace(rows @ hessian @ rows.T)
        np.testing.assert_allclose(got, output_change(network, layer, changed, whole))


def grouped():
    """A depthwise, a grouped and a pointwise convolution, and one kernel used twice."""

    def conv(x, w, groups=1):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=groups
        )

    def apply(params, x):
        x = jax.nn.relu(conv(x, params["deep"], 4))
        x = jax.nn.relu(conv(x, params["grouped"], 2))
        x = x + jax.nn.relu(conv(x, params["point"]))
        x = conv(x, params["point"])
        return x.mean((1, 2)) @ params["head"]

    shapes = {
        "deep": (3, 3, 1, 4),
        "grouped": (3, 3, 2, 6),
        "point": (1, 1, 6, 6),
        "head": (6, 3),
    }
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    return Network.from_function(apply, params, jnp.zeros((2, 5, 5, 4)), tied=("point",))


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_layers_in_groups_and_layers_used_twice_end_with_less_output_error(rounding):
    network = grouped()
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, 5, 5, 4)))
    nearest = calibrate_weights(network, KernelSpec(), BITS)
    codes = calibrate_weights(network, KernelSpec(rounding=rounding), BITS, [x])
    for bits in (2, 3):
        errors = []
        for scales in (codes, nearest):
            kernels = [
                quantize_kernel(network, i, k, jnp.array(bits), scales)
                for i, k in enumerate(network.kernels())
            ]
            errors.append([output_change(network, i, kernels, x) for i in range(4)])
        assert (np.array(errors[0]) <= np.array(errors[1]) * 1.02).all()  # damping decides
        assert sum(errors[0]) < 0.9 * sum(errors[1])


def test_embeddings_are_rounded_to_nearest():
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in [("e", (7, 4)), ("w", (4, 3))]}
    network = Network.from_function(
        lambda p, x: p["e"][x].mean(1) @ p["w"], params, jnp.zeros((2, 5), int)
    )
    tokens = jnp.asarray(rng.integers(0, 7, (8, 5)))
    found = [calibrate_weights(network, spec, [3], [tokens]) for spec in (GPTQ, KernelSpec())]
    got, want = (quantize_kernel(network, 0, params["e"], jnp.array(3), s) for s in found)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("grid", "blocks"),
    [
        ("symmetric", {"granularity": "group", "group_size": 1}),
        ("half", {"granularity": "tensor"}),
        ("affine", {}),
    ],
)
def test_codes_are_integers_within_the_grid(network, batches, grid, blocks):
    spec = KernelSpec(grid=grid, rounding="gptq", **blocks)
    found = calibrate_weights(network, spec, [2, 9], batches)
    for i, kernel in enumerate(network.kernels()):
        codes = np.asarray(found.codes[i], int)
        for at, bits in enumerate((2, 9)):
            low, high = {
                "symmetric": (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1),
                "half": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
                "affine": (0, 2**bits - 1),
            }[grid]
            assert low <= codes[at].min()
            assert codes[at].max() <= high
        got = quantize_kernel(network, i, kernel, jnp.array(9), found)
        scale = float(found.scale[i][1].max())
        assert float(jnp.abs(got - kernel).max()) < 20 * scale
        np.testing.assert_array_equal(
            quantize_kernel(network, i, kernel, jnp.array(32), found), kernel
        )


def test_codes_take_one_byte_each_and_survive_the_file(network, weights):
    assert {codes.dtype for codes in weights.codes} == {jnp.dtype("int8")}
    found = Quantizers(weights=weights, activations=None)
    again = Quantizers.from_arrays(found.to_arrays())
    assert again.sha256 == found.sha256
    assert again.weights.spec == GPTQ
    plain = calibrate_weights(network, KernelSpec(), BITS)
    assert Quantizers(weights=plain, activations=None).sha256 != found.sha256
    for one, other in zip(again.weights.codes, weights.codes, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_stage_sees_the_same_kernels(network, weights):
    from jmpq.sensitivity.moves import MoveNetwork

    x, _ = helpers.images(4)
    found = Quantizers(weights=weights, activations=None)
    w_bits = jnp.array([2, 3, 32, 8])
    kernels = [
        quantize_kernel(network, i, k, w_bits[i], weights)
        for i, k in enumerate(network.kernels())
    ]
    want = helpers.apply(network, network.with_kernels(kernels), x)
    full = jnp.full(4, 32)
    run = jax.jit(lambda found: quantized_logits(network, found, w_bits, full, x))
    np.testing.assert_allclose(run(found), want)
    moves = MoveNetwork(network=network, quantizers=found)
    made = [
        m
        for m, move in enumerate(moves.moves)
        if (move.layer, move.bits) in {("stem", 2), ("conv1", 3), ("head", 8)}
    ]
    epsilon = jnp.zeros(len(moves.moves)).at[jnp.array(made)].set(1.0)
    np.testing.assert_allclose(jax.jit(moves.logits)(epsilon, x), want)
    nearest = calibrate_weights(network, KernelSpec(), BITS)
    assert not np.allclose(run(Quantizers(weights=nearest, activations=None)), want)


def test_rounding_by_inputs_is_refused_without_them(network, batches):
    with pytest.raises(ValueError, match=r"rounding='gptq' looks at the layers' inputs"):
        calibrate_weights(network, GPTQ, [4])
    assert calibrate_weights(network, GPTQ, [32], batches).codes == ()


def rounded_layers(path):
    """Keys of the layers that a journal holds."""
    return re.findall(rb'{"key": "[0-9a-f]{64}"', path.read_bytes())


def test_interrupted_rounding_goes_on_with_the_layers_left(
    network, batches, weights, tmp_path, monkeypatch
):
    partial, done = tmp_path / "rounding", []

    def stopped(finished, total):
        done.append((finished, total))
        if finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_weights(network, GPTQ, BITS, batches, partial=partial, progress=stopped)
    assert done == [(1, 4), (2, 4)]
    assert len(rounded_layers(partial)) == 2
    rounded = []
    monkeypatch.setattr(
        rounding,
        "round_by_hessian",
        lambda *args: rounded.append(args[0].shape) or round_by_hessian(*args),
    )
    found = calibrate_weights(network, GPTQ, BITS, batches, partial=partial)
    assert len(rounded) == 2
    for a, b in zip(found.codes, weights.codes, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert len(rounded_layers(partial)) == 4
    calibrate_weights(network, GPTQ, (2, 3), batches, partial=partial)  # another work
    assert len(rounded) == 2 + 4


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda x: x.at[0, 0, 0, 0].set(jnp.nan),
            "1 of .* in a batch of the calib.*NaN",
        ),
        (lambda x: x[:0], "The calibration batches hold no example"),
    ],
)
def test_inputs_that_say_nothing_are_refused(network, batches, rounding, spoil, message):
    spec = KernelSpec(rounding=rounding)
    with pytest.raises(ValueError, match=message):
        calibrate_weights(network, spec, [3], [spoil(jnp.asarray(batches[0]))])
