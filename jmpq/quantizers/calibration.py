"""Scales from values: min-max, percentile and mean-squared-error clipping, per block."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jmpq.quantizers.spec import TensorSpec
from jmpq.quantizers.uniform import fake_quantize, scale_of_range

# Multiples of the full range that mean-squared-error clipping tries.
FRACTIONS = tuple(i / 100 for i in range(100, 4, -1))


def to_blocks(
    matrix: Float[Array, "rows columns"], shape: tuple[int, int]
) -> Float[Array, "blocks elements"]:
    """One row per block of `shape`; blocks in row-major order."""
    r, c = shape
    rows, columns = matrix.shape
    tiles = matrix.reshape(rows // r, r, columns // c, c).transpose(0, 2, 1, 3)
    return tiles.reshape(-1, r * c)


def from_blocks(
    blocks: Float[Array, "blocks elements"], shape: tuple[int, int], rows: int, columns: int
) -> Float[Array, "rows columns"]:
    """Inverse of `to_blocks`."""
    r, c = shape
    tiles = blocks.reshape(rows // r, columns // c, r, c).transpose(0, 2, 1, 3)
    return tiles.reshape(rows, columns)


def calibrate(
    blocks: Float[Array, "blocks elements"], bits: Int[Array, ""], spec: TensorSpec
) -> tuple[Float[Array, " blocks"], Float[Array, " blocks"]]:
    """Scale and zero point of every block.

    Args:
        blocks: Values, one row per block.
        bits: Bit-width, traced.
        spec: Grid and clipping.

    Returns:
        Scale and zero point per block. ``mse`` tries the multiples `FRACTIONS` of the
        min-max range and keeps, block by block, the one with least squared error.
    """
    tail = 1 - spec.percentile / 100
    match spec.clipping:
        case "percentile" if spec.grid == "affine":
            low, high = jnp.quantile(blocks, jnp.array([tail, 1 - tail], blocks.dtype), axis=1)
        case "percentile":
            high = jnp.quantile(jnp.abs(blocks), 1 - tail, axis=1)
            low = -high
        case _:
            low, high = blocks.min(axis=1), blocks.max(axis=1)
    full = scale_of_range(low, high, bits, spec.grid)
    if spec.clipping != "mse":
        return full

    def squared_error(scale: Array, zero_point: Array) -> Array:
        rounded = fake_quantize(blocks, scale[:, None], zero_point[:, None], bits, spec.grid)
        return jnp.square(rounded - blocks).mean(axis=1)

    def keep_best(best: tuple, fraction: Array) -> tuple:
        scale, zero_point = scale_of_range(fraction * low, fraction * high, bits, spec.grid)
        error = squared_error(scale, zero_point)
        better = error < best[0]
        tried = (error, scale, zero_point)
        return tuple(jnp.where(better, a, b) for a, b in zip(tried, best, strict=True)), None

    start = (squared_error(*full), *full)
    fractions = jnp.array(FRACTIONS, blocks.dtype)
    (_, scale, zero_point), _ = jax.lax.scan(keep_best, start, fractions)
    return scale, zero_point
