"""Values of the ONNX emitter: tensors of the graph, constants, coded kernels.

The walk over the jaxpr passes these to the rules in place of arrays. Layout is lazy: a
transposition changes only a tensor's `order`, a broadcast only its `shape`. Nodes are written
when an operation needs the elements in place. Sizes that depend on the batch are multiples of
`Graph.batch`, a prime of which no other size is a multiple.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float, Int
from onnx import TensorProto, helper, numpy_helper

from jmpq.export.bit_strings import pack
from jmpq.export.codes import stored_bits


class NotExportable(ValueError):
    """Error: the format or this emitter cannot express a primitive; names the place."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the graph.

    Attributes:
        name: Name in the graph.
        shape: Shape in the traced function.
        own: Shape without broadcasting: 1 along repeated axes.
        dtype: Type of the elements.
        order: Axis of the traced function for every axis in the graph.
    """

    name: str
    shape: tuple[int, ...]
    own: tuple[int, ...]
    dtype: np.dtype
    order: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A known array of the same rank as `shape`, of size 1 along repeated axes."""

    array: np.ndarray
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class CodedKernel:
    """A kernel in an operation's layout: ``scale · (codes − zero)``, element by element.

    Attributes:
        codes: Integer codes.
        scale: Scale of every element.
        zero: Zero point of every element.
        bits: Bits of a code.
        signed: Whether codes may be negative.
    """

    codes: Int[np.ndarray, "*shape"]
    scale: Float[np.ndarray, "*shape"]
    zero: Int[np.ndarray, "*shape"]
    bits: int
    signed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def transposed(self, axes: Sequence[int]) -> "CodedKernel":
        return self._each(lambda x: x.transpose(axes))

    def reshaped(self, shape: Sequence[int]) -> "CodedKernel":
        return self._each(lambda x: x.reshape(shape))

    def _each(self, function: Any) -> "CodedKernel":
        codes, scale, zero = (function(x) for x in (self.codes, self.scale, self.zero))
        return CodedKernel(codes, scale, zero, self.bits, self.signed)


Value = Tensor | Constant | CodedKernel


class Graph:
    """The nodes and initializers written so far.

    Args:
        batch: Prime that stands for the batch size.
        native: Whether DequantizeLinear reads codes below 8 bits directly, without a Cast.
        smallest: Least bits at which codes are stored.
    """

    def __init__(self, batch: int, *, native: bool, smallest: int) -> None:
        self.batch, self.native, self.smallest = batch, native, smallest
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.codes: dict[str, onnx.TensorProto] = {}
        self.extents: dict[str, tuple[int, ...]] = {}  # of tensors, axes as in the graph
        self.opset = 21
        self._known: dict[Any, Any] = {}
        self._count = 0

    def fresh(self, stem: str) -> str:
        """A name that is not in use."""
        self._count += 1
        return f"{stem}_{self._count}"

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Write a node, or reuse an identical one; returns the name of its only output."""
        key = (kind, tuple(inputs), repr(sorted(attributes.items())))
        if key not in self._known:
            name = self.fresh(kind.lower())
            self.nodes.append(
                helper.make_node(kind, list(inputs), [name], name=name, **attributes)
            )
            self._known[key] = name
        return self._known[key]

    def array(self, array: Any, stem: str = "constant") -> str:
        """Name of an initializer."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        key = (stem, array.dtype.str, array.shape, digest)
        if key not in self._known:
            self._known[key] = self.fresh(stem)
            self.arrays[self._known[key]] = array
        return self._known[key]

    def small(
        self, codes: Int[np.ndarray, "*shape"], bits: int, signed: bool, *, native: bool
    ) -> str:
        """Codes as an initializer of the next available type; cast unless `native`."""
        width = stored_bits(bits, self.smallest)
        kind = f"{'' if signed else 'U'}INT{width}"
        packed = pack(codes.reshape(-1) & (2**width - 1), width).tobytes()
        tensor = helper.make_tensor(
            self.fresh("kernel/codes"),
            getattr(TensorProto, kind),
            codes.shape,
            packed,
            raw=True,
        )
        self.codes[tensor.name] = tensor
        if width == 2:
            self.opset = 25
        if width >= 8 or native:
            return tensor.name
        whole = TensorProto.INT8 if signed else TensorProto.UINT8
        return self.node("Cast", [tensor.name], to=whole)

    def zero_point(self, codes: str, zero: np.ndarray) -> str:
        """Name of the zero points of a kernel, which no other kernel may share.

        Without VNNI onnxruntime replaces signed kernels and their zero points by unsigned ones
        (option `EXACT` of `jmpq.export.check`), each under a name made of the old one.
        """
        return self.array(zero, f"zero_point/{codes}")

    def initializers(self) -> list[onnx.TensorProto]:
        """All initializers that a node reads."""
        read = {name for node in self.nodes for name in node.input}
        arrays = [numpy_helper.from_array(x, n) for n, x in self.arrays.items() if n in read]
        return arrays + [tensor for name, tensor in self.codes.items() if name in read]

    def is_batch(self, size: int) -> bool:
        """Whether a size depends on the batch."""
        return size > 0 and size % self.batch == 0

    # Tensors in the order, shape and extent that an operation needs.

    def known(self, x: Tensor) -> Tensor:
        """The same tensor, its sizes in the graph noted."""
        self.extents[x.name] = tuple(x.own[axis] for axis in x.order)
        return x

    def emit(
        self,
        kind: str,
        inputs: Sequence[str],
        shape: Sequence[int],
        dtype: Any,
        order: Sequence[int] | None = None,
        own: Sequence[int] | None = None,
        **attributes: Any,
    ) -> Tensor:
        """Write a node; by default `order` is the identity and `own` the whole shape."""
        return self.known(
            Tensor(
                self.node(kind, inputs, **attributes),
                tuple(shape),
                tuple(shape if own is None else own),
                np.dtype(dtype),
                tuple(range(len(shape)) if order is None else order),
            )
        )

    def ordered(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """The same tensor with its graph axes in the given order."""
        order = tuple(order)
        if x.order == order:
            return x
        axes = [x.order.index(axis) for axis in order]
        name = self.node("Transpose", [x.name], perm=axes)
        return self.known(dataclasses.replace(x, name=name, order=order))

    def whole(self, x: Tensor, order: Sequence[int] | None = None) -> Tensor:
        """The same tensor with broadcasting applied and axes in the function's order."""
        x = self.ordered(x, range(len(x.shape)) if order is None else order)
        if x.own == x.shape:
            return x
        sizes = []
        for axis in x.order:
            repeated = x.own[axis] != x.shape[axis]
            if repeated and self.is_batch(x.shape[axis]):
                raise NotExportable("a value is repeated for every example of the batch")
            sizes.append(x.shape[axis] if repeated else 1)
        name = self.node("Expand", [x.name, self.array(np.array(sizes, np.int64))])
        return self.known(dataclasses.replace(x, name=name, own=x.shape))

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Reshape a tensor, elements in the function's order."""
        x = self.whole(x)
        if x.shape == tuple(shape):
            return x
        return self.resized(x, shape, shape, range(len(shape)))

    def resized(
        self, x: Tensor, shape: Sequence[int], own: Sequence[int], order: Sequence[int]
    ) -> Tensor:
        """Write a Reshape of the elements as they are in the graph, to the sizes `own`."""
        sizes = self.array(np.array(self.sizes([own[axis] for axis in order]), np.int64))
        return self.emit("Reshape", [x.name, sizes], shape, x.dtype, order, own)

    def sizes(self, shape: Sequence[int]) -> list[int]:
        """Sizes for a Reshape; -1 for the size that depends on the batch."""
        sizes = [-1 if self.is_batch(size) else size for size in shape]
        if sizes.count(-1) > 1:
            raise NotExportable("two axes depend on the size of the batch")
        return sizes

    def name_of(self, x: Value, order: Sequence[int] = ()) -> str:
        """Name of a value for a broadcasting node, with axes in the given order."""
        match x:
            case Tensor():
                return self.ordered(x, order).name
            case Constant():
                array = x.array.transpose(order) if x.array.ndim == len(order) else x.array
                return self.array(array)
            case CodedKernel():
                return self.dequantized(x.transposed(order))

    def dequantized(self, kernel: CodedKernel) -> str:
        """Write the nodes that dequantize a kernel."""
        codes = self.small(kernel.codes, kernel.bits, kernel.signed, native=self.native)
        zero_type = np.dtype(
            f"{'' if kernel.signed else 'u'}int{8 if kernel.bits <= 8 else 16}"
        )
        scale, zero = _reduced(kernel.scale, kernel.zero)
        varying = [axis for axis, size in enumerate(scale.shape) if size > 1]
        zeros = zero.astype(zero_type)
        if len(varying) > 1 or (self.native and kernel.bits <= 4 and zeros.any()):
            values = self.node("Cast", [codes], to=TensorProto.FLOAT)
            if zeros.any():
                values = self.node("Sub", [values, self.array(zero.astype(np.float32))])
            return self.node("Mul", [values, self.array(scale.astype(np.float32))])
        flat = (lambda x: x.reshape(-1)) if varying else (lambda x: x.reshape(()))
        inputs = [codes, self.array(flat(scale.astype(np.float32)), "kernel/scale")]
        if zeros.any() or not (self.native and kernel.bits <= 4):
            inputs.append(self.zero_point(codes, flat(zeros)))
        axis = {"axis": varying[0]} if varying else {}
        return self.node("DequantizeLinear", inputs, **axis)


def _reduced(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same arrays, reduced to size 1 along axes on which all are constant."""
    for axis in range(arrays[0].ndim):
        first = [np.take(x, [0], axis) for x in arrays]
        if all((x == f).all() for x, f in zip(arrays, first, strict=True)):
            arrays = tuple(first)
    return arrays
