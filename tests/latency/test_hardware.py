"""Hardware models against closed forms and published numbers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.formats import UNQUANTIZED, Choice
from jmpq.latency.hardware import (
    PRESETS,
    BitFusion,
    BitSerial,
    Roofline,
    model_table,
    preset,
    traffic_bytes,
)
from jmpq.network.network import Network
from jmpq.zoo.architectures import build_module
from tests.problem.tables import LAYERS, conv, dense, embedding

CONV = conv("conv", 4, 5)  # 180 weights, 2880 MACs, 64 inputs, 80 outputs
W8A8, W4A4 = Choice(8, 8), Choice(4, 4)


def test_a_roofline_is_the_slower_of_arithmetic_and_memory():
    device = Roofline(macs_per_s={8: 100.0, 32: 25.0}, bytes_per_s=1e9)
    assert device(CONV, W8A8) == 28.80
    assert device(CONV, Choice(2, 8)) == 28.80  # the least width that holds both
    assert device(CONV, Choice(8, 16)) == 2880 / 25
    slow = dataclasses.replace(device, bytes_per_s=1.0)
    assert slow(CONV, W8A8) == 180 + 64 + 80
    assert slow(CONV, Choice(4, 8)) == 90 + 64 + 80
    assert slow(CONV, UNQUANTIZED) == 4 * (180 + 64 + 80)
    # a batch reads the weights once
    assert dataclasses.replace(slow, batch=3)(CONV, W8A8) == 180 + 3 * (64 + 80)
    assert math.isnan(Roofline(macs_per_s={8: 1.0}, bytes_per_s=1.0)(CONV, UNQUANTIZED))


def test_formats_that_no_unit_multiplies_have_no_time():
    for name in ("roofline", "bit_serial", "bitfusion"):
        device, _ = preset(name)
        for choice in (Choice("fp8_e4m3", "fp8_e4m3"), Choice("mxfp4", 8), Choice(4, "nvfp4")):
            assert math.isnan(device(CONV, choice)), (name, choice)
        assert device(CONV, Choice("int4_g32", 8)) == device(CONV, Choice(4, 8))
    device, _ = preset("roofline")
    assert device(CONV, Choice("bf16", "bf16")) == device(CONV, Choice(16, 16))


def test_bits_in_series_multiply():
    device = BitSerial(bit_macs_per_s=10.0)
    assert device(CONV, Choice(3, 5)) == 2880 * 15 / 10
    assert device(CONV, UNQUANTIZED) == 2880 * 256 / 10
    ratios = [device(CONV, Choice(w, 8)) / device(CONV, W8A8) for w in range(1, 9)]
    np.testing.assert_allclose(ratios, np.arange(1, 9) / 8, rtol=1e-15)
    assert device(embedding("words", 10, 6), W8A8) == 0


@pytest.mark.parametrize(
    ("choice", "products"),
    [
        ((8, 8), 1),
        ((5, 8), 1),
        ((4, 8), 2),
        ((3, 3), 4),
        ((2, 8), 4),
        ((2, 2), 16),
        ((1, 1), 16),
    ],
)
def test_fusion_units_do_more_narrow_products(choice, products):
    device = BitFusion(units=3, cycles_per_s=7.0, bytes_per_s=math.inf)
    assert device(CONV, Choice(*choice)) == pytest.approx(2880 / (21 * products), rel=1e-15)


def test_memory_adds_to_fused_arithmetic():
    device = BitFusion(units=1, cycles_per_s=math.inf, bytes_per_s=2.0, batch=2)
    assert device(CONV, W8A8) == (180 + 2 * (64 + 80)) / 2
    assert device(CONV, Choice(3, 8)) == (90 + 2 * (64 + 80)) / 2  # stored at 4 bits
    assert math.isnan(device(CONV, Choice(8)))
    assert math.isnan(device(CONV, Choice(9, 8)))


def test_an_embedding_reads_the_rows_it_needs():
    words = embedding("words", 1000, 6)  # 7 indices, 42 outputs
    assert traffic_bytes(words, W8A8) == 42 + 7 * 4 + 42
    assert traffic_bytes(dense("d", 5, 3), W4A4, batch=2) == 7.5 + 2 * 4


def test_bitfusion_is_near_the_published_table_of_mobilenet_v2():
    """HAQ's simulator: uniform W4A4 takes .397 of uniform W8A8, batch 16.

    Wang et al. (2019), arXiv 1811.08886; mit-han-lab/haq at 20e4ed3 (Apache 2.0),
    lib/simulator/lookup_tables/qmobilenetv2_imagenet100_batch16_latency_table.npy.
    """
    module, example = (
        build_module("mobilenet_v2", 100),
        jnp.zeros((1, 224, 224, 3), jnp.float32),
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        structs = jax.eval_shape(module.init, jax.random.key(0), example)
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), structs)
        layers = Network.from_linen(module, zeros, example).layers
    assert len(layers) == 53
    model, _ = preset("bitfusion", batch=16)
    narrow, wide = (math.fsum(model(x, c) for x in layers) for c in (W4A4, W8A8))
    assert narrow / wide == pytest.approx(0.397, rel=0.07)


def test_presets_are_cited_and_a_table_has_what_the_hardware_can_run():
    for name in PRESETS:
        model, source = preset(name, batch=4)
        assert any(word in source for word in ("arXiv", "data sheet"))
        table = model_table(model, LAYERS, (W4A4, W8A8))
        known = (W4A4, W8A8) if name == "bitfusion" else (W4A4, W8A8, UNQUANTIZED)
        assert table.choices == known
        got = table.array([layer.name for layer in LAYERS], (W4A4,))[:, 0]
        np.testing.assert_array_equal(got, [model(layer, W4A4) for layer in LAYERS])
    with pytest.raises(ValueError, match="'tpu' is not a hardware model: expected one of roof"):
        preset("tpu")
