"""Fake quantization on integer grids and float formats; the scheme is traced.

`bits` are scheme numbers (`jmpq.formats.Scheme`): bit-widths of integers and, if `floats` is
True, possibly float formats. One compilation serves all schemes.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jmpq.formats import FLOAT_BITS
from jmpq.network.precision import widened
from jmpq.quantizers.number_line import LINES, is_float, round_ste, scale_of_clip
from jmpq.quantizers.spec import Grid


def code_range(
    bits: Int[Array, "..."], grid: Grid, dtype: Any, *, floats: bool = False
) -> tuple[Float[Array, "*#shape"], Float[Array, "*#shape"]]:
    """Least and greatest code: integers of a grid, or values of a float format."""
    if floats:
        least, most = code_range(bits, grid, dtype)
        largest = LINES.at(bits, dtype).largest
        inside = is_float(bits)
        return jnp.where(inside, -largest, least), jnp.where(inside, largest, most)
    half = jnp.left_shift(1, jnp.clip(bits & 63, 1, 16) - 1).astype(dtype)  # exact: a shift
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
    bits: Int[Array, "..."],
    grid: Grid,
    *,
    floats: bool = False,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Scale and zero point of the grid that spans [low, high].

    Symmetric grids and float formats span ±max(|low|, |high|). The affine range is extended to
    include zero. An empty range gives scale 1. Half-precision ranges give float32 scales.

    References:
        Jacob et al. (2018), Quantization and training of neural networks for efficient
        integer-arithmetic-only inference, eqs. (1) and (12), for the affine grid.
    """
    low, high = widened(low), widened(high)  # 16 bits are beyond half precision
    if floats:
        scale, zero_point = scale_of_range(low, high, bits, grid)
        clip = jnp.maximum(jnp.abs(low), jnp.abs(high))
        own = is_float(bits)
        scale = jnp.where(own, scale_of_clip(clip, bits), scale)
        return scale, jnp.where(own, jnp.zeros_like(zero_point), zero_point)
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
    scale: Float[Array, "..."],
    zero_point: Float[Array, "..."],
    bits: Int[Array, "..."],
    grid: Grid,
    *,
    floats: bool = False,
) -> Float[Array, "*shape"]:
    """Quantize and dequantize `x` in a traced scheme; 32 returns `x`.

    The gradient with respect to `x` is straight-through inside the range, ends included, and
    zero outside. The gradient with respect to `scale` is round(x/scale) − x/scale inside and
    the clipped code outside.

    References:
        Esser, McKinstry, Bablani, Appuswamy, Modha (2020), Learned Step Size Quantization,
        eqs. (1) to (3), (5).
    """
    dtype = x.dtype
    x, scale = widened(x), widened(scale)
    codes = centred_codes(x, scale, zero_point, bits, grid, floats=floats)
    return jnp.where(bits == FLOAT_BITS, x, scale * codes).astype(dtype)


def centred_codes(
    x: Float[Array, "*shape"],
    scale: Float[Array, "..."],
    zero_point: Float[Array, "..."],
    bits: Int[Array, "..."],
    grid: Grid,
    *,
    floats: bool = False,
) -> Float[Array, "*shape"]:
    """Nearest codes of `x` minus the zero point: the fake-quantized value divided by `scale`.

    Codes are integers, or values of a float format. Half-precision inputs give float32.
    """
    x, scale, zero_point = widened(x), widened(scale), widened(zero_point)
    qmin, qmax = code_range(bits, grid, x.dtype, floats=floats)
    low, high = qmin - zero_point, qmax - zero_point  # integers
    ratio = x / scale
    # Not `clip`, whose gradient at a tie is one half: after rounding, a whole end bin ties.
    inside = LINES.at(bits, x.dtype).round(ratio) if floats else round_ste(ratio)
    return jnp.where(ratio > high, high, jnp.where(ratio < low, low, inside))
