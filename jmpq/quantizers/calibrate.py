"""All quantizers of a network at once, from calibration inputs."""

import pathlib
from collections.abc import Callable, Iterable, Sequence

import jax
from jaxtyping import PyTree

from jmpq.formats import FLOAT_BITS
from jmpq.network.network import Network
from jmpq.quantizers.fake_quant import (
    Quantizers,
    calibrate_activations,
    calibrate_weights,
    check_inputs,
)
from jmpq.quantizers.spec import InputSpec, KernelSpec


def calibrate_quantizers(
    network: Network,
    w_bits: Iterable[int],
    a_bits: Iterable[int] = (FLOAT_BITS,),
    batches: Sequence[PyTree] = (),
    *,
    weights: KernelSpec = KernelSpec(),
    activations: InputSpec = InputSpec(),
    seed: int = 0,
    partial: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quantizers:
    """Quantizers of every layer's kernel and input at several bit-widths.

    Args:
        network: The network.
        w_bits: Bits of weights; 32 (unquantized) needs no calibration and may be among them.
        a_bits: Bits of activations; by default they stay unquantized.
        batches: Calibration inputs, batch by batch; needed for activations, and for weights
            where `weights.rounding` is not ``nearest``.
        weights: How weights are put on a grid.
        activations: How activations are put on a grid.
        seed: Seed of the sample of activations.
        partial: As in `calibrate_weights`: where rounded layers are kept.
        progress: Called with the layers rounded and their number.

    Raises:
        ValueError: If inputs are needed and not there, or as `calibrate_weights` and
            `calibrate_activations`.
    """
    check_inputs(network, batches)
    a_bits = tuple(a_bits)
    scales = None
    if set(a_bits) - {FLOAT_BITS}:
        if not batches:
            raise ValueError(
                f"Activations of {sorted(set(a_bits) - {FLOAT_BITS})} bits need calibration "
                "inputs: pass them as `batches`, or leave activations unquantized."
            )
        key = jax.random.key(seed)
        scales = calibrate_activations(network, activations, a_bits, batches, key=key)
    kernels = calibrate_weights(
        network, weights, w_bits, batches, partial=partial, progress=progress
    )
    return Quantizers(weights=kernels, activations=scales)
