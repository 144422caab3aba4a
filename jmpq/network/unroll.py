"""Loops over stacked layers unrolled: every slice of a stacked kernel a kernel of its own.

``scan`` over stacked parameters applies one body once per slice. Here the body is evaluated
slice by slice instead, so that the operations of every layer stand in the jaxpr; the stacks are
inputs piece by piece (`tree_paths.Pieces`). Kernels that are taken from a stack by a constant
index, as ``params["stack"][3]``, are pieces too.

Two walks: `find_stacks` follows the leaves to where they are read and says which are stacks;
`unrolled` evaluates the jaxpr on pieces.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmpq.network.tree_paths import Pieces
from jmpq.network.walk import INLINED, LAYOUT, Path, bind, body, opened, scan_counts, walk

PRODUCTS = ("conv_general_dilated", "dot_general", "gather")  # a kernel is read by these


class Stacks(NamedTuple):
    """What is taken apart.

    Attributes:
        pieces: Leaves that are stacks, and their axes.
        scans: Paths of the loops to unroll.
    """

    pieces: Pieces
    scans: frozenset[Path]


class _Stem(NamedTuple):
    """A value that is a leaf or a slice of it, rearranged.

    Attributes:
        leaf: Index of the leaf.
        axes: Axis of the leaf that each axis of the value is, -1 for one of length one that was
            put in; None where elements were regrouped.
        taken: Axes of the leaf that it was sliced along, in this order, each with the path of
            the ``scan`` that did it (None: a constant index).
    """

    leaf: int
    axes: tuple[int, ...] | None
    taken: tuple[tuple[int, Path | None], ...] = ()


class _Read(NamedTuple):
    """A stem that an operation reads which does more than rearrange it."""

    taken: tuple[tuple[int, Path | None], ...]
    kernel: bool


def find_stacks(closed: Any, leaves: int) -> Stacks:
    """The leaves among the first inputs of a jaxpr whose slices are kernels, or belong to one.

    A loop is unrolled where a slice that it takes of a parameter is an operand of a product in
    its body, and every loop around it is unrolled too. A kernel is a stack along the axes that
    all products slice; any other leaf, where nothing but its slices is read, and all of them.
    """
    finder = _Finder()
    jaxpr, consts = opened(closed)
    args: list[_Stem | None] = [None] * len(jaxpr.invars)
    for i, v in enumerate(jaxpr.invars[:leaves]):
        args[i] = _Stem(i, tuple(range(v.aval.ndim)))
    finder.follow(jaxpr, consts, args, ())
    for value in finder.outs:
        finder.read(value, kernel=False)
    wanted = {
        scan
        for reads in finder.reads.values()
        for read in reads
        if read.kernel
        for _, scan in read.taken
        if scan is not None
    }
    scans = frozenset(
        scan for scan in wanted if all(o in wanted for o in finder.scans if _around(o, scan))
    )
    axes: list[tuple[int, ...]] = []
    for i, v in enumerate(jaxpr.invars[:leaves]):
        reads = finder.reads[i]
        kernels = [read for read in reads if read.kernel]
        common = _common([_reached(read, scans) for read in kernels or reads])
        if not kernels:
            whole = [a for a in common if len(finder.indices[i, a]) == v.aval.shape[a]]
            common = common if len(whole) == len(common) else ()
        axes.append(common)
    return Stacks(Pieces(tuple(axes)), scans)


class _Finder:
    """Follows leaves and their slices to the operations that read them."""

    def __init__(self) -> None:
        self.reads: dict[int, list[_Read]] = collections.defaultdict(list)
        self.indices: dict[tuple[int, int], set[int]] = collections.defaultdict(set)
        self.scans: list[Path] = []
        self.outs: list[_Stem | None] = []

    def follow(self, jaxpr: Any, consts: Any, args: Sequence[_Stem | None], at: Path) -> None:
        self.outs = walk(
            jaxpr, consts, args, self._visit, at=at, enter=_never, constant=lambda array: None
        )

    def read(self, value: _Stem | None, *, kernel: bool) -> None:
        if value is not None:
            self.reads[value.leaf].append(_Read(value.taken, kernel))

    def _visit(self, eqn: Any, ins: Sequence[_Stem | None], path: Path) -> list[_Stem | None]:
        nothing: list[_Stem | None] = [None] * len(eqn.outvars)
        name = eqn.primitive.name
        if name in INLINED:
            self.follow(*body(eqn), ins, path)
            return self.outs
        if name == "scan":
            self.scans.append(path)
            consts, carry, rows = _operands(eqn, ins)
            for value in carry:
                self.read(value, kernel=False)
            rows = [self._row(value, eqn.params["length"], path) for value in rows]
            inner = [*consts, *([None] * len(carry)), *rows]
            self.follow(*opened(eqn.params["jaxpr"]), inner, path)
            for value in self.outs:
                self.read(value, kernel=False)
            return nothing
        if len(ins) == 1 and ins[0] is not None:
            if name == "slice":
                return [self._slice(eqn, ins[0])]
            if name in LAYOUT and eqn.invars[0].aval.size == eqn.outvars[0].aval.size:
                return [ins[0]._replace(axes=_rearranged(eqn, ins[0].axes))]
        for value in ins:
            self.read(value, kernel=name in PRODUCTS)
        return nothing

    def _row(self, value: _Stem | None, length: int, path: Path) -> _Stem | None:
        """A slice along the first axis, by the loop at a path."""
        if value is None:
            return None
        if not value.axes or value.axes[0] < 0:
            self.read(value, kernel=False)
            return None
        self.indices[value.leaf, value.axes[0]].update(range(length))
        return value._replace(axes=value.axes[1:], taken=(*value.taken, (value.axes[0], path)))

    def _slice(self, eqn: Any, value: _Stem) -> _Stem | None:
        """A slice at one constant index of one axis."""
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        cut = [a for a, (m, n) in enumerate(zip(before, after, strict=True)) if m != n]
        if len(cut) != 1 or after[cut[0]] != 1 or value.axes is None or value.axes[cut[0]] < 0:
            self.read(value, kernel=False)
            return None
        (axis,) = cut
        of_leaf = value.axes[axis]
        self.indices[value.leaf, of_leaf].add(eqn.params["start_indices"][axis])
        axes = (*value.axes[:axis], -1, *value.axes[axis + 1 :])
        return value._replace(axes=axes, taken=(*value.taken, (of_leaf, None)))


def _rearranged(eqn: Any, axes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Axes of the leaf after an operation that keeps all elements; None where it regroups."""
    if axes is None:
        return None
    match eqn.primitive.name:
        case "transpose":
            return tuple(axes[a] for a in eqn.params["permutation"])
        case "convert_element_type" | "copy":
            return axes
        case "squeeze":
            gone = eqn.params["dimensions"]
            return tuple(axis for a, axis in enumerate(axes) if a not in gone)
    return None


def _common(taken: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest common beginning.

    >>> _common([(0, 2), (0,)]), _common([])
    ((0,), ())
    """
    same = lambda column: len(set(column)) == 1  # noqa: E731
    least = min(map(len, taken), default=0)
    count = next((i for i in range(least) if not same([t[i] for t in taken])), least)
    return taken[0][:count] if taken else ()


def _reached(read: _Read, scans: frozenset[Path]) -> tuple[int, ...]:
    """Axes that a read was sliced along before the first loop that stays."""
    axes = []
    for axis, scan in read.taken:
        if scan is not None and scan not in scans:
            break
        axes.append(axis)
    return tuple(axes)


def _around(outer: Path, inner: Path) -> bool:
    return len(outer) < len(inner) and inner[: len(outer)] == outer


def _never(eqn: Any, path: Path) -> bool:
    return False


def _operands(eqn: Any, ins: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Constants, carried values and rows of a ``scan``."""
    first, second = scan_counts(eqn.params)
    return list(ins[:first]), list(ins[first : first + second]), list(ins[first + second :])


@dataclasses.dataclass(frozen=True, eq=False)
class _Stack:
    """An array that is not put together: its slices along one axis, arrays or stacks."""

    slices: tuple[Any, ...]
    axis: int


def unrolled(closed: Any, stacks: Stacks, pieces: Sequence[Any], inputs: Sequence[Any]) -> list:
    """Evaluate a jaxpr on the pieces of its parameters, its loops over stacks unrolled."""
    jaxpr, consts = opened(closed)
    left = iter(pieces)
    leaves = []
    for v, axes in zip(jaxpr.invars, stacks.pieces.axes, strict=False):
        count = math.prod(v.aval.shape[axis] for axis in axes)
        own = [next(left) for _ in range(count)]
        leaves.append(_stack_of(own, axes, v.aval.shape))

    def visit(eqn: Any, ins: Sequence[Any], path: Path) -> list:
        stacked = any(isinstance(x, _Stack) for x in ins)
        entered = stacked or any(_around(path, scan) for scan in stacks.scans)
        name = eqn.primitive.name
        if name == "scan" and path in stacks.scans:
            return _unrolled_scan(eqn, ins, path)
        if name in INLINED and entered:
            return walk(*body(eqn), ins, visit, at=path, enter=_never)
        if stacked and name in (
            "slice",
            "transpose",
            "squeeze",
            "convert_element_type",
            "copy",
        ):
            return [_apply(eqn, ins[0])]
        return bind(eqn, [_whole(x) for x in ins])

    def _unrolled_scan(eqn: Any, ins: Sequence[Any], path: Path) -> list:
        consts, carry, rows = _operands(eqn, ins)
        length = eqn.params["length"]
        outs: list[Any] = [None] * length
        steps = range(length - 1, -1, -1) if eqn.params["reverse"] else range(length)
        for i in steps:
            args = [*consts, *carry, *(_slice_at(x, i) for x in rows)]
            results = walk(*opened(eqn.params["jaxpr"]), args, visit, at=path, enter=_never)
            carry, outs[i] = results[: len(carry)], results[len(carry) :]
        stacked = [jnp.stack([_whole(x) for x in column]) for column in zip(*outs, strict=True)]
        return [*map(_whole, carry), *stacked]

    outs = walk(jaxpr, consts, [*leaves, *inputs], visit, enter=_never)
    return [_whole(x) for x in outs]


def _stack_of(pieces: list[Any], axes: Sequence[int], shape: Sequence[int]) -> Any:
    """A leaf of its pieces, the outermost axis first."""
    if not axes:
        return pieces[0]
    axis, *rest = axes
    each = len(pieces) // shape[axis]
    inner = [a - (a > axis) for a in rest]
    without = [n for a, n in enumerate(shape) if a != axis]
    groups = [pieces[i : i + each] for i in range(0, len(pieces), each)]
    return _Stack(tuple(_stack_of(group, inner, without) for group in groups), axis)


def _whole(value: Any) -> Any:
    """The array of a stack."""
    if not isinstance(value, _Stack):
        return value
    return jnp.stack([_whole(x) for x in value.slices], axis=value.axis)


def _slice_at(value: Any, index: int) -> Any:
    """A slice along the first axis."""
    if not isinstance(value, _Stack):
        return jax.lax.index_in_dim(value, index, keepdims=False)
    if value.axis == 0:
        return value.slices[index]
    return _Stack(tuple(_slice_at(x, index) for x in value.slices), value.axis - 1)


def _apply(eqn: Any, value: _Stack) -> Any:
    """An operation that slices, rearranges or casts, on the slices of a stack."""
    params = eqn.params
    match eqn.primitive.name:
        case "slice":
            strides = params["strides"] or (1,) * len(params["start_indices"])
            bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
            return _cut(value, list(bounds))
        case "transpose":
            return _transposed(value, params["permutation"])
        case "squeeze":
            return _squeezed(value, params["dimensions"])
        case _:
            return _mapped(value, lambda x: bind(eqn, [x])[0])


def _cut(value: Any, bounds: Sequence[tuple[int, int, int]]) -> Any:
    if not isinstance(value, _Stack):
        whole = all(b == (0, n, 1) for b, n in zip(bounds, value.shape, strict=True))
        return value if whole else jax.lax.slice(value, *zip(*bounds, strict=True))
    rest = [b for a, b in enumerate(bounds) if a != value.axis]
    own = value.slices[slice(*bounds[value.axis])]
    return _Stack(tuple(_cut(x, rest) for x in own), value.axis)


def _transposed(value: Any, permutation: Sequence[int]) -> Any:
    if not isinstance(value, _Stack):
        return jax.lax.transpose(value, permutation)
    own = value.axis
    rest = [a - (a > own) for a in permutation if a != own]
    slices = tuple(_transposed(x, rest) for x in value.slices)
    return _Stack(slices, list(permutation).index(own))


def _squeezed(value: Any, dimensions: Sequence[int]) -> Any:
    if not isinstance(value, _Stack):
        return jax.lax.squeeze(value, dimensions)
    own = value.axis
    rest = [a - (a > own) for a in dimensions if a != own]
    slices = tuple(_squeezed(x, rest) for x in value.slices)
    return (
        slices[0]
        if own in dimensions
        else _Stack(slices, own - sum(a < own for a in dimensions))
    )


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if not isinstance(value, _Stack):
        return function(value)
    return _Stack(tuple(_mapped(x, function) for x in value.slices), value.axis)
