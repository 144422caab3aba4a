"""What a choice of bits costs: the definitions, as functions of the layer table.

Tables are [layers, choices] and additive over layers, except `activation_bytes`, whose peak
over the layers is what counts. Byte and bit counts are integers held exactly in float64.
MB = 10⁶ bytes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jmpq.formats import FLOAT_BITS, Choice
from jmpq.network.layers import Layer
from jmpq.quantizers.spec import KernelSpec

SCALE_BYTES = 4
FLOAT_BYTES = 4

COST_NAMES = ("size_bytes", "average_bits", "bops")  # those that add up over layers


@dataclasses.dataclass(frozen=True)
class Overhead:
    """What is stored beside the codes of the weights.

    Attributes:
        num_scales: Scales of each layer's kernel, in the order of the layer table; 4 bytes
            each. An unquantized kernel has none.
        zero_points: Whether every scale has a zero point (affine grid), stored at the bits
            of the weights and rounded up to whole bytes per kernel.
    """

    num_scales: tuple[int, ...]
    zero_points: bool = False

    @classmethod
    def of(cls, layers: Sequence[Layer], spec: KernelSpec) -> "Overhead":
        """The overhead of quantizing every kernel by one specification."""
        scales = tuple(spec.layer_scales(layer) for layer in layers)
        return cls(scales, spec.grid == "affine")


def tensor_bytes(
    parameters: int, bits: int, *, num_scales: int = 1, zero_points: bool = False
) -> int:
    """Bytes of one stored kernel: codes, 4-byte scales and zero points.

    >>> tensor_bytes(1001, 4, num_scales=3)  # ceil(500.5) + 12
    513
    >>> tensor_bytes(1001, 4, num_scales=3, zero_points=True)  # + ceil(1.5)
    515
    >>> tensor_bytes(1001, 32, num_scales=3)  # unquantized: no scales
    4004
    """
    if bits == FLOAT_BITS:
        return FLOAT_BYTES * parameters
    zero_point_bytes = _bytes(num_scales, bits) if zero_points else 0
    return _bytes(parameters, bits) + SCALE_BYTES * num_scales + zero_point_bytes


def _bytes(elements: int, bits: int) -> int:
    return -(-elements * bits // 8)


def layer_bops(layer: Layer, choice: Choice) -> int:
    """Bit operations of one example: MACs·w_bits·a_bits; none for an embedding."""
    return 0 if layer.kind == "embedding" else layer.macs * choice.w_bits * choice.a_bits


def layer_activation_bytes(layer: Layer, choice: Choice) -> int:
    """Bytes of one example's input and output, both at the layer's activation bits.

    The table does not know who consumes an output, so the output counts at the bits of the
    layer that makes it. The input of an embedding is 4-byte indices.
    """
    inputs = FLOAT_BITS if layer.kind == "embedding" else choice.a_bits
    return _bytes(layer.input_size, inputs) + _bytes(layer.output_size, choice.a_bits)


def size_bytes(
    layers: Sequence[Layer], choices: Sequence[Choice], overhead: Overhead
) -> Float[np.ndarray, "layers choices"]:
    """Bytes of each layer's stored kernel under each choice, scales and zero points included.

    The rest of the network (biases, norms, excluded layers) is a constant beside the table,
    4 bytes a parameter: `allocation_costs` and `Problem.constants` hold it. Scales of
    activations are not stored with the weights and not counted.

    Raises:
        ValueError: If `overhead` was made for another layer table.
    """
    _check_overhead(layers, overhead)
    return _table(
        [
            [
                tensor_bytes(
                    layer.parameters, c.w_bits, num_scales=n, zero_points=overhead.zero_points
                )
                for c in choices
            ]
            for layer, n in zip(layers, overhead.num_scales, strict=True)
        ],
        choices,
    )


def average_bits(
    layers: Sequence[Layer], choices: Sequence[Choice], overhead: Overhead
) -> Float[np.ndarray, "layers choices"]:
    """Each layer's share of the average bits per weight over `layers`, overhead included.

    The sum over layers is the average: all bits of the searched kernels with their scales
    and zero points, divided by the number of weights of `layers`. Leave excluded layers out
    of `layers`.
    """
    weights = sum(layer.parameters for layer in layers)
    return 8.0 * size_bytes(layers, choices, overhead) / max(weights, 1)


def bops(
    layers: Sequence[Layer], choices: Sequence[Choice]
) -> Float[np.ndarray, "layers choices"]:
    """Bit operations of one example: MACs·w_bits·a_bits of every conv and dense layer."""
    return _table([[layer_bops(layer, c) for c in choices] for layer in layers], choices)


def activation_bytes(
    layers: Sequence[Layer], choices: Sequence[Choice]
) -> Float[np.ndarray, "layers choices"]:
    """Bytes of input and output at batch 1; the peak over layers is the network's cost."""
    rows = [[layer_activation_bytes(layer, c) for c in choices] for layer in layers]
    return _table(rows, choices)


def cost_table(
    layers: Sequence[Layer], choices: Sequence[Choice], name: str, overhead: Overhead
) -> Float[np.ndarray, "layers choices"]:
    """The additive cost `name` of every layer and choice.

    Raises:
        ValueError: If `name` is not one of `COST_NAMES`.
    """
    match name:
        case "size_bytes":
            return size_bytes(layers, choices, overhead)
        case "average_bits":
            return average_bits(layers, choices, overhead)
        case "bops":
            return bops(layers, choices)
    raise _unknown(name)


def constant_cost(
    excluded: Sequence[Layer], name: str, unquantized_parameters: int = 0
) -> float:
    """The cost `name` of what no choice touches: excluded layers and other parameters.

    Raises:
        ValueError: If `name` is not one of `COST_NAMES`.
    """
    match name:
        case "size_bytes":
            parameters = unquantized_parameters + sum(x.parameters for x in excluded)
            return float(FLOAT_BYTES * parameters)
        case "bops":
            full = Choice(FLOAT_BITS, FLOAT_BITS)
            return float(sum(layer_bops(layer, full) for layer in excluded))
        case "average_bits":
            return 0.0
    raise _unknown(name)


def allocation_costs(
    layers: Sequence[Layer],
    bits: Mapping[str, Choice],
    overhead: Overhead,
    *,
    unquantized_parameters: int = 0,
) -> dict[str, float]:
    """Costs of one allocation of the whole network, layer by layer from the definitions.

    Args:
        layers: The layer table.
        bits: Choice of every searched layer, by name. A layer that is not named is left
            unquantized: it counts at 32 bits, and not at all in `average_bits`.
        overhead: Scales and zero points, in the order of `layers`.
        unquantized_parameters: Parameters outside the table (biases, norms), 4 bytes each.

    Returns:
        ``size_bytes``, ``average_bits``, ``bops`` and ``activation_bytes`` (the peak).

    Raises:
        ValueError: If `bits` names a layer that is not in the table.
    """
    _check_overhead(layers, overhead)
    if unknown := sorted(set(bits) - {layer.name for layer in layers}):
        raise ValueError(
            f"No layer is called {', '.join(map(repr, unknown))}; the layers are "
            f"{', '.join(layer.name for layer in layers)}."
        )
    size, searched_bytes, searched_weights, operations, peak = 0, 0, 0, 0, 0
    for layer, scales in zip(layers, overhead.num_scales, strict=True):
        choice = bits.get(layer.name, Choice(FLOAT_BITS, FLOAT_BITS))
        stored = tensor_bytes(
            layer.parameters,
            choice.w_bits,
            num_scales=scales,
            zero_points=overhead.zero_points,
        )
        size += stored
        if layer.name in bits:
            searched_bytes += stored
            searched_weights += layer.parameters
        operations += layer_bops(layer, choice)
        peak = max(peak, layer_activation_bytes(layer, choice))
    return {
        "size_bytes": float(size + FLOAT_BYTES * unquantized_parameters),
        "average_bits": 8.0 * searched_bytes / max(searched_weights, 1),
        "bops": float(operations),
        "activation_bytes": float(peak),
    }


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"{name!r} is not a cost that adds up over layers: expected one of "
        f"{', '.join(COST_NAMES)}."
    )


def _check_overhead(layers: Sequence[Layer], overhead: Overhead) -> None:
    if len(overhead.num_scales) != len(layers):
        raise ValueError(
            f"The overhead counts scales of {len(overhead.num_scales)} layers, the table has "
            f"{len(layers)}: build it with Overhead.of(layers, spec)."
        )


def _table(rows: list[list[int]], choices: Sequence[Choice]) -> Float[np.ndarray, "_ _"]:
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(choices))
