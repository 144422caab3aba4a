"""Inputs in MX and NVFP4: block scales are computed from each input at run time."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jmpq.formats import Scheme
from jmpq.network.precision import widened
from jmpq.network.sites import Site
from jmpq.quantizers.number_line import block_scale, scale_of_clip
from jmpq.quantizers.uniform import fake_quantize


def dynamic_blocks(schemes: Sequence[int]) -> dict[int, list[int]]:
    """Schemes whose scales depend on the values, by block size.

    >>> dynamic_blocks([8, Scheme.of("mxfp4").number]) == {32: [Scheme.of("mxfp4").number]}
    True
    """
    blocks: dict[int, list[int]] = {}
    for number in schemes:
        scheme = Scheme.of(number)
        if scheme.scale in ("e8m0", "e4m3"):
            assert scheme.block is not None
            blocks.setdefault(scheme.block, []).append(number)
    return blocks


def quantize_blocks(
    site: Site,
    x: Array,
    *,
    tensor: Float[Array, ""],
    bits: Int[Array, ""],
    block: int,
) -> Array:
    """Fake-quantize a site's input by a scheme of one block size.

    Blocks lie along the features, separately at every position. The last block is shorter if
    the block size does not divide the features. Scales are constants in gradients.

    Args:
        site: The site.
        x: Input of the site.
        tensor: Scale of the tensor (NVFP4; unused by MX formats).
        bits: Number of the scheme, traced.
        block: Features per block.
    """
    wide, axes = widened(x), site.feature_axes
    order = [*(a for a in range(x.ndim) if a not in axes), *axes]
    shape = [x.shape[a] for a in order]
    features = math.prod(x.shape[a] for a in axes)
    block = min(block, features)
    rows = wide.transpose(order).reshape(math.prod(shape[: x.ndim - len(axes)]), features)
    if spare := -features % block:
        rows = jnp.pad(rows, ((0, 0), (0, spare)))
    # Blocks as an axis: their scales broadcast, nothing is repeated.
    blocks = rows.reshape(rows.shape[0], -1, block)
    clip = jnp.abs(jax.lax.stop_gradient(blocks)).max(axis=2, keepdims=True)
    two_levels = Scheme.of("nvfp4").number
    scale = jnp.where(
        bits == two_levels, block_scale(clip, widened(tensor)), scale_of_clip(clip, bits)
    )
    zero = jnp.zeros((), wide.dtype)
    blocks = fake_quantize(blocks, scale, zero, bits, "symmetric", floats=True)
    back = blocks.reshape(rows.shape)[:, :features].reshape(shape)
    return back.transpose([order.index(a) for a in range(x.ndim)]).astype(x.dtype)
