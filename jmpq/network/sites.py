"""Sites: where the layers of a network touch the data, and the geometry of what they do."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array

from jmpq.network.layers import Kind, Layer
from jmpq.network.walk import Path, bind


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Operation:
    """An equation with exactly one operand that is a kernel; the other one is its input.

    Of kind ``cache`` it multiplies two activations: its input is the one that a decoder keeps,
    and it has no kernel (`kernel_shape` is that of a placeholder).

    Attributes:
        path: Position of the equation in the jaxpr.
        eqn: Equation, traced with two examples: its parameters hold for any number.
        leaf: Index of the kernel among the pieces of the parameters (`Tap.pieces`): a leaf,
            or a slice of a stack. Caches are counted behind the pieces.
        kind: Kind of operation.
        view: Equations between the leaf and the operand, in order.
        operand: Position of the kernel among the operands.
        kernel_shape: Shape of the operand.
        output_axes: Axes of the operand along output features.
        input_axes: Axes of the operand along input features.
        feature_axes: Axes of the input along which features lie.
        features: Number of input features.
        input_shape: Input shape for one example; the batch axis is left out.
        output_shape: Output shape for one example; the batch axis is left out.
        input_batch_axis: Batch axis of the input.
        output_batch_axis: Batch axis of the output.
        repeat: Rows of the batch axis per example (more than one where the function
            merged another axis into it).
        macs: Multiply-accumulates per example; those with padding count, those with the zeros
            between the inputs of a transposed convolution do not.
    """

    path: Path
    eqn: Any
    leaf: int
    kind: Kind
    view: tuple[Any, ...]
    operand: int
    kernel_shape: tuple[int, ...]
    output_axes: tuple[int, ...]
    input_axes: tuple[int, ...]
    feature_axes: tuple[int, ...]
    features: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_batch_axis: int
    output_batch_axis: int
    repeat: int
    macs: int

    def see(self, leaf: Array) -> Array:
        """The leaf as the operation sees it: rearranged, perhaps cast."""
        for eqn in self.view:
            leaf = bind(eqn, [leaf])[0]
        return leaf

    def unsee(self, operand: Array, leaf: Array) -> Array:
        """Inverse of `see`; `leaf` gives shape and dtype."""
        struct = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return jax.linear_transpose(self.see, struct)(operand)[0]

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution with a group for every input feature."""
        return self.features > 1 and self.sees_one_feature

    @property
    def sees_one_feature(self) -> bool:
        """Whether it is a convolution with one input feature an output: depthwise, or grey."""
        return self.eqn.params.get("feature_group_count") == self.features


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """One use of a layer in a network; `Network.run` hands it to the transform.

    Attributes:
        index: Position among `Network.sites`, in the order of execution.
        name: Name of the layer, numbered from its second use on.
        layer: Row of the layer table.
        layer_index: Position of the layer in the table.
        operation: Operation that uses the kernel.
        kernel: Kernel leaf as it stands in the parameters of the run, those of the network
            itself in `Network.sites`.
    """

    index: int
    name: str
    layer: Layer
    layer_index: int
    operation: Operation
    kernel: Array

    @property
    def has_input(self) -> bool:
        """Whether the input is an activation (an embedding's are indices)."""
        return self.operation.kind != "embedding"

    @property
    def has_both(self) -> bool:
        """Whether an activation meets a kernel."""
        return self.operation.kind not in ("embedding", "cache")

    @property
    def features(self) -> int:
        """Number of input features."""
        return self.operation.features

    @property
    def feature_axes(self) -> tuple[int, ...]:
        """Axes of the input along which features lie."""
        return self.operation.feature_axes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Input shape for one example; the batch axis is left out."""
        return self.operation.input_shape

    @property
    def input_batch_axis(self) -> int:
        """Batch axis of the input."""
        return self.operation.input_batch_axis

    @property
    def output_batch_axis(self) -> int:
        """Batch axis of the output."""
        return self.operation.output_batch_axis

    @property
    def repeat(self) -> int:
        """Rows of the batch axis per example."""
        return self.operation.repeat


@runtime_checkable
class Op(Protocol):
    """The original operation of a site, on any input, with its own kernel or another leaf."""

    def __call__(self, x: Any, kernel: Any = None) -> Any: ...


Transform = Callable[[Site, Any, Op], Any]  # (site, input, op) -> output of the site


class Use(NamedTuple):
    """A kernel that meets the data in an equation, before the batch axis is known."""

    path: Path
    eqn: Any
    kind: Kind
    operand: int
    leaf: int
    view: tuple[Any, ...]


class Product(NamedTuple):
    """A product of two activations.

    Attributes:
        path: Position of the equation in the jaxpr.
        eqn: Equation.
        origins: For each operand, the equations of the kernels that it comes from with no other
            kernel between.
        passed: For each operand, whether another product lies between.
    """

    path: Path
    eqn: Any
    origins: tuple[frozenset[Path], ...]
    passed: tuple[bool, ...]


class Cached(NamedTuple):
    """An operand of a product that a decoder keeps from token to token.

    Attributes:
        product: Position among the products of the function.
        operand: Position among the operands.
        role: Keys have features that the product sums over, values positions.
    """

    product: int
    operand: int
    role: Literal["keys", "values"]


class NoBatchAxis(ValueError):
    """An input or output whose batch axis cannot be told."""


def operation_of(two: Use, three: Use) -> Operation:
    """The operation of a use that was traced with two examples and with three.

    Raises:
        NoBatchAxis: If not exactly one axis of input and output grows with the examples.
    """
    eqn = two.eqn
    data, kernel = eqn.invars[1 - two.operand].aval, eqn.invars[two.operand].aval
    in_axis, in_shape, repeat = _example(data, three.eqn.invars[1 - two.operand].aval)
    out_axis, out_shape, _ = _example(eqn.outvars[0].aval, three.eqn.outvars[0].aval)
    output_axes, input_axes, feature_axes = _axes(eqn, two.operand)
    return Operation(
        path=two.path,
        eqn=eqn,
        leaf=two.leaf,
        kind=two.kind,
        view=two.view,
        operand=two.operand,
        kernel_shape=tuple(kernel.shape),
        output_axes=output_axes,
        input_axes=input_axes,
        feature_axes=feature_axes,
        features=math.prod(data.shape[a] for a in feature_axes),
        input_shape=in_shape,
        output_shape=out_shape,
        input_batch_axis=in_axis,
        output_batch_axis=out_axis,
        repeat=repeat,
        macs=_macs(two, in_shape),
    )


def cache_operation(leaf: int, cached: Cached, two: Product, three: Product) -> Operation:
    """The operation of a product with one operand that is kept, traced with two and three.

    Raises:
        NoBatchAxis: If not exactly one axis of operand and output grows with the examples.
    """
    eqn, own = two.eqn, cached.operand
    data, output = eqn.invars[own].aval, eqn.outvars[0].aval
    in_axis, in_shape, repeat = _example(data, three.eqn.invars[own].aval)
    out_axis, out_shape, _ = _example(output, three.eqn.outvars[0].aval)
    contract, batch = (axes[own] for axes in eqn.params["dimension_numbers"])
    free = tuple(a for a in range(data.ndim) if a not in (*contract, *batch))
    positions = free if cached.role == "keys" else tuple(contract)
    feature_axes = tuple(a for a in range(data.ndim) if a not in (in_axis, *positions))
    return Operation(
        path=two.path,
        eqn=eqn,
        leaf=leaf,
        kind="cache",
        view=(),
        operand=1 - own,
        kernel_shape=(1,),
        output_axes=(0,),
        input_axes=(),
        feature_axes=feature_axes,
        features=math.prod(data.shape[a] for a in feature_axes),
        input_shape=in_shape,
        output_shape=out_shape,
        input_batch_axis=in_axis,
        output_batch_axis=out_axis,
        repeat=repeat,
        macs=output.size // 2 * math.prod(data.shape[a] for a in contract),
    )


def _example(two: Any, three: Any) -> tuple[int, tuple[int, ...], int]:
    """Batch axis, shape of one example, rows per example, from a value of two and three."""
    axes = [a for a, (m, n) in enumerate(zip(two.shape, three.shape, strict=True)) if m != n]
    if len(axes) != 1 or two.shape[axes[0]] * 3 != three.shape[axes[0]] * 2:
        raise NoBatchAxis(
            f"its input or output ({two.str_short()} for two examples) has no batch axis"
        )
    repeat = two.shape[axes[0]] // 2
    rest = tuple(np.delete(two.shape, axes[0]).tolist())
    return axes[0], (repeat,) * (repeat > 1) + rest, repeat


def _axes(eqn: Any, operand: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Output and input axes of the kernel, feature axes of the input."""
    match eqn.primitive.name:
        case "conv_general_dilated":
            dims = eqn.params["dimension_numbers"]
            return (dims.rhs_spec[0],), (dims.rhs_spec[1],), (dims.lhs_spec[1],)
        case "dot_general":
            (contract, other), (batch, _) = kernel_first(eqn, operand)
            rank = eqn.invars[operand].aval.ndim
            free = tuple(a for a in range(rank) if a not in (*contract, *batch))
            return (*batch, *free), tuple(contract), tuple(other)
        case _:
            return (0,), tuple(range(1, eqn.invars[operand].aval.ndim)), ()


def _macs(use: Use, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one example."""
    eqn, kernel = use.eqn, use.eqn.invars[use.operand].aval
    match use.kind:
        case "conv":
            dims = eqn.params["dimension_numbers"]
            image, spatial = eqn.outvars[0].aval, dims.out_spec[2:]
            if max(eqn.params["lhs_dilation"]) > 1:  # the zeros between cost nothing
                image, spatial = eqn.invars[1 - use.operand].aval, dims.lhs_spec[2:]
            return kernel.size * math.prod(image.shape[a] for a in spatial)
        case "dense":
            (contract, _), (batch, _) = kernel_first(eqn, use.operand)
            shared = math.prod(kernel.shape[a] for a in (*contract, *batch))
            return kernel.size * math.prod(input_shape) // shared
        case _:
            return 0


def kernel_first(eqn: Any, operand: int) -> tuple[Any, Any]:
    """Dimension numbers of a ``dot_general`` with the kernel's axes first in each pair."""
    contract, batch = eqn.params["dimension_numbers"]
    return (contract, batch) if operand == 0 else (contract[::-1], batch[::-1])
