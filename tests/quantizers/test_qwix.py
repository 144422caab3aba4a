"""Block formats against Qwix (0.1.8), where it is installed: equal, or different as said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.formats import Scheme
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_weights
from jmpq.quantizers.fake_quant import quantize_params
from jmpq.quantizers.spec import KernelSpec

pytest.importorskip("qwix")
# Without it, as the tests compile, XLA casts float32 to small floats through float16.
EMITTERS = "xla_cpu_use_fusion_emitters"
BLOCKS = {"mxfp4": 32, "mxfp8_e4m3": 32, "nvfp4": 16}


def ours(rows, name, spec=KernelSpec()):
    """A dense kernel's matrix by one of our schemes, and the scale of every block."""
    network = Network.from_function(
        lambda params, x: x @ params["w"],
        {"w": jnp.asarray(rows.T)},
        jnp.zeros((1, rows.shape[1]), rows.dtype),
    )
    scales = calibrate_weights(network, spec, [name])
    bits = jnp.array([Scheme.of(name).number])
    kernel = quantize_params(network, scales, bits)["w"]
    return np.asarray(kernel).T, np.asarray(scales.scale[0][0]).reshape(len(rows), -1)


def theirs(rows, name, *, emitters=True):
    from qwix._src.core import qarray

    blocks = {1: BLOCKS[name]} if name in BLOCKS else {}
    how = qarray.HowToQuantize(
        qtype=name.partition("_")[0], channelwise_axes=(0,), tiled_axes=blocks
    )

    def quantized(rows):
        found = qarray.quantize(rows, how)
        return qarray.dequantize(found), found.scale

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        quantized = jax.jit(quantized, compiler_options={EMITTERS: emitters})
        return tuple(np.asarray(x) for x in quantized(jnp.asarray(rows)))


def drawn(seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(64, 128)) * np.exp2(rng.uniform(-6, 6, (64, 1)))
    return rows.astype(np.float32)


@pytest.mark.parametrize(("name", "most"), [("mxfp4", 1.5), ("mxfp8_e4m3", 1.75)])
def test_powers_of_two_are_theirs_or_half_of_theirs(name, most):
    """OCP's scale lets the greatest value saturate; Qwix doubles the scale, so that none does.

    Both agree where the greatest magnitude of a block, divided by its power of two, is at
    most that of the format's greatest value: 6 = 1.5 · 4, 448 = 1.75 · 256.
    """
    rows = drawn(1)
    (mine, scale), (other, their_scale) = ours(rows, name), theirs(rows, name)
    greatest = np.abs(rows).reshape(64, -1, 32).max(-1)
    fits = greatest / np.exp2(np.floor(np.log2(greatest))) <= most
    assert 0.2 < fits.mean() < 1
    np.testing.assert_array_equal(scale[fits], their_scale[fits])
    np.testing.assert_array_equal(2 * scale[~fits], their_scale[~fits])
    every = np.repeat(fits, 32, axis=1)
    np.testing.assert_array_equal(mine[every], other[every])
    assert (mine[~every] != other[~every]).any()


def test_nvfp4_is_theirs_under_a_tensor_scale_of_one():
    """Qwix has no scale of the tensor: ours is 1 where the greatest magnitude is 448 · 6."""
    rows = drawn(2)
    rows *= 2.0 ** np.floor(np.log2(2688 / np.abs(rows).max()))
    rows[0, 0] = 448 * 6
    (mine, scale), (other, their_scale) = ours(rows, "nvfp4"), theirs(rows, "nvfp4")
    np.testing.assert_array_equal(scale, their_scale)
    np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("name", ["int2", "int3", "int4", "int7", "int8"])
def test_integers_are_theirs_on_the_half_grid_with_the_full_range(name):
    rows = drawn(4)
    spec = KernelSpec(grid="half", clipping="minmax")
    (mine, scale), (other, their_scale) = ours(rows, name, spec), theirs(rows, name)
    np.testing.assert_array_equal(scale, their_scale)
    np.testing.assert_array_equal(mine, other)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="XLA always has its emitters")
def test_xla_without_its_fusion_emitters_rounds_their_casts_twice():
    """Qwix rounds by XLA's cast: through float16 it turns 2.5006 to 2.5, and to even, 2."""
    rows = drawn(3)
    rows /= np.repeat(ours(rows, "mxfp4")[1], 32, axis=1)
    rows[:, ::32] = 4  # the greatest of every block: their scale is 1
    rows = np.clip(rows, -5.5, 5.5)
    twice, _ = theirs(rows, "mxfp4", emitters=False)
    (mine, scale), (once, their_scale) = ours(rows, "mxfp4"), theirs(rows, "mxfp4")
    np.testing.assert_array_equal(scale, 1)
    np.testing.assert_array_equal(their_scale, 1)
    np.testing.assert_array_equal(mine, once)
    assert (twice != once).any()
    rounded = rows.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(twice, ours(rounded, "mxfp4")[0])
