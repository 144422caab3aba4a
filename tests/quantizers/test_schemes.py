"""Every scheme on kernels and inputs: definitions by hand, one compilation, files."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.formats import Scheme
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.fake_quant import quantize_input, quantize_params
from jmpq.quantizers.learned import rows_of, settled, with_rows
from jmpq.quantizers.scales import Quantizers, kernel_tiles
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.quantizers.widths import by_width, from_widths, restricted
from tests import helpers
from tests.helpers import fast_logits
from tests.quantizers import formats_by_hand as by_hand

FLOATS = ("fp8_e4m3", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "bf16", "f16")
BLOCKS = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "mxint8", "nvfp4")
ALL = ("int2", "int3", "int8", "int3_g4", "fp8_e4m3_g5", *FLOATS, *BLOCKS)
PLAIN = {"weights": KernelSpec(clipping="minmax"), "activations": InputSpec(clipping="minmax")}


@pytest.fixture(scope="module")
def network():
    return helpers.residual_cnn()


@pytest.fixture(scope="module")
def quantizers(network):
    batches = [helpers.images(s)[0] for s in (1, 2)]
    return calibrate_quantizers(network, ALL, ALL, batches, **PLAIN)


def numbers(name):
    return jnp.full(4, Scheme.of(name).number)


def matrices(network, params):
    kernels = network.with_kernels(network.kernels()) if params is None else params
    whole = dataclasses.replace(network, params=kernels)
    return [np.asarray(whole.to_matrix(i, k)) for i, k in enumerate(whole.kernels())]


@pytest.mark.parametrize("name", ALL)
def test_kernels_are_on_their_formats_by_hand(network, quantizers, name):
    """Blocks of 32, 16, 5 and 4 do not divide the 18 and 27 columns: the last is shorter."""
    got = matrices(network, quantize_params(network, quantizers.weights, numbers(name)))
    for matrix, found in zip(matrices(network, None), got, strict=True):
        want = by_hand.quantized(matrix, name, size=matrix.shape[1])
        np.testing.assert_allclose(found, want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", BLOCKS)
def test_inputs_are_scaled_block_by_block_as_they_come(network, quantizers, name):
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 5, 2)) * [1.0, 20.0])
    site, scales = network.sites[1], quantizers.activations
    got = quantize_input(site, x, numbers(name)[0], scales)
    if name == "nvfp4":  # the tensor's scale is calibrated
        tensor = float(scales.at(1, numbers(name)[0])[0][0])
        want = by_hand.nvfp4(np.asarray(x), tensor * 448 * 6)
        np.testing.assert_allclose(got, want, rtol=1e-14)
    else:
        np.testing.assert_array_equal(got, by_hand.mx(np.asarray(x), name))


def test_blocks_of_wide_inputs_are_shorter_at_the_end():
    """A dense layer of 75 features, blocks of 32 and of 16, at every position by itself."""
    kernel = jax.random.normal(jax.random.key(1), (75, 6))
    network = Network.from_function(
        lambda params, x: x @ params["w"], {"w": kernel}, jnp.zeros((1, 75))
    )
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 75)))
    found = calibrate_quantizers(network, ["mxfp4"], ["mxfp4", "nvfp4", "int8"], [x])
    assert found.activations is not None
    got = quantize_input(
        network.sites[0], jnp.asarray(x), numbers("mxfp4")[0], found.activations
    )
    np.testing.assert_array_equal(got, by_hand.mx(x, "mxfp4"))
    got = quantize_input(
        network.sites[0], jnp.asarray(x), numbers("nvfp4")[0], found.activations
    )
    np.testing.assert_allclose(got, by_hand.nvfp4(x, np.abs(x).max()), rtol=1e-14)


def test_fifty_allocations_of_all_formats_compile_once(network, quantizers):
    @jax.jit
    @chex.assert_max_traces(1)
    def logits(w_bits, a_bits, x):
        return fast_logits(network, quantizers, w_bits, a_bits, x)

    rng = np.random.default_rng(0)
    known = [*(Scheme.of(name).number for name in ALL), 32]
    inputs, _ = helpers.images(1)
    seen = set()
    for _ in range(50):
        w_bits, a_bits = rng.choice(known, (2, 4))
        seen.add(np.asarray(logits(jnp.array(w_bits), jnp.array(a_bits), inputs)).tobytes())
    assert len(seen) > 45  # some formats agree on these few numbers
    full = jnp.array(np.full(4, 32))
    # Two programs: XLA fuses their sums in another order on some processors.
    np.testing.assert_allclose(logits(full, full, inputs), network.logits(inputs), rtol=1e-13)


def test_plain_integers_do_not_depend_on_other_formats(network, quantizers):
    batches = [helpers.images(s)[0] for s in (1, 2)]
    alone = calibrate_quantizers(network, (2, 3, 8), (2, 3, 8), batches, **PLAIN)
    assert not alone.weights.tiles
    for bits in (2, 3, 8):
        args = jnp.full(4, bits), jnp.full(4, bits), batches[0]
        np.testing.assert_array_equal(
            fast_logits(network, quantizers, *args),
            fast_logits(network, alone, *args),
        )
        assert alone.sha256_at([bits], [bits]) == quantizers.sha256_at([bits], [bits])


def test_a_block_as_wide_as_the_tensor_is_the_format_of_the_tensor(network):
    for free in ("int4", "fp6_e3m2"):
        found = calibrate_quantizers(network, [free, f"{free}_g1000"], **PLAIN)
        one, other = (quantize_params(network, found.weights, numbers(n))
                      for n in (free, f"{free}_g1000"))  # fmt: skip
        chex.assert_trees_all_equal(one, other)


def test_schemes_alone_and_together_again_are_the_same(network, quantizers):
    mixed = [Scheme.of(n).number for n in ("int3", "int3_g4", "nvfp4")]
    part = restricted(quantizers, mixed, [Scheme.of("mxfp4").number])
    assert part.sha256_at(mixed, []) == quantizers.sha256_at(mixed, [])
    scales = part.weights
    tiles = kernel_tiles(network.layers, scales.spec, scales.bits)
    again = from_widths(scales.spec, by_width(scales), tiles)
    for number in mixed:
        want = quantize_params(network, quantizers.weights, jnp.full(4, number))
        for found in (scales, again):
            got = quantize_params(network, found, jnp.full(4, number))
            chex.assert_trees_all_equal(got, want)
    back = Quantizers.from_arrays(quantizers.to_arrays())
    assert back.sha256 == quantizers.sha256
    back.check_network(network)


def test_scales_of_one_allocation_are_those_of_its_own_blocks(network, quantizers):
    names = ("int3_g4", "nvfp4", "fp8_e4m3_g5", "bf16")
    w_bits = [Scheme.of(n).number for n in names]
    own = settled(network, quantizers, w_bits, [32] * 4)
    scale, zero_point = rows_of(network, own, w_bits, [32] * 4)
    columns = [layer.parameters // layer.output_features for layer in network.layers]
    counts = [
        layer.output_features * -(-c // size)
        for layer, c, size in zip(network.layers, columns, (4, 16, 5, 10**9), strict=True)
    ]
    assert [len(row) for row in scale.weights] == [*counts[:3], 1]
    held = with_rows(own, scale, zero_point)
    want = quantize_params(network, quantizers.weights, jnp.array(w_bits))
    for found in (own, held):
        got = quantize_params(network, found.weights, jnp.array(w_bits))
        chex.assert_trees_all_equal(got, want)
