"""How a batch goes through a metric: on which devices, in which parts, with how much memory."""

import dataclasses
import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jmpq.devices import EXAMPLES, mesh_for, replicate, spread
from jmpq.sensitivity.metric import FromChanges, Looped, Metric, Program
from jmpq.sensitivity.moves import MoveNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassMemory:
    """Memory that one pass takes on every device, as XLA planned it when it compiled the pass.

    Attributes:
        bytes: Size of arguments, results and all that lies between them, at the peak of the
            largest program. Work space that an operation takes for itself while it runs
            (convolutions on a CPU do) is not known to XLA.
        examples: Number of examples at a time on one device.
    """

    bytes: int
    examples: int


class Placement:
    """Puts a network and batches on the devices of a mesh, or leaves them where they are."""

    def __init__(self, moves: MoveNetwork, mesh: Mesh | None) -> None:
        self.moves, self.mesh = moves, mesh
        self.size = 1 if mesh is None else mesh.size
        self._placed: dict[int, MoveNetwork] = {}  # by number of shards

    def __call__(self, inputs: PyTree, targets: Any) -> tuple[MoveNetwork, PyTree, Any]:
        """The network and a batch where they belong; shapes may stand for the batch."""
        if self.mesh is None:
            known = isinstance(targets, jax.ShapeDtypeStruct)
            return self.moves, inputs, targets if known else jnp.asarray(targets)
        grid = mesh_for(self.mesh, targets.shape[0])
        if (shards := grid.shape[EXAMPLES]) not in self._placed:
            moves = dataclasses.replace(self.moves, shards=shards)
            self._placed[shards] = replicate(grid, moves)
        return self._placed[shards], *spread(grid, (inputs, targets))


def cuts(count: int, devices: int, most: int) -> list[int]:
    """Where a batch is cut: parts of at most `most` examples a device.

    Parts that divide by the number of devices first, then the rest of fewer examples than
    devices, at once if it fits on as many devices as it divides by.

    >>> cuts(27, devices=8, most=2), cuts(27, devices=8, most=3)
    ([0, 16, 24, 25, 26, 27], [0, 24, 27])
    """
    rest = count % devices
    whole, shards = count - rest, math.gcd(rest, devices)
    step = rest if rest <= most * shards else shards
    return [*range(0, whole, most * devices), *range(whole, count, step or 1), count]


def estimate_memory(
    metric: Metric,
    place: Placement,
    inputs: PyTree,
    targets: Any,
    *,
    count: int,
    divisible: bool,
    memory_bytes: int | None = None,
) -> PassMemory | None:
    """Memory of a pass on each device; with a limit, of as many examples as fit.

    Compiles the pass and runs nothing. Where it is too large, memory is interpolated between
    one example and all of them, the pass of that many examples compiled, and halved until
    what XLA says of it is within the limit.

    Args:
        metric: The metric.
        place: Network, quantizers and devices.
        inputs: Any batch, or its shapes: only the shape of an example matters.
        targets: Likewise.
        count: Examples of the largest batch.
        divisible: Whether a batch may be cut into parts (`cuts`).
        memory_bytes: Most that a pass may take on one device; no limit by default.

    Returns:
        None for a metric that loops on the host and does not tell its programs, or where XLA
        does not tell their memory.

    Raises:
        ValueError: If not even one example (not divisible: the batch) fits.
    """
    shards, most = _largest_pass(count, place.size, divisible=divisible)

    def needed(examples: int) -> int | None:
        batch = _shapes((inputs, targets), examples * shards)
        key = jax.random.key(0)
        key = jax.random.split(key, examples * shards) if divisible else key
        return _bytes(metric, *place(*batch), key)

    if (need := needed(most)) is None:
        return None
    if memory_bytes is None or need <= memory_bytes:
        return PassMemory(bytes=need, examples=most)
    least = needed(1) if divisible and most > 1 else need
    assert least is not None
    if least > memory_bytes:
        name, fewest = metric.about.name, 1 if divisible else most
        raise ValueError(
            f"Metric {name!r} takes {least / 1e6:.3g} MB for {fewest} "
            f"{'example' if fewest == 1 else 'examples'} on a device, more than the limit of "
            f"{memory_bytes / 1e6:.3g} MB. Raise the limit, or use "
            f"{'fewer candidate bits' if divisible else 'smaller batches'}."
        )
    examples = 1 + int((memory_bytes - least) / (need - least) * (most - 1))
    while examples > 1:
        need = needed(examples)
        assert need is not None
        if need <= memory_bytes:
            return PassMemory(bytes=need, examples=examples)
        examples //= 2
    return PassMemory(bytes=least, examples=1)


def programs_of(
    metric: Metric, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
) -> list[Program] | None:
    """Programs that a metric compiles for a batch: its call or parts, or what it tells."""
    if isinstance(metric, Looped):
        return metric.programs(moves, inputs, targets, key)
    if isinstance(metric, FromChanges):
        changes = Program(type(metric).move_changes, (metric, moves, inputs, targets, key))
        args = (metric, changes.results(), targets)
        return [changes, Program(type(metric).terms, args)]
    call = type(metric).__call__
    if not hasattr(call, "lower"):
        return None
    return [Program(call, (metric, moves, inputs, targets, key))]


def _largest_pass(count: int, devices: int, *, divisible: bool) -> tuple[int, int]:
    """Into how many parts the largest pass is spread, and the examples in each.

    >>> _largest_pass(27, 8, divisible=True), _largest_pass(27, 8, divisible=False)
    ((8, 3), (1, 27))
    """
    ends = cuts(count, devices, count) if divisible else [0, count]
    shards = {stop - start: math.gcd(stop - start, devices) for start, stop in pairwise(ends)}
    largest = max(shards, key=lambda n: (n // shards[n], n))
    return shards[largest], largest // shards[largest]


def _bytes(
    metric: Metric, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
) -> int | None:
    """Peak of the largest program of a metric on one device."""
    programs = programs_of(metric, moves, inputs, targets, key)
    plans = [program.compiled().memory_analysis() for program in programs or ()]
    if not plans or any(memory is None for memory in plans):
        return None
    return max(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
        for memory in plans
    )


def _shapes(batch: PyTree, examples: int) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype), batch
    )
