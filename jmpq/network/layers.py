"""The layer table: all that later stages know of a network. Plain data, no JAX."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from jmpq.kinds import check_kinds

Kind = Literal["conv", "dense", "embedding", "cache"]
TieKind = Literal[
    "downsample",
    "depthwise",
    "residual",
    "shared_input",
    "qkv",
    "gate_up",
    "encoder_layer",
]


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One quantizable layer: a kernel parameter and the operations that use it.

    A row of kind ``cache`` (`jmpq.quantizers.products`) has no kernel: keys or values of an
    attention. Its shape of a kernel is a placeholder, and its input has the positions first.

    Attributes:
        name: Path of the kernel in the parameters, '/'-joined, without the leaf's own
            name: ``"stage1/block0/conv1"`` for ``stage1/block0/conv1/kernel``,
            ``"layers/mlp[3]"`` for ``layers/mlp/kernel[3]``.
        kind: ``"conv"``, ``"dense"`` (any ``dot_general``), ``"embedding"`` (a gather) or
            ``"cache"`` (keys or values).
        kernel: Path of the kernel leaf, '/'-joined; the slice of a stack has its index behind.
        kernel_shape: Shape of the kernel as the operation sees it.
        output_axes: Axes of `kernel_shape` along output features (rows of an embedding).
        input_axes: Axes of `kernel_shape` along input features; axes in neither are spatial.
        parameters: Number of elements of the kernel (a shared kernel counts once); none of a
            cache.
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
        if self.parameters != math.prod(self.kernel_shape) * (self.kind != "cache"):
            raise ValueError(
                f"Layer {self.name!r}: {self.parameters} parameters, but its kernel has "
                f"shape {self.kernel_shape}."
            )

    @property
    def output_features(self) -> int:
        """Number of output channels: rows of the kernel seen as a matrix."""
        return math.prod(self.kernel_shape[axis] for axis in self.output_axes)

    @property
    def columns(self) -> int:
        """Columns of the kernel seen as a matrix."""
        return math.prod(self.kernel_shape) // max(self.output_features, 1)

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


LayerType = Literal[
    "conv", "depthwise", "embedding", "q", "k", "v", "qkv", "o", "gate", "up", "down",
    "fc1", "fc2", "head", "dense", "keys", "values",
]  # fmt: skip
# Last parts of names, as zoos write them, by type; the first that matches wins.
_TYPES: tuple[tuple[str, LayerType], ...] = (
    (r"(.*/)?(q|query|q_proj|to_q|wq|q_lin)", "q"),
    (r"(.*/)?(k|key|k_proj|to_k|wk|k_lin)", "k"),
    (r"(.*/)?(v|value|v_proj|to_v|wv|v_lin)", "v"),
    (r"(.*/)?(qkv|to_qkv|in_proj|qkv_proj|c_attn|query_key_value)", "qkv"),
    (r"(.*/)?(o_proj|out_proj|to_out|wo|out_lin)", "o"),
    (r"(.*/)?([^/]*att[^/]*/(.*/)?(proj|out|dense|c_proj|output))", "o"),
    (r"(.*/)?(gate|gate_proj|wi_0)", "gate"),
    (r"(.*/)?(up|up_proj|wi_1)", "up"),
    (r"(.*/)?(down|down_proj)", "down"),
    (r"(.*/)?(fc1|fc_1|c_fc|lin1|linear1|linear_1|intermediate/dense|wi)", "fc1"),
    (r"(.*/)?(fc2|fc_2|lin2|linear2|linear_2|output/dense)", "fc2"),
    (r"(.*/)?([^/]*(mlp|feed_?forward|ffn)[^/]*/(0|dense_0|dense|linear))", "fc1"),
    (r"(.*/)?([^/]*(mlp|feed_?forward|ffn)[^/]*/([1-9]|dense_1|c_proj))", "fc2"),
    (r"(.*/)?feed_forward/w1", "gate"),
    (r"(.*/)?feed_forward/w3", "up"),
    (r"(.*/)?feed_forward/w2", "down"),
    (r"(.*/)?(lm_head|head|classifier|logits|score)|fc|linear", "head"),
)


def types_of(layers: Sequence[Layer]) -> dict[str, LayerType]:
    """Type of every layer by its name."""
    return {layer.name: layer_type(layer) for layer in layers}


def layer_type(layer: Layer) -> LayerType:
    """Part that a layer plays, told by its kind, its shape and the last parts of its name.

    Tables and figures group by it. A name that is not known is a ``dense`` or a ``conv``
    layer; the number of an attention head behind ``query`` does not matter.
    """
    if layer.kind == "embedding":
        return "embedding"
    if layer.kind == "cache":
        return "keys" if layer.name.partition(":")[2].startswith("keys") else "values"
    if layer.kind == "conv":
        # One input channel per group, of more channels than one.
        groups = math.prod(layer.kernel_shape[axis] for axis in layer.input_axes) == 1
        alone = 1 in (layer.input_shape[:1] + layer.input_shape[-1:])
        return "depthwise" if groups and not alone else "conv"
    name = re.sub(r"\[\d+\]$", "", layer.name).lower()
    for candidate in (name, re.sub(r"/\d+$", "", name)):
        for pattern, kind in _TYPES:
            if re.fullmatch(pattern, candidate):
                return kind
    return "dense"
