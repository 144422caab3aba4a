"""Common result and error of exchange files, and the sentences on lost information."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jmpq.export.codes import Coded
from jmpq.formats import FLOAT_BITS, UNQUANTIZED, Choice
from jmpq.network.layers import Layer
from jmpq.quantizers.spec import TensorSpec


class NotExpressible(ValueError):
    """Error: a tool does not support a choice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """An allocation in a tool's format.

    Attributes:
        content: JSON value that the tool reads.
        left_out: Information that the file cannot express, one sentence each.
        companions: Accompanying files, by suffix.
    """

    content: Any
    left_out: tuple[str, ...]
    companions: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


Tool = Callable[[Coded], Exchange]


def refused(layer: Layer, choice: Choice, tool: str, can: str) -> NotExpressible:
    """Error for a choice that a tool does not support; `can` describes what it supports."""
    return NotExpressible(
        f"{tool} cannot express layer {layer.name!r} at {choice.label}: {can}. Solve with a "
        "rule 'allow PATTERN=...' that leaves the choice out, or export to another format."
    )


def quantized_layers(coded: Coded) -> list[tuple[Layer, Choice]]:
    """Layers whose weights or input are quantized, with their choice."""
    taken = [
        (x, coded.allocation.choices.get(x.name, UNQUANTIZED)) for x in coded.network.layers
    ]
    return [(layer, choice) for layer, choice in taken if choice != UNQUANTIZED]


def check_widths(
    coded: Coded, tool: str, w_bits: Collection[int], a_bits: Collection[int]
) -> None:
    """Check that all choices are plain integers of supported bits.

    Args:
        coded: The network under the allocation.
        tool: Name of the tool.
        w_bits: Supported bits of weights, including 32 if they may stay unquantized.
        a_bits: Supported bits of inputs, likewise.

    Raises:
        NotExpressible: If a choice is not supported; the message names the layer.
    """
    for layer, choice in quantized_layers(coded):
        pairs = (
            ("weights", choice.weights, w_bits),
            ("activations", choice.activations, a_bits),
        )
        for what, scheme, known in pairs:
            if layer.kind == "embedding" and what == "activations":
                continue  # its input is indices
            if scheme.number not in known:
                bits = sorted(set(known) - {FLOAT_BITS})
                own = f"integers of {bits[0]} to {bits[-1]} bits"
                if len(bits) != bits[-1] - bits[0] + 1:
                    own = f"integers of {' or '.join(map(str, bits))} bits"
                floats = " or unquantized" if FLOAT_BITS in known else ""
                raise refused(layer, choice, tool, f"{what} are {own}{floats} there")


def check_modules(coded: Coded, tool: str) -> None:
    """Check that no slice of a stacked parameter is quantized: tools see whole modules only.

    Raises:
        NotExpressible: If a slice is quantized.
    """
    for layer, choice in quantized_layers(coded):
        if layer.name.endswith("]"):
            raise refused(
                layer, choice, tool,
                "it goes by modules, and this is a slice of a stacked parameter",
            )  # fmt: skip


def dotted(name: str) -> str:
    """PyTorch name of a layer: ``layer1.0.conv1``."""
    return name.replace("/", ".")


def left_out(
    coded: Coded,
    tool: str,
    *,
    weights: Mapping[str, Collection[str]],
    inputs: Mapping[str, Collection[str]],
    scales: bool = False,
) -> tuple[str, ...]:
    """One sentence for each option of the quantizers that a tool cannot express.

    Args:
        coded: The network under the allocation.
        tool: Name of the tool.
        weights: Supported options of kernels: grids, granularities and so on.
        inputs: Supported options of inputs.
        scales: Whether the file holds scales.
    """
    chosen = quantized_layers(coded)
    used = {
        "Weights": (coded.weights, weights, any(x is not None for x in coded.kernels)),
        "Inputs": (coded.activations, inputs, any(x is not None for x in coded.inputs)),
    }
    found = [
        sentence
        for what, (spec, known, there) in used.items()
        if there
        for sentence in _differences(what, spec, tool, known)
    ]
    if chosen and not scales:
        found.append(f"Scales: {tool} finds its own.")
    if any(x is not None for x in coded.stream):
        found.append("Tensors of the stream between layers: not in the file.")
    if coded.corrections:
        found.append(
            f"Corrections of {len(coded.corrections)} layers' outputs: not in the file."
        )
    return tuple(found)


def _differences(
    what: str, spec: TensorSpec, tool: str, known: Mapping[str, Collection[str]]
) -> list[str]:
    return [
        f"{what}: {option} {getattr(spec, option)!r} here, {' or '.join(map(repr, values))} "
        f"in {tool}."
        for option, values in known.items()
        if getattr(spec, option) not in values
    ]
