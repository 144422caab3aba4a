"""Analytic models of hardware: seconds of a layer from its shape and its bits.

For hardware that nobody has at hand, and below 8 bits, where no runtime of a CPU is faster.
A model is a pure function of layer, choice and parameters; its presets carry the numbers of a
publication. What a model does not know (a width that the hardware lacks, a float format but
for those of 16 and 32 bits in a roofline) is NaN.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

from jmpq.formats import FLOAT_BITS, UNQUANTIZED, Choice
from jmpq.latency.table import LatencyTable
from jmpq.network.layers import Layer

ModelName = Literal["roofline", "bit_serial", "bitfusion"]


@runtime_checkable
class HardwareModel(Protocol):
    """Seconds of one layer under one choice; NaN where the hardware cannot run it."""

    def __call__(self, layer: Layer, choice: Choice) -> float: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Time of a layer: that of its arithmetic or of its memory traffic, whichever is longer.

    Weights, input and output pass the memory once, weights at `w_bits`, the others at
    `a_bits`. Arithmetic runs at the rate of the least width that holds both operands. Nothing
    is fused and nothing stays in a cache, so that the sum is an upper bound of an ideal device.

    Attributes:
        macs_per_s: Multiply-accumulates a second, by bits of the operands.
        bytes_per_s: Memory bandwidth.
        batch: Examples of a call; weights are read once.

    References:
        Williams, Waterman, Patterson (2009), Roofline: an insightful visual performance model
        for multicore architectures, Communications of the ACM 52.
    """

    macs_per_s: Mapping[int, float]
    bytes_per_s: float
    batch: int = 1

    def __call__(self, layer: Layer, choice: Choice) -> float:
        widest = max(choice.w_bits, choice.a_bits)
        widths = [width for width in self.macs_per_s if width >= widest]
        if not widths or (widest < 16 and not _integers(choice)):
            return math.nan
        arithmetic = self.batch * layer.macs / self.macs_per_s[min(widths)]
        return max(arithmetic, traffic_bytes(layer, choice, self.batch) / self.bytes_per_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitSerial:
    """Time of a layer whose operands are multiplied bit by bit: MACs · w_bits · a_bits.

    Unquantized operands count as `float_bits`, the width of the fixed-point baseline.

    Attributes:
        bit_macs_per_s: Multiply-accumulates of single bits a second.
        float_bits: Bits that stand for an unquantized operand.
        batch: Examples of a call.

    References:
        Umuroglu, Rasnayake, Själander (2018), BISMO: a scalable bit-serial matrix
        multiplication overlay for reconfigurable computing, FPL, arXiv 1806.08862.
    """

    bit_macs_per_s: float
    float_bits: int = 16
    batch: int = 1

    def __call__(self, layer: Layer, choice: Choice) -> float:
        if not _integers(choice):
            return math.nan
        w_bits, a_bits = (min(b, self.float_bits) for b in (choice.w_bits, choice.a_bits))
        return self.batch * layer.macs * w_bits * a_bits / self.bit_macs_per_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitFusion:
    """Time on units of sixteen 2-bit multipliers that fuse: (8/w')(8/a') products a cycle.

    w' and a' are the next of 2, 4 and 8 bits. Arithmetic and traffic add up: tiles are loaded,
    then computed. Wider operands, unquantized ones among them, do not run (NaN).

    Attributes:
        units: Fusion units.
        cycles_per_s: Clock.
        bytes_per_s: Memory bandwidth.
        batch: Examples of a call; weights are read once.

    References:
        Sharma et al. (2018), Bit Fusion: bit-level dynamically composable architecture for
        accelerating deep neural networks, ISCA, arXiv 1712.01507.
    """

    units: int
    cycles_per_s: float
    bytes_per_s: float
    batch: int = 1

    def __call__(self, layer: Layer, choice: Choice) -> float:
        if max(choice.w_bits, choice.a_bits) > 8 or not _integers(choice):
            return math.nan
        w_bits, a_bits = (max(2, _power_of_two(b)) for b in (choice.w_bits, choice.a_bits))
        per_cycle = self.units * (8 // w_bits) * (8 // a_bits)
        stored = Choice(w_bits, a_bits)
        arithmetic = self.batch * layer.macs / (per_cycle * self.cycles_per_s)
        return arithmetic + traffic_bytes(layer, stored, self.batch) / self.bytes_per_s


def _integers(choice: Choice) -> bool:
    """Whether quantized operands are plain integers."""
    return not (choice.weights.is_float or choice.activations.is_float)


def traffic_bytes(layer: Layer, choice: Choice, batch: int = 1) -> float:
    """Bytes of weights, input and output; the input of an embedding is 4-byte indices."""
    inputs = FLOAT_BITS if layer.kind == "embedding" else choice.a_bits
    weights = layer.parameters * choice.w_bits
    if layer.kind == "embedding":  # only the rows that are read
        weights = batch * layer.output_size * choice.w_bits
    activations = layer.input_size * inputs + layer.output_size * choice.a_bits
    return (weights + batch * activations) / 8


# Peak rates of data sheets and papers; two operations are one multiply-accumulate.
PRESETS: Mapping[ModelName, tuple[Callable[..., HardwareModel], str]] = {
    "roofline": (
        lambda batch: Roofline(
            macs_per_s={4: 130e12, 8: 65e12, 16: 32.5e12, 32: 4.05e12},
            bytes_per_s=320e9,
            batch=batch,
        ),
        "NVIDIA T4 (data sheet: 260 TOPS int4, 130 TOPS int8, 65 TFLOPS float16, 8.1 TFLOPS "
        "float32, 320 GB/s)",
    ),
    "bit_serial": (
        lambda batch: BitSerial(bit_macs_per_s=3.25e12, batch=batch),
        "BISMO on a PYNQ-Z1 (arXiv 1806.08862: 6.5 binary TOPS)",
    ),
    "bitfusion": (
        lambda batch: BitFusion(
            units=16 * 32, cycles_per_s=500e6, bytes_per_s=192 / 8 * 500e6, batch=batch
        ),
        "BitFusion as in its authors' simulator (arXiv 1712.01507; hsharma35/bitfusion, "
        "bf_e_conf.ini: 16 x 32 units, 500 MHz, 192 bits a cycle)",
    ),
}


def preset(name: str, *, batch: int = 1) -> tuple[HardwareModel, str]:
    """A published device by the name of its model, and where its numbers come from.

    Raises:
        ValueError: If there is no model of that name.
    """
    if name not in get_args(ModelName):
        raise ValueError(
            f"{name!r} is not a hardware model: expected one of {', '.join(PRESETS)}."
        )
    make, source = PRESETS[name]  # type: ignore[index]
    return make(batch), source


def model_table(
    model: HardwareModel, layers: Sequence[Layer], choices: Sequence[Choice]
) -> LatencyTable:
    """The seconds that a model predicts, those of unquantized layers where it knows them."""
    seconds: dict[str, dict[Choice, float]] = {}
    for layer in layers:
        row = {choice: model(layer, choice) for choice in {*choices, UNQUANTIZED}}
        seconds[layer.name] = {c: s for c, s in sorted(row.items()) if not math.isnan(s)}
    return LatencyTable(seconds=seconds)


def _power_of_two(bits: int) -> int:
    """The least power of two that is not below a number of bits."""
    return 1 << (bits - 1).bit_length()
