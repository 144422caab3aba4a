"""How much memory and work a metric takes, and how many examples go through at a time."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, PyTree

from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.program_cost import ProgramCost, program_cost

Program = tuple[Callable[..., Any], Sequence[Any], int]  # function, arguments, calls a batch


@runtime_checkable
class Looped(Protocol):
    """A metric that turns results into numbers on the host: it tells what it compiles."""

    def programs(self, moves: MoveNetwork, inputs: PyTree, targets: Any) -> list[Program]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a metric takes; by `jmpq.sensitivity.program_cost`, before it is compiled.

    Attributes:
        bytes: Peak on one device: parameters, the examples of a pass, intermediate results.
        forward_passes: Operations of convolutions and matrix products, in forward passes of
            the unquantized network over the same examples.
        examples: At a time on one device.
    """

    bytes: int
    forward_passes: float
    examples: int


def estimate(
    metric: Callable[..., Any],
    moves: MoveNetwork,
    inputs: PyTree,
    targets: Any,
    *,
    examples: int,
    memory_bytes: int | None = None,
    divisible: bool = True,
) -> Estimate | None:
    """What a metric takes for some examples on one device, or for as many as memory allows.

    Memory grows in proportion to the examples of a pass, so two walks through the program
    tell how many fit.

    Args:
        metric: The metric.
        moves: Network, quantizers and their moves.
        inputs: Any batch, or its shapes: only the shape of an example matters.
        targets: Likewise.
        examples: On one device.
        memory_bytes: Most that a pass may take on one device; no limit by default.
        divisible: Whether a batch may be cut into parts.

    Returns:
        None for a metric that loops on the host and does not tell its programs.

    Raises:
        ValueError: If not even one example (not divisible: the batch) fits.
    """
    cost = _cost(metric, moves, inputs, targets, examples)
    if cost is None:
        return None
    fit, whole = examples, cost
    if memory_bytes is not None and cost.bytes > memory_bytes:
        one = _cost(metric, moves, inputs, targets, 1) if divisible and examples > 1 else cost
        assert one is not None
        if one.bytes > memory_bytes:
            name, count = getattr(metric, "name", metric), 1 if divisible else examples
            raise ValueError(
                f"Metric {name!r} takes about {one.bytes / 1e6:.1f} MB for {count} "
                f"{'example' if count == 1 else 'examples'} on a device, more than the limit "
                f"of {memory_bytes / 1e6:.1f} MB. Raise the limit, or use "
                f"{'fewer candidate bits' if divisible else 'smaller batches'}."
            )
        slope = (cost.bytes - one.bytes) / (examples - 1)
        fit = 1 + int((memory_bytes - one.bytes) / slope)
        cost = ProgramCost(round(one.bytes + slope * (fit - 1)), cost.operations)
    forward = program_cost(_forward, moves, _shapes(inputs, examples))
    return Estimate(
        bytes=cost.bytes,
        forward_passes=whole.operations / max(forward.operations, 1),
        examples=fit,
    )


def _forward(moves: MoveNetwork, inputs: PyTree) -> Array:
    return moves.network.run(inputs, lambda site, layer, x, leaf, op: op(x, leaf))


def _cost(
    metric: Callable[..., Any], moves: MoveNetwork, inputs: PyTree, targets: Any, examples: int
) -> ProgramCost | None:
    """Peak of one batch of so many examples with its arguments, and all its operations."""
    inputs, targets = _shapes(inputs, examples), _shapes(targets, examples)
    if isinstance(metric, Looped):
        programs = metric.programs(moves, inputs, targets)
    else:
        programs = [(metric, (moves, inputs, targets, jax.random.key(0)), 1)]
    try:
        costs = [(program_cost(function, *args), n) for function, args, n in programs]
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return None
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((moves, inputs, targets)))
    return ProgramCost(
        held + max(cost.bytes for cost, _ in costs),
        sum(n * cost.operations for cost, n in costs),
    )


def _shapes(batch: PyTree, examples: int) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype), batch
    )
