"""The stream: tensors between layers that an integer runtime keeps as integers.

An integer kernel reads integers and writes integers. Quantizing the inputs of layers is not
enough for that. The output of a convolution that enters an addition would stay in floats, so
the convolution would run in floats; the same holds for sums, concatenations and pooling.
Placement ``stream`` of `jmpq.quantizers.spec.InputSpec` quantizes these tensors too, with one
scale per tensor, at 8 bits or at the bits of the layer's input if those are more.

A tensor belongs to the stream if everything that reads it can read integers: a layer, pooling,
or an addition or concatenation whose result is in the stream or enters a layer. A tensor that a
layer normalisation or another nonlinear function reads does not belong to it. Transformers
therefore keep their residual stream in floats.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jmpq.formats import FLOAT_BITS
from jmpq.network.network import Network
from jmpq.network.sites import Op, Site, Transform
from jmpq.network.tap import Tap, bodies_of
from jmpq.network.walk import LAYOUT, Path, Rule, bind, body, is_call, walk
from jmpq.quantizers.spec import InputSpec

STREAM_BITS = 8  # least bits of a tensor of the stream
# Operations that only move or drop elements: the result stays on the operand's grid.
KEPT = LAYOUT | {"expand_dims", "reduce_window_max", "slice", "split", "stop_gradient"}
POOLING = {"reduce_sum", "reduce_window_sum"}
AFFINE, CLAMPS = {"add", "sub", "mul", "div"}, {"max", "min", "clamp"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A tensor of the stream.

    Attributes:
        index: Position among the points, in the order of execution.
        name: Layer before the tensor, and the operation that made it: ``output`` (of the
            layer itself), ``sum`` or ``concatenation``.
        layer_index: Layer whose choice decides the tensor's bits: the first layer that reads
            it, or the last layer before it if none does.
        read_by: Sites whose input is this tensor, possibly rearranged.
        batch_axis: Batch axis; None if it was merged with another axis.
        size: Elements of one example.
    """

    index: int
    name: str
    layer_index: int
    read_by: tuple[int, ...]
    batch_axis: int | None
    size: int


Visit = Callable[[Point, Any], Any]  # (point, tensor) -> what flows on


def points_of(network: Network) -> tuple[Point, ...]:
    """The points of a network's stream, in the order of execution."""
    return _points(network.tap, network.leaves, tuple(site.name for site in network.sites))


def source_of(network: Network, site: Site) -> Point | None:
    """The point that a site reads; None if it reads another tensor."""
    return next((p for p in points_of(network) if site.index in p.read_by), None)


def stream_number(bits: int) -> int:
    """Bits of a point, given the scheme number of its layer's input.

    Plain integers give at least 8 bits. Any other format leaves the stream unquantized (32).
    """
    return max(bits, STREAM_BITS) if bits < FLOAT_BITS else FLOAT_BITS


def stream_bits(bits: Int[Array, ""]) -> Int[Array, ""]:
    """`stream_number`, traced."""
    return jnp.where(bits < FLOAT_BITS, jnp.maximum(bits, STREAM_BITS), FLOAT_BITS)


def stream_spec(spec: InputSpec) -> InputSpec:
    """Specification of points: the inputs' specification with one scale per tensor."""
    return dataclasses.replace(spec, granularity="tensor", group_size=None, group_count=None)


def run_on_stream(
    network: Network,
    inputs: PyTree,
    transform: Transform,
    visit: Visit,
    params: PyTree | None = None,
    rule: Rule = bind,
) -> Any:
    """Run a network as `Network.run` does; `visit` replaces every tensor of the stream."""
    points, known = points_of(network), dict[Value, bool]()
    nodes = [v for v in flow(network, inputs) if _is_point(v, known)]
    at: dict[tuple[Path, int], Point] = {}
    for node, point in zip(nodes, points, strict=True):
        assert node.place is not None
        at[node.place] = point
    places = {path: operation.path for path, operation in network.tap.traced(inputs)[2].items()}
    of_sites = {places[path]: point for (path, _), point in at.items() if path in places}

    def at_site(site: Site, x: Any, op: Op) -> Any:
        y = transform(site, x, op)
        point = of_sites.get(site.operation.path)
        return y if point is None else visit(point, y)

    def visiting(eqn: Any, ins: Sequence[Any], path: Path) -> list:
        outs = list(rule(eqn, ins, path))
        if path not in places:  # a layer may be evaluated several times, or on changes
            for i, out in enumerate(outs):
                if (point := at.get((path, i))) is not None:
                    outs[i] = visit(point, out)
        return outs

    return network.run(inputs, at_site, params, visiting)


@dataclasses.dataclass(eq=False)
class Value:
    """A value that depends on the inputs.

    Attributes:
        kind: Operation that made the value: ``site``, ``affine`` (with a constant),
            ``clamp``, ``sum``, ...
        shape: Shape of the value.
        site: Last site before the value; -1 if there is none.
        place: Path of the equation and index of its output; None inside a call, where the
            evaluation does not see the value.
        root: Operation before those that runtimes fuse into it: ``site``, ``clamped`` (a
            site), ``sum``, ``concatenation``; empty for others.
        ins: Values that the operation reads.
        readers: Values whose operation reads this one.
        index: Site of a value of kind ``site``.
        operand: Position of the operand that is not constant, of kind ``affine``.
    """

    kind: str
    shape: tuple[Any, ...]  # the batch may be a symbol
    site: int = -1
    place: tuple[Path, int] | None = None
    root: str = ""
    ins: tuple["Value", ...] = ()
    readers: list["Value"] = dataclasses.field(default_factory=list)
    index: int = -1
    operand: int = 0


@functools.lru_cache(maxsize=64)
def _points(
    tap: Tap, leaves: tuple[tuple[int, ...], ...], names: tuple[str, ...]
) -> tuple[Point, ...]:
    """Points of the stream; two batch sizes are traced to find the batch axes."""
    layer_of = {leaf: i for i, group in enumerate(leaves) for leaf in group}
    operations = [o for o in tap.every if o.leaf in layer_of]
    layers = [layer_of[o.leaf] for o in operations]
    paths = {o.path: -1 for o in tap.every}
    read = enumerate(operations)
    paths |= {o.path: i for i, o in read if o.kind not in ("embedding", "cache")}
    known = dict[Value, bool]()
    two, three = (
        [v for v in _flow(tap, _examples(tap, count), paths) if _is_point(v, known)]
        for count in (2, 3)
    )
    points, used = [], dict[str, int]()
    for index, (one, other) in enumerate(zip(two, three, strict=True)):
        axes = [
            a for a, sizes in enumerate(zip(one.shape, other.shape, strict=True))
            if sizes == (2, 3)
        ]  # fmt: skip
        read_by = tuple(sorted({r.index for r in _ends(one) if r.kind == "site"}))
        what = {"sum": "sum", "concatenation": "concatenation"}.get(one.root, "output")
        name = f"{names[one.site]}:{what}"
        used[name] = used.get(name, 0) + 1
        points.append(
            Point(
                index=index,
                name=name if used[name] == 1 else f"{name}#{used[name]}",
                layer_index=layers[read_by[0] if read_by else one.site],
                read_by=read_by,
                batch_axis=axes[0] if axes else None,
                size=int(np.prod(one.shape)) // 2,
            )
        )
    return tuple(points)


def _examples(tap: Tap, count: int) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), tap.inputs
    )


def flow(network: Network, inputs: PyTree) -> list["Value"]:
    """The values that depend on the inputs, in order, traced at the shapes of `inputs`."""
    found = {operation.path: -1 for operation in network.tap.every}
    found |= {s.operation.path: s.index for s in network.sites if s.has_both}
    return _flow(network.tap, inputs, found)


def _flow(tap: Tap, inputs: PyTree, sites: dict[Path, int]) -> list["Value"]:
    jaxpr, consts, places = tap.traced(inputs)
    around, inside = bodies_of(places), False
    made: list[Value] = []

    def rule(eqn: Any, ins: Sequence[Any], path: Path) -> list:
        nonlocal inside
        if not any(isinstance(x, Value) for x in ins):
            zero = eqn.primitive.name in LAYOUT and all(x == 0 for x in ins)
            return [0 if zero else None] * len(eqn.outvars)
        if is_call(eqn):  # the evaluation sees its results only
            outer, inside, before = inside, True, len(made)
            outs = walk(*body(eqn), ins, rule, at=path, enter=lambda *_: False, constant=_known)
            inside = outer
            own = set(map(id, made[before:]))
            for i, out in enumerate(outs):
                if isinstance(out, Value) and id(out) in own and not inside:
                    out.place = (path, i)
            return outs
        index = sites[places[path].path] if path in places else None
        outs = []
        for i, v in enumerate(eqn.outvars):
            node = _node(eqn.primitive.name, ins, index)
            node.shape, node.place = v.aval.shape, None if inside else (path, i)
            if not jnp.issubdtype(v.aval.dtype, jnp.inexact):
                node.kind, node.root = "other", ""
            for x in node.ins:
                x.readers.append(node)
            made.append(node)
            outs.append(node)
        return outs

    count = len(jaxpr.invars) - len(jax.tree.leaves(inputs))
    args = [None] * count + [Value("input", v.aval.shape) for v in jaxpr.invars[count:]]
    enter = lambda eqn, path: path in around  # noqa: E731
    (result,) = walk(jaxpr, consts, args, rule, enter=enter, constant=_known)
    result.readers.append(Value("result", result.shape))
    return made


def _known(array: Any) -> int | None:
    """Stand-in for a constant during the walk: 0 if the constant is zero, else None."""
    return None if np.any(np.asarray(array)) else 0


def _node(name: str, ins: Sequence[Any], site: int | None) -> Value:
    """The value of an equation."""
    data = tuple(x for x in ins if isinstance(x, Value))
    (first, *others), last = data, max(x.site for x in data)
    alone = not others
    if site is not None:
        made = ("site", "site") if site >= 0 else ("other", "")
        return Value(made[0], (), max(site, last), None, made[1], data, index=site)
    kind = root = ""
    if alone and (name in KEPT or (name == "pad" and isinstance(ins[1], int))):
        kind = "kept"
    elif name == "add" and not alone:
        kind = root = "sum"
    elif name == "concatenate" and len(data) == len(ins):
        kind = root = "concatenation"
    elif name in POOLING and alone:
        kind = "pooled"
    elif name in AFFINE and alone and (name != "div" or ins[0] is first):
        kind, root = "affine", "site" if first.root == "site" else ""
    elif name in CLAMPS and alone:
        kind, root = "clamp", {"site": "clamped"}.get(first.root, first.root)
    operand = next(i for i, x in enumerate(ins) if x is first)
    return Value(kind or "other", (), last, None, root, data, operand=operand)


def _wanted(node: Value, known: dict[Value, bool]) -> bool:
    """Whether every reader of a value can read integers."""
    if node not in known:
        known[node] = bool(node.readers) and all(_takes(r, node, known) for r in node.readers)
    return known[node]


def _takes(reader: Value, node: Value, known: dict[Value, bool]) -> bool:
    match reader.kind:
        case "site" | "pooled":
            return True
        case "kept" | "sum" | "concatenation":
            return _wanted(reader, known)
        case "affine" | "clamp":  # fused into what made the value, if nothing else reads that
            return len(node.readers) == 1 and bool(reader.root) and _wanted(reader, known)
        case _:
            return False


def _ends(node: Value) -> list[Value]:
    """Readers of a value, through operations that only move elements."""
    return [e for r in node.readers for e in (_ends(r) if r.kind == "kept" else [r])]


def _is_point(node: Value, known: dict[Value, bool]) -> bool:
    if not node.root or node.place is None or not _wanted(node, known):
        return False
    ends = _ends(node)
    if any(end.kind in ("affine", "clamp") for end in ends):
        return False  # the point comes after it
    return any(end.kind != "site" for end in ends) or len({e.index for e in ends}) > 1
