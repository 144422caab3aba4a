"""Chains of nodes that ONNX has one node for: softmax, layer normalisation, GELU.

The walk writes every primitive of JAX by itself, and runtimes would run each as a pass over
the memory. A chain is replaced if it is the function exactly: same operands, axes and
constants, and no tensor inside that anything else reads. Every other chain stays as it is.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from jmpq.export.onnx_values import Graph

ROUNDING = 1e-6  # relative, of constants: those of JAX are float32
HIDDEN = -1e37  # highest masked score that is a mask: float32 has steps of 1e30 there
TANH_GELU = 0.044715  # of the cube: Hendrycks, Gimpel (2016), section 2


class _One(NamedTuple):
    """A node in place of a chain.

    Attributes:
        kind: Operation.
        source: Tensor that the chain starts from.
        result: Tensor that the chain ends with.
        constants: Names of its further inputs.
        attributes: Attributes of the node.
    """

    kind: str
    source: str
    result: str
    constants: Sequence[str] = ()
    attributes: Mapping[str, Any] = {}


class _Reduced(NamedTuple):
    """A tensor, and the axes over which it is reduced."""

    source: str
    axes: tuple[int, ...]


def merge(graph: Graph, outputs: set[str]) -> None:
    """Replace chains by single nodes; tensors named in `outputs` stay."""
    find: Mapping[str, Callable[[_View, onnx.NodeProto], _One | None]] = {
        "Div": _softmax,
        "Sqrt": _normalisation,
        "Erf": _gelu,
        "Tanh": _gelu,
    }
    for node in [node for node in graph.nodes if node.op_type in find]:
        view = _View(graph, outputs)
        if (one := find[node.op_type](view, node)) is None:
            continue
        if chain := view.chain(one.source, one.result):
            _replace(graph, chain, one)
    for node in [node for node in graph.nodes if node.op_type == "Softmax"]:
        _mask(_View(graph, outputs), node)


def _replace(graph: Graph, chain: Sequence[onnx.NodeProto], one: _One) -> None:
    """Put a node where the last one of its chain is; drop the chain."""
    new = helper.make_node(
        one.kind,
        [one.source, *one.constants],
        [one.result],
        name=graph.fresh(one.kind.lower()),
        **one.attributes,
    )
    dropped = {id(node) for node in chain}
    last = chain[0]
    graph.nodes = [
        new if node is last else node
        for node in graph.nodes
        if node is last or id(node) not in dropped
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """Questions about the nodes around a tensor."""

    graph: Graph
    outputs: set[str]
    makers: Mapping[str, onnx.NodeProto] = dataclasses.field(init=False)
    readers: Mapping[str, list[onnx.NodeProto]] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        makers, readers = {}, collections.defaultdict(list)
        for node in self.graph.nodes:
            makers.update(dict.fromkeys(node.output, node))
            for name in dict.fromkeys(node.input):
                readers[name].append(node)
        object.__setattr__(self, "makers", makers)
        object.__setattr__(self, "readers", dict(readers))

    def maker(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is of one of the kinds."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def reader(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor, if it is of one of the kinds."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or name in self.outputs or readers[0].op_type not in kinds:
            return None
        return readers[0]

    def chain(self, source: str, result: str) -> list[onnx.NodeProto]:
        """Nodes from `source` to `result`, the last one first.

        Empty if one of their tensors is read elsewhere, or is an output.
        """
        found, waiting = {}, [result]
        while waiting:
            node = self.makers.get(waiting.pop())
            if node is not None and id(node) not in found:
                found[id(node)] = node
                waiting += [name for name in node.input if name != source]
        nodes = list(found.values())
        for node in nodes[1:]:
            (name,) = node.output
            if name in self.outputs or any(id(r) not in found for r in self.readers[name]):
                return []
        return nodes

    def number(self, name: str) -> float | None:
        """The value of a constant of one element."""
        array = self.graph.arrays.get(name)
        if array is None or array.size != 1 or not np.issubdtype(array.dtype, np.floating):
            return None
        return float(array.reshape(()))

    def scaled(self, node: onnx.NodeProto) -> tuple[float, str] | None:
        """Number and tensor, if a node multiplies a tensor by a number."""
        if node.op_type == "Neg":
            return -1.0, node.input[0]
        if node.op_type == "Div" and (value := self.number(node.input[1])):
            return 1 / value, node.input[0]
        if node.op_type == "Mul":
            for name, other in (node.input, node.input[::-1]):
                if (value := self.number(other)) is not None:
                    return value, name
        return None

    def extent(self, name: str) -> tuple[int, ...] | None:
        """Sizes of a tensor, axes as in the graph."""
        return self.graph.extents.get(name)

    def kept(self, source: str, axes: Sequence[int]) -> tuple[int, ...] | None:
        """Sizes of a tensor with some axes reduced to one element."""
        extent = self.extent(source)
        if extent is None:
            return None
        return tuple(1 if axis in axes else n for axis, n in enumerate(extent))

    def reshaped(self, name: str) -> str:
        """The tensor before nodes that keep the order of the elements."""
        while (node := self.maker(name, "Reshape", "Transpose")) is not None:
            if node.op_type == "Transpose" and not self.unmoved(node):
                break
            name = node.input[0]
        return name

    def unmoved(self, node: onnx.NodeProto) -> bool:
        """Whether a transposition moves nothing but axes of one element."""
        extent = self.extent(node.input[0])
        if extent is None:
            return False
        long = [axis for axis in node.attribute[0].ints if extent[axis] > 1]
        return long == sorted(long)

    def reduced(self, name: str, kind: str) -> _Reduced | None:
        """Tensor and axes of a reduction."""
        node = self.maker(self.reshaped(name), kind)
        if node is None:
            return None
        axes = self.graph.arrays[node.input[1]]
        return _Reduced(node.input[0], tuple(sorted(int(axis) for axis in axes)))

    def mean(self, name: str) -> _Reduced | None:
        """Tensor and axes of a mean: a sum divided by the number of its terms."""
        factor, name = 1.0, self.reshaped(name)
        while (node := self.maker(name, "Mul", "Div")) is not None:
            if (step := self.scaled(node)) is None:
                return None
            factor, name = factor * step[0], self.reshaped(step[1])
        found = self.reduced(name, "ReduceSum")
        extent = None if found is None else self.extent(found.source)
        if found is None or extent is None:
            return None
        count = math.prod(extent[axis] for axis in found.axes)
        return found if _equal(factor * count, 1.0) else None

    def square(self, name: str) -> str | None:
        """The tensor that is multiplied by itself."""
        name = self.reshaped(name)
        if (node := self.maker(name, "Mul")) is not None and node.input[0] == node.input[1]:
            return node.input[0]
        if (node := self.maker(name, "Pow")) is not None and self.number(node.input[1]) == 2:
            return node.input[0]
        return None

    def centred(self, name: str) -> _Reduced | None:
        """Tensor and axes, if `name` is the tensor less its mean."""
        if (node := self.maker(name, "Sub")) is None:
            return None
        mean = self.mean(node.input[1])
        if mean is None or mean.source != node.input[0]:
            return None
        fits = self.extent(node.input[1]) == self.kept(*mean)
        return mean if fits else None

    def product(self, name: str, of: set[str]) -> tuple[float, dict[str, int]]:
        """Constant factor and powers of tensors in a product; it ends at those in `of`."""
        node = self.maker(name, "Mul", "Div", "Neg", "Pow")
        if node is None or name in of:
            return 1.0, {name: 1}
        if (step := self.scaled(node)) is not None:
            factor, powers = self.product(step[1], of)
            return step[0] * factor, powers
        if node.op_type == "Pow" and (power := self.number(node.input[1])) in (2, 3):
            factor, powers = self.product(node.input[0], of)
            return factor**power, {n: int(p * power) for n, p in powers.items()}
        if node.op_type == "Mul":
            (one, left), (two, right) = (self.product(n, of) for n in node.input)
            both = collections.Counter(left) + collections.Counter(right)
            return one * two, dict(both)
        return 1.0, {name: 1}


def _equal(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=ROUNDING)


# Softmax: exp(x - max x) / sum of it.


def _softmax(view: _View, node: onnx.NodeProto) -> _One | None:
    exp = view.maker(node.input[0], "Exp")
    less = None if exp is None else view.maker(exp.input[0], "Sub")
    if exp is None or less is None:
        return None
    x, values = less.input[0], exp.output[0]
    greatest = view.reduced(_finite(view, less.input[1]), "ReduceMax")
    total = view.reduced(node.input[1], "ReduceSum")
    if greatest is None or total != _Reduced(values, greatest.axes) or greatest.source != x:
        return None
    kept = view.kept(*greatest)
    ends = {view.extent(less.input[1]), view.extent(node.input[1])}
    if len(greatest.axes) != 1 or kept is None or ends != {kept}:
        return None
    return _One("Softmax", x, node.output[0], attributes={"axis": greatest.axes[0]})


def _finite(view: _View, name: str) -> str:
    """The tensor before a maximum with -inf, which JAX begins a maximum with."""
    node = view.maker(view.reshaped(name), "Max")
    if node is not None:
        for own, other in (node.input, node.input[::-1]):
            if view.number(other) == -math.inf:
                return own
    return name


def _mask(view: _View, node: onnx.NodeProto) -> None:
    """Add a small mask to scores in place of selecting among all of them.

    A score plus the least float32 is the least float32: the score is lost in rounding, unless
    it is about as large itself. Runtimes add faster than they select.
    """
    graph, where = view.graph, view.maker(node.input[0], "Where")
    if where is None or view.reader(where.output[0], "Softmax") is None:
        return
    seen, scores, least = where.input
    array, value, whole = graph.arrays.get(seen), view.number(least), view.extent(scores)
    small = view.extent(seen) if array is None else array.shape
    if value is None or value > HIDDEN or small is None or whole is None:
        return
    if math.prod(small) >= math.prod(whole):
        return
    zero = graph.arrays[least].dtype.type(0)
    if array is None:
        count, at = len(graph.nodes), graph.nodes.index(where)
        mask = graph.node("Where", [seen, graph.array(zero), least])
        if len(graph.nodes) > count:
            graph.nodes.insert(at, graph.nodes.pop())
    else:
        mask = graph.array(np.where(array, zero, graph.arrays[least]))
    where.op_type, where.input[:] = "Add", [scores, mask]


# Layer normalisation: (x - mean) / sqrt(variance + epsilon) · scale + bias.


def _normalisation(view: _View, node: onnx.NodeProto) -> _One | None:
    if (add := view.maker(view.reshaped(node.input[0]), "Add")) is None:
        return None
    epsilons = [n for n in add.input if view.number(n) is not None]
    if len(epsilons) != 1:
        return None
    (variance,) = (n for n in add.input if n != epsilons[0])
    if (found := _variance(view, variance)) is None or (kept := view.kept(*found)) is None:
        return None
    first = len(kept) - len(found.axes)
    if found.axes != tuple(range(first, len(kept))):  # ONNX normalises the last axes
        return None
    name, inverse = node.output[0], False
    while (step := view.reader(name, "Reciprocal", "Reshape")) is not None:
        if step.op_type == "Reciprocal" and inverse:
            return None
        name, inverse = step.output[0], inverse or step.op_type == "Reciprocal"
    if view.extent(name) != kept:
        return None
    if view.graph.arrays[epsilons[0]].dtype != np.float32:  # ONNX computes it in float32
        return None
    ended = _scaled(view, name, found, inverse=inverse)
    if ended is None:
        return None
    result, scale, bias = ended
    arrays = [(scale, "scale"), (bias, "bias")][: 1 if bias is None else 2]
    return _One(
        "LayerNormalization",
        found.source,
        result,
        [view.graph.array(np.asarray(array, np.float32), stem) for array, stem in arrays],
        {"axis": first - len(kept), "epsilon": view.number(epsilons[0])},
    )


def _variance(view: _View, name: str) -> _Reduced | None:
    """Tensor and axes of a variance: mean of squares, centred before or after squaring."""
    name = view.reshaped(name)
    if (clamp := view.maker(name, "Relu")) is not None:  # of what is positive but for rounding
        name = view.reshaped(clamp.input[0])
    if (mean := view.mean(name)) is not None:
        inner = view.square(mean.source)
        centred = None if inner is None else view.centred(inner)
        return centred if centred is not None and centred.axes == mean.axes else None
    if (less := view.maker(name, "Sub")) is None:
        return None
    squares, root = view.mean(less.input[0]), view.square(less.input[1])
    mean = None if root is None else view.mean(root)
    if squares is None or mean is None or squares.axes != mean.axes:
        return None
    return mean if view.square(squares.source) == mean.source else None


def _scaled(
    view: _View, name: str, found: _Reduced, *, inverse: bool
) -> tuple[str, np.ndarray, np.ndarray | None] | None:
    """Last tensor, scale and bias, going on from the deviation or its inverse."""
    extent = view.extent(found.source)
    assert extent is not None
    row = extent[found.axes[0] :]
    scale, normalised, divides = np.ones(row), False, "Mul" if inverse else "Div"
    while (step := view.reader(name, "Mul", "Div", "Add")) is not None:
        others = [n for n in step.input if n != name]
        if len(others) != 1:
            break
        array = _row(view, others[0], row, len(extent))
        if step.op_type == "Add":
            if array is not None and normalised:
                return step.output[0], scale, array
            break
        if step.op_type == "Mul" and array is not None and (inverse or normalised):
            scale = scale * array
        elif not normalised and step.op_type == divides and view.centred(others[0]) == found:
            if not inverse and step.input[1] != name:
                break
            normalised = True
        else:
            break
        name = step.output[0]
    return (name, scale, None) if normalised else None


def _row(view: _View, name: str, row: tuple[int, ...], rank: int) -> np.ndarray | None:
    """A constant that is the same for all examples and positions, for all elements of a row."""
    array = view.graph.arrays.get(name)
    if array is None or array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    lead, own = shape[: rank - len(row)], shape[rank - len(row) :]
    if {*lead} - {1} or any(n not in (1, size) for n, size in zip(own, row, strict=True)):
        return None
    return np.broadcast_to(array.reshape(own), row)


# GELU: x · (1 + erf(x / √2)) / 2, and with tanh(√(2/π) (x + 0.044715 x³)) in place of erf.


def _gelu(view: _View, node: onnx.NodeProto) -> _One | None:
    one = view.reader(node.output[0], "Add", "Sub")
    if one is None:
        return None
    numbers = [view.number(name) for name in one.input]
    sign = 1 if one.op_type == "Add" else -1
    if 1.0 not in numbers or (sign < 0 and numbers[0] != 1):
        return None
    (known,) = (n for n, value in zip(one.input, numbers, strict=True) if value == 1)
    if view.graph.arrays[known].dtype != np.float32:  # runtimes have no other
        return None
    gate, exact = one.output[0], node.op_type == "Erf"
    sources = _of_erf(view, node, sign) if exact else _of_tanh(view, node, sign)
    for x in sources:
        name = gate
        while (step := view.reader(name, "Mul", "Div")) is not None:
            name = step.output[0]
            factor, powers = view.product(name, {x, gate})
            if _equal(factor, 0.5) and powers == {x: 1, gate: 1}:
                kind = {"approximate": "none" if exact else "tanh"}
                return _One("Gelu", x, name, attributes=kind)
    return None


def _multiples(view: _View, name: str) -> Iterator[tuple[float, str]]:
    """Tensors, and the numbers that they are multiplied by to give `name`."""
    factor: float = 1.0
    yield factor, name
    while (node := view.maker(name, "Mul", "Div", "Neg")) is not None:
        if (step := view.scaled(node)) is None:
            return
        factor, name = factor * step[0], step[1]
        yield factor, name


def _of_erf(view: _View, node: onnx.NodeProto, sign: int) -> Iterator[str]:
    """Tensors that may be GELU's operand, given the node of erf."""
    for factor, name in _multiples(view, node.input[0]):
        if _equal(factor, sign * math.sqrt(0.5)):
            yield name


def _of_tanh(view: _View, node: onnx.NodeProto, sign: int) -> Iterator[str]:
    """Tensors that may be GELU's operand, given the node of tanh."""
    for factor, name in _multiples(view, node.input[0]):
        add = view.maker(name, "Add")
        if add is None or not _equal(factor, sign * math.sqrt(2 / math.pi)):
            continue
        for x, cube in (add.input, add.input[::-1]):
            factor, powers = view.product(cube, {x})
            if _equal(factor, TANH_GELU) and powers == {x: 3}:
                yield x
