"""How a batch goes through a metric: on which devices, in which parts, with how much memory.

A limit of memory bounds what XLA plans for a pass on each device; on a CPU on request the whole
process: what is resident before the pass, and what the pass adds, which is more than XLA's
plan. Convolutions take work space of their own there (as much again in MobileNetV2), and
the allocator keeps it. So every program runs once, on one example of zeros, and what it
adds to the process per planned byte is taken for passes of more examples too.
"""

import contextlib
import ctypes
import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jmpq.devices import EXAMPLES, mesh_for, replicate, spread
from jmpq.sensitivity.metric import FromChanges, Looped, Metric, Program
from jmpq.sensitivity.moves import MoveNetwork

UNMEASURED = 2.5  # bytes per planned byte where they cannot be measured: MobileNetV2's


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassMemory:
    """Memory that one pass takes on every device.

    Attributes:
        bytes: Size of arguments, results and all that lies between them, at the peak of the
            largest program, as XLA planned it when it compiled the pass.
        examples: Number of examples at a time on one device.
        resident: Bytes of the whole process at that peak, where a limit bounds the process.
    """

    bytes: int
    examples: int
    resident: int | None = None


class Placement:
    """Puts a network and batches on the devices of a mesh, or leaves them where they are."""

    def __init__(self, moves: MoveNetwork, mesh: Mesh | None) -> None:
        self.moves, self.mesh = moves, mesh
        self.size = 1 if mesh is None else mesh.size
        self.local_size = 1 if mesh is None else len(mesh.local_devices)
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
    of_process: bool = False,
) -> PassMemory | None:
    """Memory of a pass on each device; with a limit, of as many examples as fit.

    Compiles the pass and runs nothing, but for a limit of the process one example of zeros
    (`bytes_per_planned`). Where it is too large, memory is interpolated between one example and
    all of them, the pass of that many examples compiled, and halved until it is within the
    limit.

    Args:
        metric: The metric.
        place: Network, quantizers and devices.
        inputs: Any batch, or its shapes: only the shape of an example matters.
        targets: Likewise.
        count: Examples of the largest batch.
        divisible: Whether a batch may be cut into parts (`cuts`).
        memory_bytes: Most that a pass may take on one device; no limit by default.
        of_process: Whether the limit is one of the whole process where devices are CPUs.

    Returns:
        None for a metric that loops on the host and does not tell its programs, or where XLA
        does not tell their memory.

    Raises:
        ValueError: If not even one example (not divisible: the batch) fits.
    """
    shards, most = _largest_pass(count, place.size, divisible=divisible)

    def needed(examples: int) -> _Planned | None:
        batch = _shapes((inputs, targets), examples * shards)
        key = jax.random.key(0)
        key = jax.random.split(key, examples * shards) if divisible else key
        return _largest(metric, *place(*batch), key)

    if (need := needed(most)) is None:
        return None
    if memory_bytes is None:
        return PassMemory(bytes=need.all, examples=most)
    growth = 1.0
    if process := of_process and _on_cpu(place):
        one, label = _shapes((inputs, targets), 1)
        key = jax.random.split(jax.random.key(0), 1) if divisible else jax.random.key(0)
        programs = programs_of(metric, place.moves, one, label, key) or []
        growth = place.local_size * bytes_per_planned(programs)

    def before() -> int:
        """What the process has, compiled programs and the arguments of the pass included."""
        _give_back()
        return resident_bytes() if process else 0

    def limited(planned: _Planned) -> int:
        return before() + int(growth * planned.added) if process else planned.all

    def found(planned: _Planned, examples: int) -> PassMemory:
        resident = limited(planned) if process else None
        return PassMemory(bytes=planned.all, examples=examples, resident=resident)

    if limited(need) <= memory_bytes:
        return found(need, most)
    least = needed(1) if divisible and most > 1 else need
    assert least is not None
    if limited(least) > memory_bytes:
        name, fewest = metric.about.name, 1 if divisible else most
        there = before()
        beside = f" beside {there / 1e6:.3g} MB that the process has" if there else ""
        raise ValueError(
            f"Metric {name!r} takes {(limited(least) - there) / 1e6:.3g} MB for {fewest} "
            f"{'example' if fewest == 1 else 'examples'} on a device{beside}, more than the "
            f"limit of {memory_bytes / 1e6:.3g} MB. Raise the limit, or use "
            f"{'fewer candidate bits' if divisible else 'smaller batches'}."
        )
    share = (memory_bytes - limited(least)) / (limited(need) - limited(least))
    examples = 1 + int(share * (most - 1))
    while examples > 1:
        need = needed(examples)
        assert need is not None
        if limited(need) <= memory_bytes:
            return found(need, examples)
        examples //= 2
    return found(least, 1)


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say (not Linux)."""
    return _status("VmRSS")


def _zeros(like: jax.ShapeDtypeStruct) -> Array:
    """Zeros of a shape, in the type that JAX makes of the one asked for."""
    dtype: Any = canonicalize_dtype(like.dtype, allow_extended_dtype=True)
    return jnp.zeros(like.shape, dtype)


def bytes_per_planned(programs: Sequence[Program]) -> float:
    """What programs add to the process while they run, per byte that XLA planned to add.

    They run on zeros, one after another; the largest counts. Where the system tells no peaks
    `UNMEASURED`; never less than one.
    """
    planned = max((plan.added for program in programs if (plan := _plan(program))), default=0)
    _give_back()  # else the passes take what the compiler left, and seem to take nothing
    if not planned or not _reset_peak():
        return UNMEASURED
    before = resident_bytes()
    for program in programs:
        leaves, tree = jax.tree.flatten(program.args)
        zeros = [_zeros(x) if isinstance(x, jax.ShapeDtypeStruct) else x for x in leaves]
        jax.block_until_ready(program.function(*jax.tree.unflatten(tree, zeros)))
    return max(1.0, (_status("VmHWM") - before) / planned)


class _Planned(NamedTuple):
    """Bytes of a program as XLA planned them: with its arguments, and without."""

    all: int
    added: int


def _plan(program: Program) -> _Planned | None:
    if (memory := program.compiled().memory_analysis()) is None:
        return None
    added = memory.output_size_in_bytes + memory.temp_size_in_bytes
    added -= memory.alias_size_in_bytes
    return _Planned(memory.argument_size_in_bytes + added, added)


def _status(field: str) -> int:
    """A field of the process's status under Linux, in bytes."""
    try:
        text = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.M)
    return 1024 * int(found[1]) if found else 0


def _reset_peak() -> bool:
    """Let the process's peak of resident memory begin anew; whether that can be done."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _status("VmHWM") > 0


def _give_back() -> None:
    """Let the C library give free memory back to the system, where it can."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _on_cpu(place: Placement) -> bool:
    devices = jax.devices() if place.mesh is None else place.mesh.devices.ravel()
    return devices[0].platform == "cpu"


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


def _largest(
    metric: Metric, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
) -> _Planned | None:
    """Peak of the largest program of a metric on one device."""
    programs = programs_of(metric, moves, inputs, targets, key) or []
    plans = [plan for program in programs if (plan := _plan(program)) is not None]
    return max(plans) if plans and len(plans) == len(programs) else None


def _shapes(batch: PyTree, examples: int) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype), batch
    )
