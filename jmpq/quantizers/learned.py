"""Scales of one allocation as trainable values (LSQ)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jmpq.formats import FLOAT_BITS, Scheme
from jmpq.network.network import Network
from jmpq.quantizers.clipping import from_blocks, to_blocks
from jmpq.quantizers.rounding.code_lines import CodeLines
from jmpq.quantizers.scales import KINDS, Quantizers, Scales, kernel_blocks
from jmpq.quantizers.stream import points_of, stream_number
from jmpq.quantizers.tiling import Tiling
from jmpq.quantizers.uniform import code_range

MARGIN = 0.1  # distance of a moved weight from a rounding threshold, in steps between codes


class ScaleRows(NamedTuple):
    """One value per block of every tensor, at the bits that an allocation gives it.

    Attributes:
        weights: Array ``[blocks]`` per layer; empty if no weight bits are calibrated.
        activations: Array ``[blocks]`` per site; empty if no activation bits are calibrated.
        stream: Array ``[1]`` per point of the stream; empty if none is calibrated.

    Values of unquantized tensors are arbitrary.
    """

    weights: tuple[Array, ...]
    activations: tuple[Array, ...]
    stream: tuple[Array, ...] = ()


def settled(
    network: Network, quantizers: Quantizers, w_bits: Sequence[int], a_bits: Sequence[int]
) -> Quantizers:
    """Quantizers for one allocation only: every tensor has the blocks of its own scheme.

    Raises:
        ValueError: If the bits of a layer were not calibrated.
    """
    quantizers.check(network, w_bits, a_bits)
    of_kernels, of_inputs, _ = tensor_bits(network, w_bits, a_bits)
    activations = quantizers.activations
    return Quantizers(
        weights=_settled(quantizers.weights, of_kernels),
        activations=None if activations is None else _settled(activations, of_inputs),
        stream=quantizers.stream,
    )


def _settled(scales: Scales, bits: Sequence[int]) -> Scales:
    if not scales.tiles:
        return scales
    arrays: dict[str, list[Array]] = {name: [] for name in ("scale", "zero_point", "codes")}
    tiles = []
    for tensor, (b, tiling) in enumerate(zip(bits, scales.tiles, strict=True)):
        row = scales.bits.index(b) if b in scales.bits else 0
        alone = Tiling.of(tiling.rows, tiling.columns, [tiling.own[row]])
        tiles.append(alone._replace(own=alone.own * len(scales.bits)))
        for name, found in arrays.items():
            if not (whole := getattr(scales, name)):
                continue
            array = np.asarray(whole[tensor][row])
            if name == "codes":
                kept = alone.equal_codes(tiling.own_codes(array, row), 0)
            else:
                kept = array[tiling.first(row)][alone.spread(0)]
            found.append(jnp.broadcast_to(jnp.asarray(kept), (len(scales.bits), *kept.shape)))
    return dataclasses.replace(
        scales, tiles=tuple(tiles), **{name: tuple(found) for name, found in arrays.items()}
    )


def rows_of(
    network: Network, quantizers: Quantizers, w_bits: Sequence[int], a_bits: Sequence[int]
) -> tuple[ScaleRows, ScaleRows]:
    """Scales and zero points of an allocation, one per block of each tensor's scheme.

    Raises:
        ValueError: If the bits of a layer were not calibrated.
    """
    quantizers.check(network, w_bits, a_bits)
    kinds = [getattr(quantizers, kind) for kind in KINDS]
    tensors = tensor_bits(network, w_bits, a_bits)

    def pick(name: str) -> ScaleRows:
        fields = []
        for scales, bits in zip(kinds, tensors, strict=True):
            known = scales.bits if scales is not None else ()
            at = [known.index(b) if b in known else 0 for b in bits] if known else []
            rows = [getattr(scales, name)[i][row] for i, row in enumerate(at)]
            if scales is not None and scales.tiles:
                firsts = [t.first(row) for t, row in zip(scales.tiles, at, strict=True)]
                rows = [x[first] for x, first in zip(rows, firsts, strict=True)]
            fields.append(tuple(rows))
        return ScaleRows(*fields)

    return pick("scale"), pick("zero_point")


def tensor_names(network: Network) -> tuple[list[str], list[str], list[str]]:
    """Names of layers, of sites and of points of the stream."""
    named = network.layers, network.sites, points_of(network)
    names = [[x.name for x in some] for some in named]
    return names[0], names[1], names[2]


def tensor_bits(
    network: Network, w_bits: Sequence[int], a_bits: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Bits of every kernel, every site's input (32 for indices) and every stream point."""
    inputs = [
        int(a_bits[site.layer_index]) if site.has_input else FLOAT_BITS
        for site in network.sites
    ]
    stream = [stream_number(int(a_bits[p.layer_index])) for p in points_of(network)]
    return [int(b) for b in w_bits], inputs, stream


def with_rows(quantizers: Quantizers, scale: ScaleRows, zero_point: ScaleRows) -> Quantizers:
    """Quantizers that use these scales at any bits and round to nearest.

    They are valid only for the allocation of the rows.

    Args:
        quantizers: Quantizers, `settled` for the same allocation.
        scale: Scale per block.
        zero_point: Zero point per block.
    """

    def at_all_bits(
        scales: Scales, scale: Sequence[Array], zero_point: Sequence[Array]
    ) -> Scales:
        if not scales.bits:
            return scales
        count = len(scales.bits)
        if scales.tiles:
            index = [tiling.spread(0) for tiling in scales.tiles]
            scale, zero_point = (
                [x[i] for x, i in zip(rows, index, strict=True)] for rows in (scale, zero_point)
            )
        whole = [
            tuple(jnp.broadcast_to(row[None], (count, row.size)) for row in rows)
            for rows in (scale, zero_point)
        ]
        return dataclasses.replace(scales, scale=whole[0], zero_point=whole[1], codes=())

    weights = quantizers.weights
    weights = dataclasses.replace(
        weights, spec=dataclasses.replace(weights.spec, rounding="nearest")
    )
    made: dict[str, Any] = {"weights": at_all_bits(weights, scale.weights, zero_point.weights)}
    for kind in KINDS[1:]:
        scales = getattr(quantizers, kind)
        rows = getattr(scale, kind), getattr(zero_point, kind)
        made[kind] = None if scales is None else at_all_bits(scales, *rows)
    return Quantizers(**made)


def gradient_factors(
    network: Network, quantizers: Quantizers, w_bits: Sequence[int], a_bits: Sequence[int]
) -> tuple[list[float], list[float], list[float]]:
    """LSQ's factor of the gradient of every tensor's scales: 1/√(N·qmax).

    N is the number of values that share a scale (of one example, for activations) and qmax the
    greatest code of the grid. The factor is zero for unquantized tensors and for formats whose
    scales are not free (powers of two, fp8): those scales stay as calibrated.

    Returns:
        Factors per layer, per site and per point of the stream.

    Raises:
        ValueError: If a layer's grid has no positive code (1 bit on the ``half`` grid).

    References:
        Esser, McKinstry, Bablani, Appuswamy, Modha (2020), Learned Step Size Quantization,
        section 2.2.
    """
    names = tensor_names(network)
    sizes = (
        [layer.parameters for layer in network.layers],
        [math.prod(site.input_shape) for site in network.sites],
        [point.size for point in points_of(network)],
    )
    by_kind: list[list[float]] = []
    for kind, bits in enumerate(tensor_bits(network, w_bits, a_bits)):
        scales: Scales | None = getattr(quantizers, KINDS[kind])
        factors = []
        for tensor, b in enumerate(bits if scales is not None and scales.bits else ()):
            if Scheme.of(b).scale != "float32":  # unquantized, or of a scale that is not free
                factors.append(0.0)
                continue
            assert scales is not None
            qmax = float(code_range(jnp.array(b), scales.spec.grid, float, floats=True)[1])
            if qmax < 1:
                raise ValueError(
                    f"Layer {names[kind][tensor]!r}: {b} bit on the {scales.spec.grid!r} grid "
                    "has no positive code, by which LSQ scales a gradient. Use more bits, "
                    "another grid, or keep the scales as they are ('ste')."
                )
            blocks = scales.scale[tensor].shape[1]
            if scales.tiles:
                blocks = scales.tiles[tensor].count(scales.bits.index(b))
            factors.append(1 / math.sqrt(sizes[kind][tensor] / blocks * qmax))
        by_kind.append(factors)
    return by_kind[0], by_kind[1], by_kind[2]


def scale_gradients(rows: ScaleRows, factors: Sequence[Sequence[Any]]) -> ScaleRows:
    """The same scales; their gradients are multiplied by `factors`."""
    return ScaleRows(
        *(
            tuple(_scaled(row, jnp.asarray(f, row.dtype)) for row, f in zip(r, fs, strict=True))
            for r, fs in zip(rows, factors, strict=True)
        )
    )


@jax.custom_jvp
def _scaled(x: Float[Array, " blocks"], factor: Float[Array, ""]) -> Float[Array, " blocks"]:
    """`x`; its derivative is `factor`."""
    return x


_scaled.defjvp(lambda primals, tangents: (primals[0], primals[1] * tangents[0]))


def kernels_near_codes(
    network: Network, quantizers: Quantizers, w_bits: Sequence[int]
) -> list[Array]:
    """Kernels that round to nearest onto the codes of the quantizers.

    If the codes were found by GPTQ or AdaRound, every weight is moved by the least distance
    that makes it round to its code with `MARGIN` to spare. Without codes the kernels are the
    network's own.

    Args:
        network: The network.
        quantizers: Calibrated quantizers of the network.
        w_bits: Weight bits of every layer; each must be calibrated or 32.
    """
    kernels = network.kernels()
    scales = quantizers.weights
    if not scales.codes:
        return kernels
    for layer, (kernel, bits) in enumerate(zip(kernels, w_bits, strict=True)):
        if bits == FLOAT_BITS:
            continue
        row = scales.bits.index(int(bits))
        matrix = network.to_matrix(layer, kernel)
        shape = kernel_blocks(network, layer, scales)
        scale, zero_point = scales.scale[layer][row][:, None], scales.zero_point[layer][row]
        codes = scales.codes[layer][row].astype(matrix.dtype)
        lines = CodeLines.of([int(bits)], scales.spec.grid)
        least, most = lines.least.item(), lines.most.item()
        inner = lines.step(np.nextafter(np.abs(np.asarray(codes, float)), 0)[None])[0]
        reach = (0.5 - MARGIN) * jnp.asarray(inner, matrix.dtype)  # steps of 1 between integers
        low = jnp.where(codes > least, codes - reach, -jnp.inf)  # beyond the ends is cut off
        high = jnp.where(codes < most, codes + reach, jnp.inf)
        exact = to_blocks(matrix, shape) / scale + zero_point[:, None]
        moved = scale * (jnp.clip(exact, low, high) - zero_point[:, None])
        kernels[layer] = network.from_matrix(
            layer, from_blocks(moved, shape, *matrix.shape), kernel
        )
    return kernels
