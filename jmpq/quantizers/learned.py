"""Scales of one allocation, held apart so that they can be learned (LSQ)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jmpq.formats import FLOAT_BITS
from jmpq.network.network import Network
from jmpq.quantizers.calibration import from_blocks, to_blocks
from jmpq.quantizers.fake_quant import Quantizers, Scales, kernel_blocks
from jmpq.quantizers.uniform import code_range

MARGIN = 0.1  # of a scale: how far from a rounding threshold a moved weight stays


class ScaleRows(NamedTuple):
    """One value per block of every tensor, at the bits that an allocation gives it.

    Attributes:
        weights: Per layer ``[blocks]``; empty where no bits of weights are calibrated.
        activations: Per site ``[blocks]``; empty where no activations are calibrated.

    Those of an unquantized tensor mean nothing.
    """

    weights: tuple[Array, ...]
    activations: tuple[Array, ...]


def rows_of(
    network: Network, quantizers: Quantizers, w_bits: Sequence[int], a_bits: Sequence[int]
) -> tuple[ScaleRows, ScaleRows]:
    """Scales and zero points of an allocation.

    Raises:
        ValueError: If a layer is given bits that were not calibrated.
    """
    quantizers.check(network, w_bits, a_bits)
    both = quantizers.weights, quantizers.activations
    tensors = tensor_bits(network, w_bits, a_bits)

    def pick(name: str) -> ScaleRows:
        fields = []
        for scales, bits in zip(both, tensors, strict=True):
            known = scales.bits if scales is not None else ()
            at = [known.index(b) if b in known else 0 for b in bits] if known else []
            fields.append(tuple(getattr(scales, name)[i][row] for i, row in enumerate(at)))
        return ScaleRows(*fields)

    return pick("scale"), pick("zero_point")


def tensor_bits(
    network: Network, w_bits: Sequence[int], a_bits: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Bits of every layer's kernel, and of every site's input: 32 where it is indices."""
    inputs = [
        int(a_bits[site.layer_index]) if site.has_input else FLOAT_BITS
        for site in network.sites
    ]
    return [int(b) for b in w_bits], inputs


def with_rows(quantizers: Quantizers, scale: ScaleRows, zero_point: ScaleRows) -> Quantizers:
    """Quantizers with these scales at any bits, rounding to nearest.

    They mean something for the allocation that the rows belong to, and for no other.
    """

    def at_all_bits(
        scales: Scales, scale: Sequence[Array], zero_point: Sequence[Array]
    ) -> Scales:
        if not scales.bits:
            return scales
        count = len(scales.bits)
        whole = [
            tuple(jnp.broadcast_to(row[None], (count, row.size)) for row in rows)
            for rows in (scale, zero_point)
        ]
        return dataclasses.replace(scales, scale=whole[0], zero_point=whole[1], codes=())

    weights, activations = quantizers.weights, quantizers.activations
    weights = dataclasses.replace(
        weights, spec=dataclasses.replace(weights.spec, rounding="nearest")
    )
    return Quantizers(
        weights=at_all_bits(weights, scale.weights, zero_point.weights),
        activations=None
        if activations is None
        else at_all_bits(activations, scale.activations, zero_point.activations),
    )


def gradient_factors(
    network: Network, quantizers: Quantizers, w_bits: Sequence[int], a_bits: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Factor of the gradient of every tensor's scales in LSQ: 1/√(N·qmax).

    N is the number of values that share a scale, of activations those of one example; qmax
    the greatest code of the grid. Zero for unquantized tensors.

    Returns:
        Per layer, and per site.

    Raises:
        ValueError: If a layer's grid has no positive code (1 bit on the ``half`` grid).

    References:
        Esser, McKinstry, Bablani, Appuswamy, Modha (2020), Learned Step Size Quantization,
        section 2.2.
    """
    names = [layer.name for layer in network.layers], [site.name for site in network.sites]
    by_kind: list[list[float]] = []
    for kind, scales, bits in zip(
        range(2),
        (quantizers.weights, quantizers.activations),
        tensor_bits(network, w_bits, a_bits),
        strict=True,
    ):
        factors = []
        for tensor, b in enumerate(bits if scales is not None and scales.bits else ()):
            if b == FLOAT_BITS:
                factors.append(0.0)
                continue
            assert scales is not None
            qmax = float(code_range(jnp.array(b), scales.spec.grid, jnp.float32)[1])
            if qmax < 1:
                raise ValueError(
                    f"Layer {names[kind][tensor]!r}: {b} bit on the {scales.spec.grid!r} grid "
                    "has no positive code, by which LSQ scales a gradient. Use more bits, "
                    "another grid, or keep the scales as they are ('ste')."
                )
            if kind == 0:
                values = network.layers[tensor].parameters
            else:
                values = math.prod(network.sites[tensor].input_shape)
            factors.append(1 / math.sqrt(values / scales.scale[tensor].shape[1] * qmax))
        by_kind.append(factors)
    return by_kind[0], by_kind[1]


def scale_gradients(rows: ScaleRows, factors: tuple[Sequence[Any], Sequence[Any]]) -> ScaleRows:
    """The same scales, whose gradients arrive multiplied with the `factors`."""
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
    """Kernels that rounding to nearest puts on the codes that the quantizers hold.

    Where codes were found otherwise (GPTQ, AdaRound), every weight is moved as little as it
    takes to be rounded to its code, and stays `MARGIN` of a scale from the threshold. Where
    there are none the kernels are the network's own.

    Args:
        network: The network.
        quantizers: Calibrated quantizers of the network.
        w_bits: Weight bits of every layer, calibrated ones.
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
        shape = kernel_blocks(network, layer, scales.spec)
        scale, zero_point = scales.scale[layer][row][:, None], scales.zero_point[layer][row]
        codes = scales.codes[layer][row].astype(matrix.dtype)
        least, most = code_range(jnp.array(bits), scales.spec.grid, matrix.dtype)
        reach = 0.5 - MARGIN
        low = jnp.where(codes > least, codes - reach, -jnp.inf)  # beyond the ends is cut off
        high = jnp.where(codes < most, codes + reach, jnp.inf)
        exact = to_blocks(matrix, shape) / scale + zero_point[:, None]
        moved = scale * (jnp.clip(exact, low, high) - zero_point[:, None])
        kernels[layer] = network.from_matrix(
            layer, from_blocks(moved, shape, *matrix.shape), kernel
        )
    return kernels
