"""The layer table: all that later stages know of a network. Plain data, no JAX."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

Kind = Literal["conv", "dense", "embedding"]
TieKind = Literal["downsample", "depthwise", "residual", "shared_input"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One quantizable layer: a kernel parameter and the operations that use it.

    Attributes:
        name: Path of the kernel in the parameters, '/'-joined, without the leaf's own
            name: ``"stage1/block0/conv1"`` for ``stage1/block0/conv1/kernel``,
            ``"layers/mlp[3]"`` for ``layers/mlp/kernel[3]``.
        kind: ``"conv"``, ``"dense"`` (any ``dot_general``) or ``"embedding"`` (a gather).
        kernel: Path of the kernel leaf, '/'-joined; the slice of a stack has its index behind.
        kernel_shape: Shape of the kernel as the operation sees it.
        output_axes: Axes of `kernel_shape` along output features (rows of an embedding).
        input_axes: Axes of `kernel_shape` along input features; axes in neither are spatial.
        parameters: Number of elements of the kernel (a shared kernel counts once).
        macs: Multiply-accumulates of one example, summed over all uses of the kernel.
        input_shape: Shape of one example's input, batch axis removed (of the first use).
        output_shape: Shape of one example's output, batch axis removed (of the first use).
        aliases: Paths of other leaves or uses that share this kernel.
    """

    name: str
    kind: Kind
    kernel: str
    kernel_shape: tuple[int, ...]
    output_axes: tuple[int, ...]
    input_axes: tuple[int, ...]
    parameters: int
    macs: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.macs, *self.kernel_shape, *self.input_shape, *self.output_shape)
        axes = (*self.output_axes, *self.input_axes)
        if min(sizes) < 0 or not set(axes) <= set(range(len(self.kernel_shape))):
            raise ValueError(
                f"Layer {self.name!r}: sizes {sizes} must not be negative, and axes {axes} "
                f"must be those of a kernel of shape {self.kernel_shape}."
            )
        if self.parameters != math.prod(self.kernel_shape):
            raise ValueError(
                f"Layer {self.name!r}: {self.parameters} parameters, but its kernel has "
                f"shape {self.kernel_shape}."
            )

    @property
    def output_features(self) -> int:
        """Number of output channels: rows of the kernel seen as a matrix."""
        return math.prod(self.kernel_shape[axis] for axis in self.output_axes)

    @property
    def input_size(self) -> int:
        """Elements of one example's input."""
        return math.prod(self.input_shape)

    @property
    def output_size(self) -> int:
        """Elements of one example's output."""
        return math.prod(self.output_shape)


def layers_to_json(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The layer table as plain JSON values."""
    return [dataclasses.asdict(layer) for layer in layers]


def layers_from_json(rows: Sequence[dict[str, Any]]) -> tuple[Layer, ...]:
    """Inverse of `layers_to_json`."""
    listed = [{k: tuple(v) if isinstance(v, list) else v for k, v in r.items()} for r in rows]
    return tuple(Layer(**row) for row in listed)  # type: ignore[arg-type]
