"""Primitives of JAX as nodes of ONNX: one rule each.

A rule takes the graph, the equation and its input values, of which at least one is a tensor of
the graph. It returns the output values, or raises `NotExportable`. To add a primitive, write
its rule and name it in `RULES`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper

from jmpq.export.onnx_values import CodedKernel, Constant, Graph, NotExportable, Tensor, Value

Rule = Callable[[Graph, Any, Sequence[Any]], list[Value]]


def elementwise(
    graph: Graph, kind: str, ins: Sequence[Value], dtype: Any, **more: Any
) -> Tensor:
    """Write an elementwise node with broadcasting."""
    first = next(x for x in ins if isinstance(x, Tensor))
    rank = len(first.shape)
    owns = [own for own in map(_extent, ins) if len(own) == rank]
    own = tuple(max(sizes) if min(sizes) else 0 for sizes in zip(*owns, strict=True))
    names = [graph.name_of(x, first.order) for x in ins]
    return graph.emit(kind, names, first.shape, dtype, first.order, own, **more)


def _extent(x: Value) -> tuple[int, ...]:
    return (
        x.own
        if isinstance(x, Tensor)
        else x.array.shape
        if isinstance(x, Constant)
        else x.shape
    )


def _node(kind: str, **more: Any) -> Rule:
    """Rule for a primitive that is one ONNX node."""

    def rule(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
        if (same := _neutral(kind, ins)) is not None:
            return [same]
        if kind in ("And", "Or", "Not") and ins[0].dtype != bool:
            raise NotExportable("it works on the bits of whole numbers")
        return [elementwise(graph, kind, ins, eqn.outvars[0].aval.dtype, **more)]

    return rule


def _neutral(kind: str, ins: Sequence[Value]) -> Tensor | None:
    """The tensor itself if the other operand is the neutral element, else None."""
    sides = {"Add": (0, 0), "Sub": (None, 0), "Mul": (1, 1), "Div": (None, 1)}.get(kind)
    if sides is None:
        return None
    for x, other, neutral in zip(ins, reversed(ins), reversed(sides), strict=True):
        if isinstance(x, Tensor) and isinstance(other, Constant) and neutral is not None:
            if (other.array == neutral).all():
                return x
    return None


def _chain(*kinds: str) -> Rule:
    """Rule for a primitive that is a chain of unary nodes."""

    def rule(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
        (x,) = ins
        for kind in kinds:
            x = elementwise(graph, kind, [x], eqn.outvars[0].aval.dtype)
        return [x]

    return rule


def _same(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    return list(ins[:1])


def _scalar(value: Any, dtype: Any) -> Constant:
    return Constant(np.asarray(value, dtype), ())


def _maximum(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    """Max; written as Relu if one operand is zero, which runtimes fuse into products."""
    for x, other in (ins, ins[::-1]):
        if isinstance(x, Tensor) and isinstance(other, Constant) and not other.array.any():
            return [elementwise(graph, "Relu", [x], x.dtype)]
    return [elementwise(graph, "Max", ins, eqn.outvars[0].aval.dtype)]


def _square(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    return [elementwise(graph, "Mul", [ins[0], ins[0]], ins[0].dtype)]


def _erfc(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    erf = elementwise(graph, "Erf", ins, ins[0].dtype)
    return [elementwise(graph, "Sub", [_scalar(1, erf.dtype), erf], erf.dtype)]


def _log1p(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    more = elementwise(graph, "Add", [ins[0], _scalar(1, ins[0].dtype)], ins[0].dtype)
    return [elementwise(graph, "Log", [more], more.dtype)]


def _integer_pow(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    power = _scalar(eqn.params["y"], ins[0].dtype)
    return [elementwise(graph, "Pow", [ins[0], power], ins[0].dtype)]


def _unequal(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    equal = elementwise(graph, "Equal", ins, bool)
    return [elementwise(graph, "Not", [equal], bool)]


def _round(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    if int(eqn.params["rounding_method"]) != 1:  # half to even, as ONNX rounds
        raise NotExportable("it rounds halves away from zero")
    return [elementwise(graph, "Round", ins, ins[0].dtype)]


def _select(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    which, *cases = ins
    if len(cases) != 2 or which.dtype != bool:
        raise NotExportable("it selects among more than two values")
    if isinstance(which, Constant) and which.array.size == 1:  # as in jax.numpy.var
        return [cases[int(which.array.item())]]
    return [elementwise(graph, "Where", [which, cases[1], cases[0]], cases[0].dtype)]


def _clamp(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    low, x, high = ins
    x = elementwise(graph, "Max", [x, low], x.dtype) if isinstance(x, Tensor) else x
    return [elementwise(graph, "Min", [x, high], x.dtype)]


def _cast(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    dtype = np.dtype(eqn.params["new_dtype"])
    if dtype == ins[0].dtype:
        return list(ins)
    to = helper.np_dtype_to_tensor_dtype(dtype)
    return [elementwise(graph, "Cast", ins, dtype, to=to)]


# Layout.


def _transpose(graph: Graph, eqn: Any, ins: Sequence[Tensor]) -> list[Value]:
    (x,), axes = ins, eqn.params["permutation"]
    return [permuted(x, axes)]


def permuted(x: Tensor, axes: Sequence[int]) -> Tensor:
    """The transposed tensor; only its `order` changes, no node is written."""
    return dataclasses.replace(
        x,
        shape=tuple(x.shape[a] for a in axes),
        own=tuple(x.own[a] for a in axes),
        order=tuple(list(axes).index(a) for a in x.order),
    )


def _broadcast(graph: Graph, eqn: Any, ins: Sequence[Tensor]) -> list[Value]:
    (x,), shape = ins[:1], eqn.outvars[0].aval.shape
    axes = eqn.params["broadcast_dimensions"]
    own = [1] * len(shape)
    for axis, size in zip(axes, x.own, strict=True):
        own[axis] = size
    if len(shape) == len(x.shape):
        return [dataclasses.replace(x, shape=tuple(shape), own=tuple(own))]
    order = [axes[axis] for axis in x.order]
    for axis in range(len(shape)):  # each new one behind the one before it
        if axis not in axes:
            order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
    return [graph.resized(x, shape, own, order)]


def _reshape(graph: Graph, eqn: Any, ins: Sequence[Tensor]) -> list[Value]:
    return [graph.reshape(ins[0], eqn.outvars[0].aval.shape)]


def _slice(graph: Graph, eqn: Any, ins: Sequence[Tensor]) -> list[Value]:
    (x,), p = ins, eqn.params
    return [_sliced(graph, x, p["start_indices"], p["limit_indices"], p["strides"])]


def _sliced(
    graph: Graph, x: Tensor, starts: Sequence[int], ends: Sequence[int], strides: Any
) -> Tensor:
    x = graph.whole(x, x.order)
    strides = strides or (1,) * len(x.shape)
    parts = zip(starts, ends, strides, x.shape, strict=True)
    cut = [a for a, (s, e, d, n) in enumerate(parts) if (s, e, d) != (0, n, 1)]
    if any(graph.is_batch(x.shape[a]) for a in cut):
        raise NotExportable("it takes a part of the batch")
    numbers = [[v[a] for a in cut] for v in (starts, ends)]
    numbers += [[x.order.index(a) for a in cut], [strides[a] for a in cut]]
    names = [graph.array(np.array(n, np.int64)) for n in numbers]
    shape = [
        -(-(e - s) // d) if a in cut else n
        for a, (s, e, d, n) in enumerate(zip(starts, ends, strides, x.shape, strict=True))
    ]
    return graph.emit("Slice", [x.name, *names], shape, x.dtype, x.order)


def _split(graph: Graph, eqn: Any, ins: Sequence[Tensor]) -> list[Value]:
    (x,), axis, start, outs = ins, eqn.params["axis"], 0, []
    for size in map(int, eqn.params["sizes"]):
        starts, ends = [0] * len(x.shape), list(x.shape)
        starts[axis], ends[axis] = start, start + size
        outs.append(_sliced(graph, x, starts, ends, None))
        start += size
    return outs


def _pad(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    (x, value), config = ins, eqn.params["padding_config"]
    if any(inner or low < 0 or high < 0 for low, high, inner in config):
        raise NotExportable("it pads between elements, or by less than nothing")
    assert isinstance(x, Tensor)
    if not any(low or high for low, high, _ in config):
        return [x]
    x = graph.whole(x, x.order)
    lows, highs = ([config[a][side] for a in x.order] for side in (0, 1))
    shape = [int(n + low + high) for n, (low, high, _) in zip(x.shape, config, strict=True)]
    names = [x.name, graph.array(np.array([*lows, *highs], np.int64)), graph.name_of(value)]
    return [graph.emit("Pad", names, shape, x.dtype, x.order)]


def _concatenate(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    first = next(x for x in ins if isinstance(x, Tensor))
    first = graph.whole(first, first.order)
    names = [
        graph.whole(x, first.order).name
        if isinstance(x, Tensor)
        else _repeated(graph, x, first)
        if isinstance(x, Constant)
        else graph.name_of(x, first.order)
        for x in ins
    ]
    axis = first.order.index(eqn.params["dimension"])
    shape = eqn.outvars[0].aval.shape
    return [graph.emit("Concat", names, shape, first.dtype, first.order, axis=axis)]


def _repeated(graph: Graph, x: Constant, like: Tensor) -> str:
    """A constant with its axes as those of a tensor, repeated for every example if need be."""
    sizes = zip(x.array.shape, x.shape, strict=True)
    batch = [a for a, (own, n) in enumerate(sizes) if graph.is_batch(n) and own != n]
    shape = [1 if a in batch else n for a, n in enumerate(x.shape)]
    name = graph.name_of(Constant(np.broadcast_to(x.array, shape), x.shape), like.order)
    if not batch:
        return name
    at = like.order.index(batch[0])
    count = graph.node("Shape", [like.name], start=at, end=at + 1)
    ones = [np.ones(n, np.int64) for n in (at, len(shape) - at - 1)]
    parts = [graph.array(ones[0]), count, graph.array(ones[1])]
    return graph.node("Expand", [name, graph.node("Concat", parts, axis=0)])


def full(graph: Graph, x: Constant) -> np.ndarray:
    """All elements of a constant, with broadcasting applied."""
    if any(graph.is_batch(n) and m != n for m, n in zip(x.array.shape, x.shape, strict=True)):
        raise NotExportable("a constant is repeated for every example of the batch")
    return np.broadcast_to(x.array, x.shape)


# Reductions and windows.


def _reduce(kind: str) -> Rule:
    def rule(graph: Graph, eqn: Any, ins: Sequence[Tensor]) -> list[Value]:
        (x,), axes = ins, eqn.params["axes"]
        if any(graph.is_batch(x.shape[a]) for a in axes):
            raise NotExportable("it reduces over the batch")
        x = graph.whole(x, x.order)
        if kind == "ReduceSum" and _covers_maps(graph, x, axes):
            return [_pooled(graph, x, eqn.outvars[0].aval.shape)]
        names = [x.name, graph.array(np.array([x.order.index(a) for a in axes], np.int64))]
        kept = [a for a in range(len(x.shape)) if a not in axes]
        order = [kept.index(a) for a in x.order if a in kept]
        shape = [x.shape[a] for a in kept]
        return [graph.emit(kind, names, shape, x.dtype, order, keepdims=0)]

    return rule


def _covers_maps(graph: Graph, x: Tensor, axes: Sequence[int]) -> bool:
    """Whether the axes are those behind batch and channels, as a convolution has them."""
    return (
        len(x.shape) == 4
        and graph.is_batch(x.shape[x.order[0]])
        and set(axes) == {*x.order[2:]}
    )


def _pooled(graph: Graph, x: Tensor, shape: Sequence[int]) -> Tensor:
    """A sum over whole maps: their mean, which runtimes have an integer kernel for, times n."""
    n = math.prod(x.shape[a] for a in x.order[2:])
    mean = graph.node("GlobalAveragePool", [x.name])
    sizes = graph.array(np.array(graph.sizes([x.shape[a] for a in x.order[:2]]), np.int64))
    kept = sorted(x.order[:2])
    order = [kept.index(a) for a in x.order[:2]]
    mean = graph.emit("Reshape", [mean, sizes], shape, x.dtype, order)
    return elementwise(graph, "Mul", [mean, _scalar(n, x.dtype)], x.dtype)


def _window(kind: str) -> Rule:
    """Rule for a window reduction (pooling) over two axes besides batch and channel."""

    def rule(graph: Graph, eqn: Any, ins: Sequence[Tensor]) -> list[Value]:
        (x,), p = ins, eqn.params
        sizes, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
        moved = [
            a for a, (n, s) in enumerate(zip(sizes, strides, strict=True)) if (n, s) != (1, 1)
        ]
        others = [a for a in range(len(sizes)) if a not in moved]
        dilated = {*p["base_dilation"], *p["window_dilation"]} != {1}
        if dilated or len(others) < 2 or any(padding[a] != (0, 0) for a in others):
            raise NotExportable("its windows are dilated, or run over batch or channels")
        while len(others) > 2:  # a window of one element is one too
            moved.insert(0, others.pop())
        # As a convolution has them: batch, channel, the rest in the order of the graph.
        order = [*(a for a in x.order if a in others), *(a for a in x.order if a in moved)]
        x = graph.whole(x, order)
        moved = order[2:]
        more = {
            "kernel_shape": [sizes[a] for a in moved],
            "strides": [strides[a] for a in moved],
            "pads": [padding[a][0] for a in moved] + [padding[a][1] for a in moved],
        }
        shape = eqn.outvars[0].aval.shape
        if kind == "MaxPool":
            return [graph.emit(kind, [x.name], shape, x.dtype, order, **more)]
        mean = graph.emit(
            "AveragePool", [x.name], shape, x.dtype, order, count_include_pad=1, **more
        )
        return [elementwise(graph, "Mul", [mean, _scalar(math.prod(sizes), x.dtype)], x.dtype)]

    return rule


# Products.


def _convolution(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    (x, kernel), p = ins, eqn.params
    dims, shape = p["dimension_numbers"], eqn.outvars[0].aval.shape
    if p["batch_group_count"] != 1 or set(p["lhs_dilation"]) != {1}:
        raise NotExportable("it is a transposed convolution, or groups run over the batch")
    if not isinstance(x, Tensor) or isinstance(kernel, Tensor):
        raise NotExportable("its kernel is not a constant, or its input is one")
    x = graph.whole(x, dims.lhs_spec)
    if isinstance(kernel, Constant):
        weights = graph.array(full(graph, kernel).transpose(dims.rhs_spec), "kernel")
    else:
        weights = graph.dequantized(kernel.transposed(dims.rhs_spec))
    padding = p["padding"]
    more = {
        "kernel_shape": [kernel.shape[a] for a in dims.rhs_spec[2:]],
        "strides": list(p["window_strides"]),
        "dilations": list(p["rhs_dilation"]),
        "pads": [low for low, _ in padding] + [high for _, high in padding],
        "group": p["feature_group_count"],
    }
    return [graph.emit("Conv", [x.name, weights], shape, x.dtype, dims.out_spec, **more)]


def _product(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    """A matrix product, with operands arranged as [batch, free, summed] axes."""
    (contract, batch), (left, right) = eqn.params["dimension_numbers"], ins
    shape = eqn.outvars[0].aval.shape
    free = [
        [a for a in range(len(x.shape)) if a not in (*c, *b)]
        for x, c, b in zip(ins, contract, batch, strict=True)
    ]
    if _swapped(left, right, contract, batch, free):
        swapped = _matrices(graph, right, left, contract[::-1], batch[::-1], free[::-1])
        lead, count = len(batch[0]), len(free[1])
        axes = [*range(lead), *range(lead + count, len(shape)), *range(lead, lead + count)]
        return [permuted(swapped, axes)]
    return [_matrices(graph, left, right, contract, batch, free)]


def _swapped(left: Value, right: Value, contract: Any, batch: Any, free: Any) -> bool:
    """Whether operands change sides: a kernel goes right, and fewer are transposed."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return not isinstance(left, Tensor) and not batch[0]

    def moved(one: int, two: int) -> int:
        """Number of operands to transpose with operand `one` on the left."""
        ins = (left, right)
        axes = (
            (*batch[one], *free[one], *contract[one]),
            (*batch[two], *contract[two], *free[two]),
        )
        return (ins[one].order != axes[0]) + (ins[two].order != axes[1])

    return moved(1, 0) < moved(0, 1)


def _matrices(
    graph: Graph,
    left: Value,
    right: Value,
    contract: Sequence[Sequence[int]],
    batch: Sequence[Sequence[int]],
    free: Sequence[Sequence[int]],
) -> Tensor:
    """Matrix product; the result's axes are batch, free of the left, free of the right."""
    kept = [left.shape[a] for a in batch[0]]
    rows = [left.shape[a] for a in free[0]]
    columns = [right.shape[a] for a in free[1]]
    summed = math.prod(left.shape[a] for a in contract[0])
    # Rows may stay apart where a matrix of two axes stands on the right.
    flat = rows if rows and not kept else [math.prod(rows)]
    one = _arranged(graph, left, [*batch[0], *free[0], *contract[0]], [*kept, *flat, summed])
    two = _arranged(
        graph, right, [*batch[1], *contract[1], *free[1]], [*kept, summed, math.prod(columns)]
    )
    dtype = (left if isinstance(left, Tensor) else right).dtype
    out = graph.emit("MatMul", [one, two], [*kept, *flat, math.prod(columns)], dtype)
    return graph.reshape(out, [*kept, *rows, *columns])


def _arranged(graph: Graph, x: Value, axes: Sequence[int], shape: Sequence[int]) -> str:
    """Name of a value after transposing to an axis order and reshaping."""
    match x:
        case Tensor():
            return graph.reshape(permuted(x, axes), shape).name
        case Constant():
            return graph.array(full(graph, x).transpose(axes).reshape(shape), "kernel")
        case CodedKernel():
            return graph.dequantized(x.transposed(axes).reshaped(shape))


def _gather(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    """Rows along one axis."""
    table, at, p = ins[0], ins[1], eqn.params
    dims, shape = p["dimension_numbers"], eqn.outvars[0].aval.shape
    sizes = p["slice_sizes"]
    if len(dims.start_index_map) != 1 or dims.collapsed_slice_dims != dims.start_index_map:
        raise NotExportable("it gathers otherwise than whole rows along one axis")
    (axis,) = dims.start_index_map
    rest = [n for a, n in enumerate(table.shape) if a != axis]
    if [n for a, n in enumerate(sizes) if a != axis] != rest or dims.operand_batching_dims:
        raise NotExportable("it gathers parts of rows")
    if isinstance(at, Tensor):
        index = graph.reshape(at, at.shape[:-1]).name
    else:
        assert isinstance(at, Constant)
        index = graph.array(full(graph, at)[..., 0])
    lead = len(at.shape) - 1
    # Axes in the graph: those before, those of the indices, those after.
    inner = [*range(axis), *range(axis + lead, len(shape))]
    indices = range(axis, axis + lead)
    order = [0] * len(shape)
    others = [a for a in range(len(shape)) if a not in dims.offset_dims]
    for own, seen in (
        *zip(inner, dims.offset_dims, strict=True),
        *zip(indices, others, strict=True),
    ):
        order[own] = seen

    def taken(name: str, dtype: Any) -> Tensor:
        return graph.emit("Gather", [name, index], shape, dtype, order, axis=axis)

    match table:
        case Tensor():
            return [taken(graph.whole(table).name, table.dtype)]
        case Constant():
            return [taken(graph.array(full(graph, table)), table.dtype)]
        case CodedKernel():
            return [_rows_of_codes(graph, table, taken)]


def _rows_of_codes(graph: Graph, table: CodedKernel, taken: Callable[..., Tensor]) -> Tensor:
    """Look up rows of codes and dequantize only those; the table itself stays in codes."""
    name = graph.small(table.codes, table.bits, table.signed, native=False)
    codes = taken(name, np.int8)
    to = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    values = elementwise(graph, "Cast", [codes], np.float32, to=to)
    if table.zero.any():
        values = elementwise(
            graph, "Sub", [values, _looked_up(graph, table.zero, taken)], np.float32
        )
    return elementwise(
        graph, "Mul", [values, _looked_up(graph, table.scale, taken)], np.float32
    )


def _looked_up(graph: Graph, array: np.ndarray, taken: Callable[..., Tensor]) -> Value:
    """Scales or zero points of looked-up rows: one number, one row, or one per row."""
    array = array.astype(np.float32)
    if (array == array.flat[0]).all():
        return _scalar(array.flat[0], np.float32)
    whole = taken(graph.array(array, "kernel/scale"), np.float32)
    if not (array == array[:, :1]).all():
        return whole
    few = taken(graph.array(array[:, :1], "kernel/scale"), np.float32)
    return graph.known(dataclasses.replace(few, own=(*whole.own[:-1], 1)))


def _iota(graph: Graph, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    p = eqn.params
    shape, axis = p["shape"], p["dimension"]
    if graph.is_batch(shape[axis]):
        raise NotExportable("it counts the examples of the batch")
    own = [n if a == axis else 1 for a, n in enumerate(shape)]
    return [Constant(np.arange(shape[axis], dtype=p["dtype"]).reshape(own), tuple(shape))]


RULES: Mapping[str, Rule] = {
    "abs": _node("Abs"), "add": _node("Add"), "and": _node("And"), "ceil": _node("Ceil"),
    "cos": _node("Cos"), "div": _node("Div"), "eq": _node("Equal"), "erf": _node("Erf"),
    "exp": _node("Exp"), "floor": _node("Floor"), "ge": _node("GreaterOrEqual"),
    "gt": _node("Greater"), "le": _node("LessOrEqual"), "log": _node("Log"),
    "logistic": _node("Sigmoid"), "lt": _node("Less"), "max": _maximum,
    "min": _node("Min"), "mul": _node("Mul"), "neg": _node("Neg"), "not": _node("Not"),
    "or": _node("Or"), "pow": _node("Pow"), "sign": _node("Sign"), "sin": _node("Sin"),
    "sqrt": _node("Sqrt"), "sub": _node("Sub"), "tanh": _node("Tanh"),
    "rsqrt": _chain("Sqrt", "Reciprocal"), "erfc": _erfc, "log1p": _log1p,
    "square": _square, "integer_pow": _integer_pow, "ne": _unequal, "round": _round,
    "select_n": _select, "clamp": _clamp, "convert_element_type": _cast,
    "copy": _same, "copy_p": _same, "stop_gradient": _same, "reduce_precision": _same,
    "optimization_barrier": _same, "transpose": _transpose, "broadcast_in_dim": _broadcast,
    "reshape": _reshape, "squeeze": _reshape, "expand_dims": _reshape, "slice": _slice,
    "split": _split, "pad": _pad, "concatenate": _concatenate, "iota": _iota,
    "reduce_sum": _reduce("ReduceSum"), "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"), "reduce_window_max": _window("MaxPool"),
    "reduce_window_sum": _window("AveragePool"), "conv_general_dilated": _convolution,
    "dot_general": _product, "gather": _gather,
}  # fmt: skip
