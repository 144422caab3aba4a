"""Layers of a ``.tflite`` file: found by their kernels, renamed, and given our codes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.tools import flatbuffer_utils
from jaxtyping import Float, Int

from jmpq.export.matching import find_layer, kernel_matrices
from jmpq.network.network import Network

KERNEL = {  # position of the kernel among the inputs, its axes as output, input, positions
    "CONV_2D": (1, (0, 3, 1, 2)),
    "DEPTHWISE_CONV_2D": (1, (3, 0, 1, 2)),
    "FULLY_CONNECTED": (1, (0, 1)),
    "BATCH_MATMUL": (1, (1, 0)),
}
BIAS = 2  # position of the bias
SAME_SCALE = ("PAD", "PADV2", "RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "MAX_POOL_2D")
NIBBLES = 2


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Product:
    """A layer's use in a file.

    Attributes:
        layer: Position of the layer in the table.
        name: Name of the layer, numbered from its second use on.
        operation: Name of the operation.
        source: Tensors with the values of the layer's input, from the operation backwards.
        factor: Factor of each output channel of the kernel.
        bias: Bias in floats; empty if there is none.
    """

    layer: int
    name: str
    operation: str
    source: tuple[str, ...]
    factor: Float[np.ndarray, " outputs"]
    bias: Float[np.ndarray, " _"]

    @property
    def kernel(self) -> str:
        """Name of the kernel's tensor."""
        return f"{self.name}/kernel"


def read_file(content: bytes) -> Any:
    """Parse a file into the schema's objects."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def written_file(model: Any) -> bytes:
    """Serialise the schema's objects."""
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def custom_outputs(content: bytes) -> str:
    """Names of the outputs of custom operations."""
    model = read_file(content)
    graph = model.subgraphs[0]
    names = [
        graph.tensors[output].name.decode()
        for op in graph.operators
        if _kind(model, op) == "CUSTOM"
        for output in op.outputs
    ]
    return " ".join(names)


def named_products(model: Any, network: Network) -> list[Product]:
    """Find every layer's operations, in order; rename their outputs and kernels.

    Raises:
        ValueError: If no operation has a layer's kernel; the message names the layer.
    """
    graph = model.subgraphs[0]
    matrices = kernel_matrices(network)
    made_by = {int(t): op for op in graph.operators for t in op.outputs}
    found: list[Product] = []
    uses = [0] * len(matrices)
    for op in graph.operators:
        kind = _kind(model, op)
        if kind not in KERNEL or (match := _match(model, op, kind, matrices)) is None:
            continue
        layer, factor = match
        uses[layer] += 1
        name = network.layers[layer].name + (f"#{uses[layer]}" if uses[layer] > 1 else "")
        tensors = graph.tensors
        tensors[op.outputs[0]].name = name.encode()
        tensors[op.inputs[KERNEL[kind][0]]].name = f"{name}/kernel".encode()
        has_bias = len(op.inputs) > BIAS and op.inputs[BIAS] >= 0
        found.append(
            Product(
                layer=layer,
                name=name,
                operation=kind,
                source=tuple(_sources(model, int(op.inputs[0]), made_by)),
                factor=factor,
                bias=_floats(model, op.inputs[BIAS]) if has_bias else np.zeros(0, np.float32),
            )
        )
    lost = [x.name for x, n in zip(network.layers, uses, strict=True) if not n and x.macs]
    if lost:
        raise ValueError(
            f"The converter left no operation with the kernel of layer {lost[0]!r}: LiteRT's "
            f"fast kernels are {', '.join(KERNEL)}. Export to another format."
        )
    return [_renamed(model, product) for product in found]


def put_codes(
    model: Any,
    product: Product,
    codes: Int[np.ndarray, "outputs inputs"],
    scale: Float[np.ndarray, " outputs"],
    bits: int,
) -> None:
    """Replace the quantizer's codes and scales of a kernel, and its bias, by ours.

    Raises:
        ValueError: If the quantizer left the layer in floats.
    """
    graph = model.subgraphs[0]
    at = next(i for i, x in enumerate(graph.tensors) if x.name == product.kernel.encode())
    tensor = graph.tensors[at]
    if not _scales(tensor).size:
        raise ValueError(
            f"ai-edge-quantizer left layer {product.name!r} in floats: it has no kernel of "
            f"{bits} bits for {product.operation}. Choose other bits for the layer."
        )
    signs = np.where(product.factor < 0, -1, 1)
    axes = KERNEL[product.operation][1]
    shape = [tensor.shape[axis] for axis in axes]
    array = (codes * signs[:, None]).reshape(shape).transpose(np.argsort(axes))
    own_scale = (np.abs(product.factor) * scale).astype(np.float32)
    # An output without weights has no factor; the quantizer's scale of it stays.
    own_scale = np.where(own_scale > 0, own_scale, np.resize(_scales(tensor), shape[0]))
    tensor.quantization.scale = own_scale
    data = array.astype(np.int8).reshape(-1)
    if bits == 4:
        pairs = np.pad(data, (0, data.size % NIBBLES)).reshape(-1, NIBBLES) & 15
        data = pairs[:, 0] | pairs[:, 1] << 4
    model.buffers[tensor.buffer].data = data.astype(np.uint8)
    for op in graph.operators:
        if at in op.inputs and len(op.inputs) > BIAS and op.inputs[BIAS] >= 0:
            _put_bias(model, graph.tensors[op.inputs[0]], op.inputs[BIAS], own_scale, product)


def _put_bias(
    model: Any, source: Any, index: int, kernel_scale: np.ndarray, product: Product
) -> None:
    bias = model.subgraphs[0].tensors[index]
    if not _scales(bias).size:
        return  # the input is in floats, and so is the bias
    scale = kernel_scale.astype(np.float64) * float(_scales(source)[0])
    wide = np.dtype(
        np.int64 if bias.type == flatbuffer_utils.schema_fb.TensorType.INT64 else np.int32
    )
    ends = np.iinfo(wide)
    codes = np.clip(np.round(product.bias / scale), ends.min, ends.max).astype(wide)
    bias.quantization.scale = scale.astype(np.float32)
    model.buffers[bias.buffer].data = codes.view(np.uint8)


def _match(
    model: Any, op: Any, kind: str, matrices: Sequence[np.ndarray]
) -> tuple[int, np.ndarray] | None:
    """Layer of an operation and the factor of each output channel."""
    position, axes = KERNEL[kind]
    tensor = model.subgraphs[0].tensors[op.inputs[position]]
    array = _floats(model, op.inputs[position])
    if not array.size or len(tensor.shape) != len(axes):
        return None
    seen = array.reshape(tensor.shape).transpose(axes)
    return find_layer(seen.reshape(len(seen), -1), matrices)


def _renamed(model: Any, product: Product) -> Product:
    """The product with the final names of its input tensors."""
    tensors = model.subgraphs[0].tensors
    names = tuple(tensors[int(i)].name.decode() for i in product.source)
    return dataclasses.replace(product, source=names)


def _sources(model: Any, index: int, made_by: dict[int, Any]) -> list[str]:
    """Tensors with the same values as an operation's input, from there backwards."""
    found = [str(index)]
    while (op := made_by.get(index)) is not None and _kind(model, op) in SAME_SCALE:
        index = int(op.inputs[0])
        found.append(str(index))
    return found


def _scales(tensor: Any) -> np.ndarray:
    """Scales of a tensor; empty for a float tensor."""
    found = None if tensor.quantization is None else tensor.quantization.scale
    return np.zeros(0, np.float32) if found is None else np.asarray(found, np.float32)


def _kind(model: Any, op: Any) -> str:
    return flatbuffer_utils.opcode_to_name(model, op.opcodeIndex) or ""


def _floats(model: Any, index: int) -> np.ndarray:
    """Values of a float32 constant; empty for other tensors."""
    tensor = model.subgraphs[0].tensors[index]
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type != flatbuffer_utils.schema_fb.TensorType.FLOAT32:
        return np.zeros(0, np.float32)
    return np.frombuffer(bytes(data), np.float32)
