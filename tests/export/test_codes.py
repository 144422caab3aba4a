"""Codes that exporters take are those of the fake-quantized kernels."""

import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.export.bit_strings import pack, unpack
from jmpq.export.codes import code_ends, take_codes, unquantized
from jmpq.formats import Choice
from jmpq.quantizers.fake_quant import quantize_params
from jmpq.quantizers.spec import KernelSpec
from tests.export import cases

SPECS = [
    KernelSpec(),
    KernelSpec(grid="half", granularity="tensor"),
    KernelSpec(grid="affine", clipping="minmax"),
    KernelSpec(grid="affine", granularity="group", group_size=1, along="columns"),
    KernelSpec(grid="half", granularity="group", group_size=1, along="output"),
    KernelSpec(rounding="gptq"),
    KernelSpec(grid="affine", rounding="adaround"),
]
WIDTHS = (2, 3, 5, 8, 13, 16)


@pytest.mark.parametrize(
    "spec", SPECS, ids=lambda s: f"{s.grid}-{s.granularity}-{s.along}-{s.rounding}"
)
def test_scale_times_codes_is_the_fake_quantized_kernel(spec):
    network, found = cases.network(), cases.quantizers(spec, WIDTHS)
    names = [layer.name for layer in network.layers]
    for start in range(len(WIDTHS)):
        bits = [WIDTHS[(start + i) % len(WIDTHS)] for i in range(len(names) - 1)] + [32]
        allocation = Allocation.from_bits(names, np.array([bits, [32] * len(names)]))
        coded = take_codes(network, found, allocation)
        want = network.kernels(quantize_params(network, found.weights, jnp.array(bits)))
        assert coded.kernels[-1] is None
        for layer, kernel in enumerate(coded.kernels[:-1]):
            least, most = code_ends(kernel.bits, spec.grid)
            assert least <= kernel.codes.min() <= kernel.codes.max() <= most
            exact = kernel.codes - kernel.zero_point[:, None]
            values = kernel.scale[:, None] * exact.astype(np.float32)
            got = coded.leaf(layer, jnp.asarray(values))
            np.testing.assert_array_equal(np.asarray(got), np.asarray(want[layer]))


def test_the_float_network_has_no_codes():
    coded = unquantized(cases.network())
    assert set(coded.kernels) == set(coded.inputs) == {None}


def test_bits_that_were_not_calibrated_are_refused():
    with pytest.raises(ValueError, match="'conv1': weight bits 7 were not calibrated"):
        take_codes(
            cases.network(),
            cases.quantizers(KernelSpec(), (2,)),
            Allocation({"conv1": Choice(7)}),
        )


@pytest.mark.parametrize("bits", range(1, 17))
def test_packed_codes_take_their_bits_and_come_back(bits):
    for count in (1, 7, 8, 9, 50):
        codes = np.random.default_rng(count).integers(0, 2**bits, count)
        packed = pack(codes, bits)
        assert packed.size == -(-count * bits // 8)
        whole = int.from_bytes(packed.tobytes(), "little")  # the string as one number
        assert [whole >> i * bits & (2**bits - 1) for i in range(count)] == codes.tolist()
        np.testing.assert_array_equal(unpack(jnp.asarray(packed), bits, count), codes)


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match="Codes from 0 to 8 do not fit 3 bits: expected 0 to 7"
    ):
        pack(np.array([0, 8]), 3)
