"""Scales from values: min-max, percentile and mean-squared-error clipping, per block."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jmpq.formats import Scheme
from jmpq.network.precision import widened
from jmpq.quantizers.number_line import block_scale, scale_of_clip
from jmpq.quantizers.spec import KernelSpec, TensorSpec
from jmpq.quantizers.tiling import Block, Tiling
from jmpq.quantizers.uniform import fake_quantize, scale_of_range

# Multiples of the min-max range that mean-squared-error clipping tries.
FRACTIONS = tuple(i / 100 for i in range(100, 4, -1))


def to_blocks(
    matrix: Float[Array, "rows columns"], shape: tuple[int, int]
) -> Float[Array, "blocks elements"]:
    """Rearrange a matrix to one row per block of `shape`; blocks in row-major order."""
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


def calibrate_schemes(
    matrix: Float[Array, "rows columns"],
    spec: TensorSpec,
    schemes: Sequence[int],
    tiling: Tiling,
) -> tuple[Float[Array, "schemes blocks"], Float[Array, "schemes blocks"]]:
    """Scales and zero points of one tensor for several schemes, one per equal block.

    Args:
        matrix: Values: a kernel, or sampled inputs with features along rows.
        spec: Grid and clipping.
        schemes: Numbers of the schemes.
        tiling: Blocks of every scheme, for a matrix with the rows of `matrix`.

    Returns:
        Scales and zero points. A block of a scheme that spans several of the equal blocks
        repeats its scale in each.
    """
    rows = []
    for i, number in enumerate(schemes):
        scheme = Scheme.of(number)
        kind = scheme.scale if scheme.is_float else "grid"
        r, c = tiling.own[i]
        # With sampled inputs a block has all samples of its features.
        own = r, (matrix.shape[1] if c == tiling.columns else c)
        found = _calibrate_scheme(matrix, jnp.array(number), spec=spec, kind=kind, own=own)
        rows.append([np.asarray(x)[tiling.spread(i)] for x in found])
    # Stacked on the host: JAX would compile a program for every shape.
    scale, zero_point = (jnp.asarray(np.stack(x)) for x in zip(*rows, strict=True))
    return scale, zero_point


@functools.partial(jax.jit, static_argnames=("spec", "kind", "own"))
def _calibrate_scheme(
    matrix: Float[Array, "rows columns"],
    bits: Int[Array, ""],
    *,
    spec: TensorSpec,
    kind: str,
    own: Block,
) -> tuple[Float[Array, " blocks"], Float[Array, " blocks"]]:
    """Scales and zero points of the blocks of one scheme, shorter ones at the ends too.

    Bits are traced and tensors are arguments: one program for all of a shape and a kind.
    """
    bands = [_bands(size, step) for size, step in zip(matrix.shape, own, strict=True)]
    lines = []
    for top, bottom, r in bands[0]:
        line = []
        for left, right, c in bands[1]:
            blocks = to_blocks(matrix[top:bottom, left:right], (r, c))
            found = _calibrate_by_rule(blocks, bits, kind=kind, spec=spec, whole=matrix)
            grid = (bottom - top) // r, (right - left) // c
            line.append(tuple(x.reshape(grid) for x in found))
        lines.append([jnp.concatenate(x, axis=1) for x in zip(*line, strict=True)])
    scale, zero_point = (jnp.concatenate(x, axis=0) for x in zip(*lines, strict=True))
    return scale.reshape(-1), zero_point.reshape(-1)


def _bands(size: int, step: int) -> list[tuple[int, int, int]]:
    """Starts, ends and steps of the whole blocks along an axis, and of the last one."""
    cut = size // step * step
    bands = [(0, cut, step), (cut, size, size - cut)]
    return [band for band in bands if band[0] < band[1]]


def _calibrate_by_rule(
    blocks: Float[Array, "blocks elements"],
    bits: Int[Array, ""],
    *,
    kind: str,
    spec: TensorSpec,
    whole: Array,
) -> tuple[Float[Array, " blocks"], Float[Array, " blocks"]]:
    """`calibrate` if scales are free, else the scales that define the format."""
    if kind in ("grid", "float32"):
        return calibrate(blocks, bits, spec, floats=kind == "float32")
    clip = widened(jnp.abs(blocks).max(axis=1))
    scale = scale_of_clip(clip, bits)
    if kind == "e4m3" and isinstance(spec, KernelSpec):  # inputs: computed from each input
        scale = block_scale(clip, scale_of_clip(widened(jnp.abs(whole).max()), bits))
    return scale, jnp.zeros_like(scale)


def calibrate(
    blocks: Float[Array, "blocks elements"],
    bits: Int[Array, ""],
    spec: TensorSpec,
    *,
    floats: bool = False,
) -> tuple[Float[Array, " blocks"], Float[Array, " blocks"]]:
    """Scale and zero point of every block, by the clipping of `spec`.

    Args:
        blocks: Values, one row per block.
        bits: Number of the scheme, traced.
        spec: Grid and clipping.
        floats: Whether `bits` numbers a float format whose scales are free.

    Returns:
        Scale and zero point per block. ``percentile`` keeps the min-max range of blocks
        whose percentiles are the same, such as sparse ones. ``mse`` tries the multiples
        `FRACTIONS` of the min-max range and keeps, per block, the one of least mean squared
        error.
    """
    tail = 1 - spec.percentile / 100
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    if spec.clipping == "percentile":
        if spec.grid == "affine" and not floats:
            ends = jnp.array([tail, 1 - tail], blocks.dtype)
            kept_low, kept_high = jnp.quantile(blocks, ends, axis=1)
        else:
            kept_high = jnp.quantile(jnp.abs(blocks), 1 - tail, axis=1)
            kept_low = -kept_high
        # Of sparse values the percentile can be zero: they all keep their range then.
        empty = kept_low == kept_high
        low, high = jnp.where(empty, low, kept_low), jnp.where(empty, high, kept_high)
    full = scale_of_range(low, high, bits, spec.grid, floats=floats)
    if spec.clipping != "mse":
        return full

    def squared_error(scale: Array, zero_point: Array) -> Array:
        rounded = fake_quantize(
            blocks, scale[:, None], zero_point[:, None], bits, spec.grid, floats=floats
        )
        return jnp.square(rounded - blocks).mean(axis=1)

    def keep_best(best: tuple, fraction: Array) -> tuple:
        scale, zero_point = scale_of_range(
            fraction * low, fraction * high, bits, spec.grid, floats=floats
        )
        error = squared_error(scale, zero_point)
        better = error < best[0]
        tried = (error, scale, zero_point)
        return tuple(jnp.where(better, a, b) for a, b in zip(tried, best, strict=True)), None

    start = (squared_error(*full), *full)
    fractions = jnp.array(FRACTIONS, blocks.dtype)
    (_, scale, zero_point), _ = jax.lax.scan(keep_best, start, fractions)
    return scale, zero_point
