"""A network under an allocation: scales per layer and site, bits traced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.quantizers.calibrate import (
    calibrate_activations,
    calibrate_quantizers,
    calibrate_weights,
    check_inputs,
)
from jmpq.quantizers.fake_quant import quantized_logits
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from tests import helpers

ACTIVATIONS = InputSpec(clipping="minmax")


def quantizers(network, *, weights=None, activations=ACTIVATIONS, w=(2, 3, 8), a=(4, 8)):
    batches = [helpers.images(s)[0] for s in (1, 2)]
    return Quantizers(
        weights=calibrate_weights(network, weights or KernelSpec(), w),
        activations=calibrate_activations(
            network, activations, a, batches, key=jax.random.key(0)
        ),
    )


def test_quantizers_of_a_network_in_one_call_are_those_of_its_parts():
    network = helpers.residual_cnn()
    batches = [helpers.images(s)[0] for s in (1, 2)]
    found = calibrate_quantizers(network, (2, 3, 8), (4, 8), batches, activations=ACTIVATIONS)
    assert found.sha256 == quantizers(network).sha256
    assert calibrate_quantizers(network, (2,), (32,)).activations is None
    with pytest.raises(ValueError, match=r"Activations of \[4\] bits need calibration inputs"):
        calibrate_quantizers(network, (2,), (32, 4))
    with pytest.raises(ValueError, match=r"one array of shape .*as \[inputs\]"):
        check_inputs(network, batches[0])
    with pytest.raises(ValueError, match=r"not take the first of the calibration inputs, of"):
        calibrate_quantizers(network, (2,), (4,), [helpers.images(1)])


def test_unquantized_is_bit_identical():
    network = helpers.residual_cnn()
    inputs, _ = helpers.images(1)
    found = quantizers(network)
    full = jnp.full(4, 32)
    logits = jax.jit(lambda x: quantized_logits(network, found, full, full, x))(inputs)
    plain = jax.jit(network.logits)(inputs)
    np.testing.assert_array_equal(logits, plain)


def test_weights_are_quantized_per_output_channel():
    network = helpers.residual_cnn()
    inputs, _ = helpers.images(1)
    found = quantizers(network, weights=KernelSpec(clipping="minmax"))
    kernels = []
    for w in network.kernels():  # by hand: last axis is the output
        scale = np.abs(w).max(axis=tuple(range(w.ndim - 1)), keepdims=True) / 3
        kernels.append(jnp.asarray(np.clip(np.round(w / scale), -3, 3) * scale))
    want = helpers.apply(network, network.with_kernels(kernels), inputs)
    got = quantized_logits(network, found, jnp.full(4, 3), jnp.full(4, 32), inputs)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_activation_ranges_are_those_of_all_batches():
    network = helpers.residual_cnn()
    found = quantizers(network)
    _, recorded = network.record(jnp.concatenate([helpers.images(s)[0] for s in (1, 2)]))
    for site, x in enumerate(recorded):
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        np.testing.assert_allclose(
            found.activations.scale[site][:, 0], [(high - low) / n for n in (15, 255)]
        )


def test_one_layers_input_by_hand():
    network = helpers.residual_cnn()
    inputs, _ = helpers.images(1)
    found = quantizers(network)
    scale, zero = (
        float(x[3][0, 0]) for x in (found.activations.scale, found.activations.zero_point)
    )
    _, recorded = network.record(inputs)
    head = network.params["head"]
    codes = np.clip(np.round(np.asarray(recorded[3]) / scale) + zero, 0, 15)
    want = (codes - zero) * scale @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    a_bits = jnp.array([32, 32, 32, 4])
    np.testing.assert_allclose(
        quantized_logits(network, found, jnp.full(4, 32), a_bits, inputs), want, rtol=1e-10
    )


@pytest.mark.parametrize(
    "granularity", [{"granularity": "channel"}, {"granularity": "group", "group_size": 1}]
)
def test_activation_channels_have_scales_of_their_own(granularity):
    network = helpers.residual_cnn()
    spec = InputSpec(clipping="minmax", **granularity)
    found = quantizers(network, activations=spec)
    assert [s.shape for s in found.activations.scale] == [(2, 2), (2, 2), (2, 3), (2, 2)]
    inputs, _ = helpers.images(1)
    coarse = quantizers(network)
    _, recorded = network.record(inputs)
    from jmpq.quantizers.fake_quant import quantize_input

    for site, x in zip(network.sites, recorded, strict=True):
        errors = [
            float(jnp.square(quantize_input(site, x, jnp.array(4), q.activations) - x).mean())
            for q in (found, coarse)
        ]
        assert errors[0] <= errors[1] * (1 + 1e-9)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_moving_averages_of_ranges_follow_their_definition(granularity):
    network = helpers.residual_cnn()
    batches = [helpers.images(seed)[0] for seed in (1, 2, 3)]
    spec = InputSpec(granularity=granularity, clipping="ema", decay=0.7)
    found = calibrate_activations(network, spec, [4], batches, key=jax.random.key(0))
    ends = []
    for inputs in batches:
        x = np.asarray(network.record(inputs)[1][1])  # conv1's input, features last
        over = (0, 1, 2) if granularity == "channel" else None
        ends.append(np.stack([x.min(over), x.max(over)]))
    low, high = 0.7 * (0.7 * ends[0] + 0.3 * ends[1]) + 0.3 * ends[2]
    want = (np.maximum(high, 0) - np.minimum(low, 0)) / 15
    np.testing.assert_allclose(found.scale[1][0], np.atleast_1d(want))
    with pytest.raises(ValueError, match=r"decay=1\.0 is not in"):
        InputSpec(clipping="ema", decay=1.0)


def test_fifty_allocations_compile_once():
    network = helpers.residual_cnn(dtype=jnp.float32)
    batches = [helpers.images(1, dtype=jnp.float32)]
    found = Quantizers(
        weights=calibrate_weights(network, KernelSpec(), [2, 4, 8]),
        activations=calibrate_activations(
            network, ACTIVATIONS, [4, 8], [x for x, _ in batches], key=jax.random.key(0)
        ),
    )

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(w_bits, a_bits):
        return quantized_logits(network, found, w_bits, a_bits, batches[0][0])

    rng = np.random.default_rng(0)
    logits = {
        np.asarray(run(rng.choice([2, 4, 8, 32], 4), rng.choice([4, 8, 32], 4))).tobytes()
        for _ in range(50)
    }
    assert len(logits) > 40


def test_bits_that_were_not_calibrated_are_refused():
    network = helpers.residual_cnn()
    found = quantizers(network)
    found.check(network, [2, 3, 8, 32], [4, 8, 32, 4])
    with pytest.raises(ValueError, match="'conv1': weight bits 5 were not calibrated"):
        found.check(network, [2, 5, 8, 8], [4, 4, 4, 4])
    with pytest.raises(ValueError, match="'head': activation bits 2"):
        found.check(network, [2, 2, 8, 8], [4, 4, 4, 2])
    with pytest.raises(ValueError, match="'stem': groups of 5"):
        calibrate_weights(network, KernelSpec(granularity="group", group_size=5), [4])
    with pytest.raises(ValueError, match="17 bits on the 'symmetric' grid"):
        calibrate_weights(network, KernelSpec(), [17])
