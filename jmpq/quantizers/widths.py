"""Quantizers split and joined by bit-width."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmpq.formats import Scheme
from jmpq.quantizers.rounding.codes import code_dtype
from jmpq.quantizers.scales import KINDS, Quantizers, Scales
from jmpq.quantizers.spec import Spec
from jmpq.quantizers.stream import stream_number
from jmpq.quantizers.tiling import Tiling

_ARRAYS = ("scale", "zero_point", "codes")
ANY_BITS = 8  # number of the one row of scales, whatever bits it is of


def restricted(
    quantizers: Quantizers, w_bits: Collection[int], a_bits: Collection[int]
) -> Quantizers:
    """The same quantizers with a subset of their bit-widths; arrays are bit-identical."""
    activations, stream = quantizers.activations, quantizers.stream
    return Quantizers(
        weights=_rows(quantizers.weights, w_bits),
        activations=_rows(activations, a_bits) if activations and a_bits else None,
        stream=_rows(stream, {stream_number(b) for b in a_bits}) if stream and a_bits else None,
    )


def _rows(scales: Scales[Spec], bits: Collection[int]) -> Scales[Spec]:
    at = np.array([i for i, b in enumerate(scales.bits) if b in bits], int)
    tiles = tuple(tiling.only(at.tolist()) for tiling in scales.tiles)
    # On the host: JAX would compile a program for every shape.
    arrays = {
        name: tuple(jnp.asarray(np.asarray(x)[at]) for x in getattr(scales, name))
        for name in _ARRAYS
    }
    kept = tuple(scales.bits[i] for i in at)
    return dataclasses.replace(scales, bits=kept, tiles=tiles, **arrays)


def for_every_width(quantizers: Quantizers) -> Quantizers:
    """Quantizers of one plain bit-width, under a number that stands for all of them.

    Bits are then traced values alone: one program serves every plain bit-width, one that is
    added later too. Quantizers of other schemes, or of several, are returned as they are.
    """
    renamed: dict[str, Any] = {}
    for kind in KINDS:
        scales: Scales | None = getattr(quantizers, kind)
        bits = scales.bits if scales is not None else ()
        if len(bits) > 1 or not all(Scheme.of(b).is_plain for b in bits):
            return quantizers
        if scales is not None and bits:
            renamed[kind] = dataclasses.replace(scales, bits=(ANY_BITS,))
    return dataclasses.replace(quantizers, **renamed)


def by_width(scales: Scales) -> dict[int, dict[str, np.ndarray]]:
    """Arrays of each bit-width, named ``scale/0``, ``codes/3``, ..."""
    return {bits: scales.own(i) for i, bits in enumerate(scales.bits)}


def from_widths(
    spec: Spec, widths: Mapping[int, Mapping[str, np.ndarray]], tiles: Sequence[Tiling]
) -> Scales[Spec]:
    """Inverse of `by_width`.

    Args:
        spec: Specification of the tensors.
        widths: Arrays of each bit-width; at least one.
        tiles: Blocks of every tensor for these bit-widths, ascending.
    """
    bits = tuple(sorted(widths))
    if all(Scheme.of(b).is_plain for b in bits):
        tiles = ()

    def equal(name: str, tensor: int, row: int) -> np.ndarray:
        array = widths[bits[row]][f"{name}/{tensor}"]
        if not tiles:
            return array
        tiling = tiles[tensor]
        if name == "codes":
            return tiling.equal_codes(array, row)
        return array[tiling.spread(row)]

    arrays = {}
    for name in _ARRAYS:
        count = sum(key.startswith(f"{name}/") for key in widths[bits[0]])
        every = range(len(bits))
        stacked = [np.stack([equal(name, i, row) for row in every]) for i in range(count)]
        if name == "codes":
            stacked = [codes.astype(code_dtype(bits, spec.grid)) for codes in stacked]
        arrays[name] = tuple(map(jnp.asarray, stacked))
    return Scales(spec=spec, bits=bits, tiles=tuple(tiles), **arrays)
