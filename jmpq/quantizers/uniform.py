"""Uniform integer grids with traced bit-widths: one compilation serves them all."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jmpq.formats import FLOAT_BITS
from jmpq.network.precision import widened
from jmpq.quantizers.spec import Grid


@jax.custom_jvp
def round_ste(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Round half to even; the derivative is that of the identity (straight-through)."""
    return jnp.round(x)


round_ste.defjvp(lambda primals, tangents: (round_ste(*primals), tangents[0]))


def code_range(
    bits: Int[Array, "*#shape"], grid: Grid, dtype: Any
) -> tuple[Float[Array, "*#shape"], Float[Array, "*#shape"]]:
    """Least and greatest integer code of a grid."""
    half = jnp.left_shift(1, jnp.clip(bits, 1, 16) - 1).astype(dtype)  # integer shift: exact
    match grid:
        case "symmetric":
            return 1 - half, half - 1
        case "half":
            return -half, half - 1
        case "affine":
            return jnp.zeros_like(half), 2 * half - 1


def scale_of_range(
    low: Float[Array, "*shape"],
    high: Float[Array, "*shape"],
    bits: Int[Array, "*#shape"],
    grid: Grid,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Scale and zero point of the grid that spans [low, high].

    Symmetric grids span ±max(|low|, |high|). The affine range is widened to hold zero. An
    empty range gives scale 1, which maps zeros to zeros. Half precision gives float32.
    """
    low, high = widened(low), widened(high)  # 16 bits are beyond half precision
    qmin, qmax = code_range(bits, grid, low.dtype)
    if grid == "affine":
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        scale = (high - low) / (qmax - qmin)
    else:
        clip = jnp.maximum(jnp.abs(low), jnp.abs(high))
        scale = clip / (qmax if grid == "symmetric" else qmax + 0.5)
    scale = jnp.where(scale > 0, scale, jnp.ones_like(scale))
    zero_point = jnp.round(-low / scale) if grid == "affine" else jnp.zeros_like(scale)
    return scale, zero_point


def fake_quantize(
    x: Float[Array, "*shape"],
    scale: Float[Array, "*#shape"],
    zero_point: Float[Array, "*#shape"],
    bits: Int[Array, "*#shape"],
    grid: Grid,
) -> Float[Array, "*shape"]:
    """Round `x` onto an integer grid and back; any bits, traced; 32 returns `x`.

    The gradient by `x` is straight-through inside the range, its ends included, and zero
    outside; that by `scale` is round(x/scale) − x/scale inside, the code at the end outside.

    References:
        Esser, McKinstry, Bablani, Appuswamy, Modha (2020), Learned Step Size Quantization,
        eqs. (1) to (3), (5).
    """
    dtype = x.dtype
    x, scale = widened(x), widened(scale)
    codes = centred_codes(x, scale, zero_point, bits, grid)
    return jnp.where(bits == FLOAT_BITS, x, scale * codes).astype(dtype)


def centred_codes(
    x: Float[Array, "*shape"],
    scale: Float[Array, "*#shape"],
    zero_point: Float[Array, "*#shape"],
    bits: Int[Array, "*#shape"],
    grid: Grid,
) -> Float[Array, "*shape"]:
    """Nearest integer codes of `x` less the zero point, which `scale` is multiplied with.

    Of half precision they are float32.
    """
    x, scale, zero_point = widened(x), widened(scale), widened(zero_point)
    qmin, qmax = code_range(bits, grid, x.dtype)
    low, high = qmin - zero_point, qmax - zero_point  # integers
    ratio = x / scale
    # Not `clip`: the gradient of a tie is a half, and after rounding all of a last bin ties.
    return jnp.where(ratio > high, high, jnp.where(ratio < low, low, round_ste(ratio)))
