"""What a choice of formats costs: the definitions, and how each cost is written for people.

`COSTS` has one entry a cost; budgets, plans, command line and report take all they need from
it. To add one, write its table and its entry. Byte and bit counts are integers held exactly in
float64. MB = 10⁶ bytes. `MEASURED` has the costs whose table comes with a run: `latency_s`.
`OF_CACHE` has those that only layer tables with keys and values have: `kv_bytes`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jmpq.allocation import Allocation
from jmpq.formats import UNQUANTIZED, Choice, Scheme, SchemeLike
from jmpq.network.layers import Layer
from jmpq.problem.exact_sum import exact_sum
from jmpq.quantizers.spec import KernelSpec
from jmpq.text import did_you_mean

SCALE_BYTES = 4
FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Overhead:
    """What is stored beside the codes of the weights.

    Attributes:
        num_scales: Scales of each layer's kernel by a plain format, in the order of the layer
            table. Formats with blocks of their own have as many scales as blocks; an
            unquantized kernel has none.
        zero_points: Whether every scale of integers has a zero point (affine grid), stored at
            the bits of the weights and rounded up to whole bytes per kernel.
    """

    num_scales: tuple[int, ...]
    zero_points: bool = False

    @classmethod
    def of(cls, layers: Sequence[Layer], spec: KernelSpec) -> "Overhead":
        """The overhead of quantizing every kernel by one specification."""
        scales = tuple(spec.layer_scales(layer) for layer in layers)
        return cls(scales, spec.grid == "affine")

    def part(self, rows: Sequence[int]) -> "Overhead":
        """The overhead of some of the layers."""
        return Overhead(tuple(self.num_scales[row] for row in rows), self.zero_points)


Table = Float[np.ndarray, "layers choices"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """One cost of an allocation.

    Attributes:
        name: Key of the cost in budgets, plans and tables; the unit is in it.
        title: Noun that stands for the cost in tables, figures and sentences.
        unit: Unit of the number. ``bytes`` are written in kB or MB, ``s`` in s, ms or µs, a
            count (no unit) in a power of ten, anything else as it is.
        table: Cost of every searched layer under every choice, from the searched layers, the
            choices and the layers' overhead; NaN where it is not known.
        excluded: Whether excluded layers count, unquantized.
        per_parameter: Cost of every parameter outside the layer table (biases, norms).
        peak: Whether the network's cost is the largest of its layers' and not their sum. A
            budget on a peak allows or forbids every choice by itself.
        fixed: Cost of the network that neither layers nor parameters have.
        unquantized: Cost of the unquantized network, where it is not that of the layers.
    """

    name: str
    title: str
    unit: str
    table: Callable[[Sequence[Layer], Sequence[Choice], Overhead], Table]
    excluded: bool = True
    per_parameter: float = 0.0
    peak: bool = False
    fixed: float = 0.0
    unquantized: float | None = None

    def constant(self, excluded: Sequence[Layer], unquantized_parameters: int = 0) -> float:
        """Cost of what no choice touches: excluded layers and other parameters."""
        parts = [self.fixed, self.per_parameter * unquantized_parameters]
        if excluded and self.excluded:
            overhead = Overhead((0,) * len(excluded))
            parts += self.table(excluded, (UNQUANTIZED,), overhead)[:, 0].tolist()
        return self.total(np.array(parts))

    def total(self, parts: Float[np.ndarray, " parts"]) -> float:
        """Cost of the network from those of its layers and its constant."""
        return float(parts.max(initial=0.0)) if self.peak else exact_sum(parts)

    def scale(self, largest: float) -> tuple[float, str]:
        """Divisor and unit in which numbers up to `largest` are written.

        >>> COSTS["size_bytes"].scale(2e6), COSTS["bops"].scale(4e10)
        ((1000000.0, 'MB'), (1000000000.0, '10⁹'))
        """
        if self.unit == "bytes":
            return (1e6, "MB") if largest >= 1e5 else (1e3, "kB")
        if self.unit == "s" and 0 < largest < 1:
            return (1e-3, "ms") if largest >= 1e-3 else (1e-6, "µs")
        if self.unit or largest < 1e3:
            return 1.0, self.unit
        divisor = 10.0 ** (3 * (math.floor(math.log10(largest)) // 3))
        return divisor, _power_of_ten(divisor)

    def label(self, largest: float) -> str:
        """Title and unit, for an axis or the head of a column of numbers up to `largest`.

        >>> COSTS["size_bytes"].label(2e6), COSTS["bops"].label(4e10)
        ('size (MB = 10⁶ bytes)', 'bit operations (10⁹)')
        """
        divisor, unit = self.scale(largest)
        if self.unit == "bytes":
            unit = f"{unit} = {_power_of_ten(divisor)} bytes"
        return f"{self.title} ({unit})" if unit else self.title

    def text(self, value: float, *, largest: float | None = None) -> str:
        """A number with its unit, in the unit of `largest` (by default its own).

        >>> COSTS["size_bytes"].text(270e3), COSTS["bops"].text(1.5e9)
        ('0.27 MB', '1.5 · 10⁹')
        """
        divisor, unit = self.scale(value if largest is None else largest)
        between = " " if self.unit else " · "
        return f"{value / divisor:.4g}{between}{unit}" if unit else f"{value:.4g}"


def _power_of_ten(divisor: float) -> str:
    power = str(round(math.log10(divisor)))
    return "10" + power.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def known_costs() -> dict[str, Cost]:
    """Every cost, also those that not every run has: for names, titles and units."""
    return {**COSTS, **OF_CACHE, **MEASURED}


def costs_of_layers(layers: Sequence[Layer], costs: Mapping[str, Cost]) -> dict[str, Cost]:
    """The costs, those of keys and values too where the layer table has such rows."""
    cached = any(layer.kind == "cache" for layer in layers)
    return {**costs, **OF_CACHE} if cached else dict(costs)


def additive_costs(costs: Mapping[str, Cost] | None = None) -> dict[str, Cost]:
    """The costs that add up over layers, which may have budgets; of all by default."""
    every = known_costs() if costs is None else costs
    return {name: cost for name, cost in every.items() if not cost.peak}


def additive_cost(name: str) -> Cost:
    """A cost that adds up over layers.

    Raises:
        ValueError: If there is none of that name; the message lists them.
    """
    known = additive_costs()
    if name not in known:
        raise ValueError(
            f"{name!r} is not a cost that adds up over layers.{did_you_mean(name, known)} "
            f"Expected one of {', '.join(known)}."
        )
    return known[name]


def allocation_costs(
    layers: Sequence[Layer],
    allocation: Allocation,
    overhead: Overhead,
    *,
    unquantized_parameters: int = 0,
    costs: Mapping[str, Cost] | None = None,
) -> dict[str, float]:
    """Every cost of one allocation of the whole network, peaks included.

    Args:
        layers: The layer table.
        allocation: Choice of every searched layer. A layer that it does not name is left
            unquantized: it counts at 32 bits, and not at all in `average_bits`.
        overhead: Scales and zero points, in the order of `layers`.
        unquantized_parameters: Parameters outside the table (biases, norms), 4 bytes each.
        costs: Costs by name, `COSTS` by default; one that is not known of every choice of the
            allocation is left out.

    Raises:
        ValueError: If `allocation` names a layer that is not in the table.
    """
    _check_overhead(layers, overhead)
    if unknown := sorted(set(allocation) - {layer.name for layer in layers}):
        raise ValueError(
            f"No layer is called {', '.join(map(repr, unknown))}."
            f"{did_you_mean(unknown[0], [layer.name for layer in layers])} The layers are "
            f"{', '.join(layer.name for layer in layers)}."
        )
    rows = [row for row, layer in enumerate(layers) if layer.name in allocation]
    searched = [layers[row] for row in rows]
    excluded = [layer for layer in layers if layer.name not in allocation]
    choices = tuple(dict.fromkeys(allocation.values()))
    columns = [choices.index(allocation[layer.name]) for layer in searched]
    found = {}
    for name, cost in costs_of_layers(layers, COSTS if costs is None else costs).items():
        table = cost.table(searched, choices, overhead.part(rows))
        constant = cost.constant(excluded, unquantized_parameters)
        total = cost.total(np.append(table[np.arange(len(rows)), columns], constant))
        if not math.isnan(total):
            found[name] = total
    return found


def tensor_bytes(
    parameters: int, scheme: SchemeLike, *, num_scales: int = 1, zero_points: bool = False
) -> int:
    """Bytes of one stored kernel: codes, scales, zero points, the scale of the tensor.

    Free scales have 4 bytes, powers of two (mx) and e4m3 (nvfp4, with 4 bytes for the tensor)
    have 1; bf16 and f16 have none. Only integers have zero points.

    >>> tensor_bytes(1001, 4, num_scales=3)  # ceil(500.5) + 12
    513
    >>> tensor_bytes(1001, 4, num_scales=3, zero_points=True)  # + ceil(1.5)
    515
    >>> tensor_bytes(1001, 32, num_scales=3)  # unquantized: no scales
    4004
    >>> tensor_bytes(1024, "mxfp4", num_scales=32), tensor_bytes(1024, "nvfp4", num_scales=64)
    (544, 580)
    """
    scheme = Scheme.of(scheme)
    codes = _bytes(parameters, scheme.bits)
    match scheme.scale:
        case "none":
            return codes
        case "e8m0":
            return codes + num_scales
        case "e4m3":
            return codes + num_scales + SCALE_BYTES
    stored = SCALE_BYTES * num_scales
    if zero_points and not scheme.is_float:
        stored += _bytes(num_scales, scheme.bits)
    return codes + stored


def kernel_scales(layer: Layer, scheme: Scheme, plain: int) -> int:
    """Number of scales of a layer's kernel by a scheme, `plain` those of a plain format."""
    if scheme.block is None:
        return plain
    return layer.output_features * -(-layer.columns // scheme.block)


def product_bit_operations(weights: Scheme, activations: Scheme) -> int:
    """Bit operations of one multiplication; of integers, the product of their bits.

    A multiplier of integers of b and c bits has b·c one-bit products. A float multiplies
    significands: an integer of its mantissa, the leading one and the sign, m + 2 bits. Two
    floats also add their exponents, one operation for each bit of the wider. Accumulators
    count for no format, nor do scales, one product for a whole block. Unquantized counts as an
    integer of 32 bits, as the literature has it.

    >>> e4m3, int4 = Scheme.of("fp8_e4m3"), Scheme.of("int4")
    >>> product_bit_operations(int4, int4), product_bit_operations(int4, e4m3)
    (16, 20)
    >>> product_bit_operations(e4m3, e4m3)  # 5 · 5 + 4
    29
    """
    w, a = weights.format, activations.format
    exponents = (
        max(w.exponent_bits, a.exponent_bits) if w.exponent_bits and a.exponent_bits else 0
    )
    return w.significand_bits * a.significand_bits + exponents


def _bytes(elements: int, bits: int) -> int:
    return -(-elements * bits // 8)


def _size_bytes(
    layers: Sequence[Layer], choices: Sequence[Choice], overhead: Overhead
) -> Table:
    """Bytes of each layer's stored kernel, scales and zero points included.

    Scales of activations are not stored with the weights and not counted.
    """
    _check_overhead(layers, overhead)

    def stored(layer: Layer, choice: Choice, plain: int) -> int:
        if layer.kind == "cache":
            return 0
        num_scales, zero_points = (
            kernel_scales(layer, choice.weights, plain),
            overhead.zero_points,
        )
        return tensor_bytes(
            layer.parameters, choice.weights, num_scales=num_scales, zero_points=zero_points
        )

    rows = [
        [stored(layer, choice, plain) for choice in choices]
        for layer, plain in zip(layers, overhead.num_scales, strict=True)
    ]
    return _table(rows, choices)


def _average_bits(
    layers: Sequence[Layer], choices: Sequence[Choice], overhead: Overhead
) -> Table:
    """Each layer's share of the effective bits per weight over `layers`, overhead included.

    The sum over layers is the average: all bits of the searched kernels with their scales
    and zero points, divided by the number of weights of `layers`.
    """
    weights = sum(layer.parameters for layer in layers)
    return 8.0 * _size_bytes(layers, choices, overhead) / max(weights, 1)


def _bops(layers: Sequence[Layer], choices: Sequence[Choice], overhead: Overhead) -> Table:
    """Bit operations of one example, MACs·w_bits·a_bits of integers; none for an embedding.

    `product_bit_operations` says what a multiplication of other formats counts.
    """

    def operations(layer: Layer, choice: Choice) -> int:
        if layer.kind == "embedding":
            return 0
        return layer.macs * product_bit_operations(choice.weights, choice.activations)

    return _table([[operations(layer, c) for c in choices] for layer in layers], choices)


def _activation_bytes(
    layers: Sequence[Layer], choices: Sequence[Choice], overhead: Overhead
) -> Table:
    """Bytes of one example's input and output, both at the layer's activation bits.

    The table does not know who consumes an output, so the output counts at the bits of the
    layer that makes it. The input of an embedding is 4-byte indices. Of a cache the keys or
    values count alone. Blocks that bring their scale (mx, nvfp4) have a byte more each, counted
    through the flat tensor.
    """

    def held(layer: Layer, choice: Choice) -> int:
        inputs = UNQUANTIZED.weights if layer.kind == "embedding" else choice.activations
        output = 0 if layer.kind == "cache" else layer.output_size
        values = _activation_values
        return values(layer.input_size, inputs) + values(output, choice.activations)

    return _table([[held(layer, c) for c in choices] for layer in layers], choices)


def _kv_bytes(layers: Sequence[Layer], choices: Sequence[Choice], overhead: Overhead) -> Table:
    """Bytes of keys or values of one token; none of other layers.

    Blocks that bring their scale (mx, nvfp4) have a byte more each, blocks of every token by
    themselves. Calibrated scales are the same for all tokens and do not count.
    """

    def kept(layer: Layer, choice: Choice) -> int:
        if layer.kind != "cache":
            return 0
        return _activation_values(math.prod(layer.input_shape[1:]), choice.activations)

    return _table([[kept(layer, c) for c in choices] for layer in layers], choices)


def _activation_values(elements: int, scheme: Scheme) -> int:
    """Bytes of a flat tensor of activations, its own scales included."""
    blocks = scheme.scale in ("e8m0", "e4m3") and scheme.block
    return _bytes(elements, scheme.bits) + (-(-elements // blocks) if blocks else 0)


def _table(rows: list[list[int]], choices: Sequence[Choice]) -> Table:
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(choices))


def _check_overhead(layers: Sequence[Layer], overhead: Overhead) -> None:
    if len(overhead.num_scales) != len(layers):
        raise ValueError(
            f"The overhead counts scales of {len(overhead.num_scales)} layers, the table has "
            f"{len(layers)}: build it with Overhead.of(layers, spec)."
        )


COSTS: Mapping[str, Cost] = {
    cost.name: cost
    for cost in (
        Cost(
            name="size_bytes",
            title="size",
            unit="bytes",
            table=_size_bytes,
            per_parameter=float(FLOAT_BYTES),
        ),
        Cost(
            name="average_bits",
            title="average",
            unit="bits a weight",
            table=_average_bits,
            excluded=False,
        ),
        Cost(name="bops", title="bit operations", unit="", table=_bops),
        Cost(
            name="activation_bytes",
            title="activation peak",
            unit="bytes",
            table=_activation_bytes,
            peak=True,
        ),
    )
}


OF_CACHE: Mapping[str, Cost] = {
    "kv_bytes": Cost(
        name="kv_bytes",
        title="keys and values of a token",
        unit="bytes",
        table=_kv_bytes,
    )
}


def _not_measured(
    layers: Sequence[Layer], choices: Sequence[Choice], overhead: Overhead
) -> Table:
    """The table of a cost that nobody has measured: nothing is known."""
    return np.full((len(layers), len(choices)), np.nan)


MEASURED: Mapping[str, Cost] = {
    "latency_s": Cost(name="latency_s", title="latency", unit="s", table=_not_measured)
}
