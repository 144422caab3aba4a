"""Quantizers one bit-width at a time: restricted to some, put together from several."""

import dataclasses
from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np

from jmpq.quantizers.fake_quant import Quantizers, Scales
from jmpq.quantizers.rounding import code_dtype
from jmpq.quantizers.spec import Spec

_ARRAYS = ("scale", "zero_point", "codes")


def restricted(
    quantizers: Quantizers, w_bits: Collection[int], a_bits: Collection[int]
) -> Quantizers:
    """The same quantizers with some of their bit-widths only, bit for bit."""
    activations = quantizers.activations
    return Quantizers(
        weights=_rows(quantizers.weights, w_bits),
        activations=_rows(activations, a_bits) if activations and a_bits else None,
    )


def _rows(scales: Scales[Spec], bits: Collection[int]) -> Scales[Spec]:
    at = np.array([i for i, b in enumerate(scales.bits) if b in bits], int)
    # On the host: JAX would compile a program for every shape.
    arrays = {
        name: tuple(jnp.asarray(np.asarray(x)[at]) for x in getattr(scales, name))
        for name in _ARRAYS
    }
    return dataclasses.replace(scales, bits=tuple(scales.bits[i] for i in at), **arrays)


def by_width(scales: Scales) -> dict[int, dict[str, np.ndarray]]:
    """The arrays of every bit-width by themselves, as ``scale/0``, ``codes/3``, ..."""
    return {
        bits: {
            f"{name}/{tensor}": np.asarray(array[i])
            for name in _ARRAYS
            for tensor, array in enumerate(getattr(scales, name))
        }
        for i, bits in enumerate(scales.bits)
    }


def from_widths(spec: Spec, widths: Mapping[int, Mapping[str, np.ndarray]]) -> Scales[Spec]:
    """Inverse of `by_width`, of at least one bit-width; bits ascending."""
    bits = tuple(sorted(widths))
    arrays = {}
    for name in _ARRAYS:
        count = sum(key.startswith(f"{name}/") for key in widths[bits[0]])
        stacked = [np.stack([widths[b][f"{name}/{i}"] for b in bits]) for i in range(count)]
        if name == "codes":
            stacked = [codes.astype(code_dtype(bits, spec.grid)) for codes in stacked]
        arrays[name] = tuple(map(jnp.asarray, stacked))
    return Scales(spec=spec, bits=bits, **arrays)
