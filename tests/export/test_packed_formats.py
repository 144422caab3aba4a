"""Packed files of every format: bytes as `size_bytes` counts them, logits as evaluated."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jmpq.allocation import Allocation, bit_arrays
from jmpq.export.codes import take_codes
from jmpq.export.float_codes import decode, encode
from jmpq.export.packed import expected_bytes, load_packed, save_packed
from jmpq.formats import FAMILIES, Choice, Scheme
from jmpq.problem.costs import Overhead, allocation_costs
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.fake_quant import quantized_logits
from jmpq.quantizers.spec import KernelSpec
from tests.export import cases

NAMES = [family.name for family in FAMILIES[1:]] + ["int4_g4", "fp8_e5m2_g5", "int3"]


@pytest.fixture(scope="module", params=["nearest", "gptq"])
def quantizers(request):
    spec = KernelSpec(grid="affine", rounding=request.param)
    inputs = [cases.images()]
    return calibrate_quantizers(cases.network(), NAMES, NAMES, inputs, weights=spec)


@pytest.mark.parametrize("start", range(0, len(NAMES), 3))
def test_payload_is_size_bytes_and_logits_are_those_of_evaluation(quantizers, start, tmp_path):
    network, inputs = cases.network(), cases.images()
    names = [layer.name for layer in network.layers]
    taken = [NAMES[(start + i) % len(NAMES)] for i in range(3)]
    allocation = Allocation(
        {layer: Choice(w, a) for layer, w, a in zip(names, taken, taken[::-1], strict=False)}
    )
    coded = take_codes(network, quantizers, allocation)
    written = save_packed(path := tmp_path / "net.safetensors", coded)
    costs = allocation_costs(
        network.layers,
        allocation,
        Overhead.of(network.layers, quantizers.weights.spec),
        unquantized_parameters=network.other_parameters,
    )
    packed = load_packed(path, network)
    assert written == packed.size_bytes == expected_bytes(coded) == costs["size_bytes"]
    assert packed.allocation["stem"] == allocation["stem"]
    w_bits, a_bits = map(jnp.asarray, bit_arrays(names, [allocation])[0])
    want = jax.jit(quantized_logits)(network, quantizers, w_bits, a_bits, inputs)
    np.testing.assert_allclose(packed.logits(inputs), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES[1:], ids=lambda family: family.name)
def test_bit_patterns_are_those_of_ml_dtypes_and_come_back(family):
    line = family.format
    codes = np.arange(2**line.bits)
    values = np.asarray(decode(jnp.asarray(codes), line, jnp.float32))
    finite = np.isfinite(values)
    assert values[finite].max() == line.largest
    np.testing.assert_array_equal(encode(values[finite], line), codes[finite])
    if line.bits == 4:
        kind = ml_dtypes.float4_e2m1fn
        want = codes.astype(np.uint8).view(kind).astype(np.float32)
        np.testing.assert_array_equal(values, want)


def test_onnx_refuses_formats_by_the_name_of_the_layer(quantizers):
    onnx_graph = pytest.importorskip("jmpq.export.onnx_graph")
    allocation = Allocation({"conv1": Choice("mxfp4")})
    coded = take_codes(cases.network(), quantizers, allocation)
    with pytest.raises(ValueError, match="'conv1' has format mxfp4, which is not written as"):
        onnx_graph.onnx_model(coded)
    assert Scheme.of("mxfp4").block == 32
