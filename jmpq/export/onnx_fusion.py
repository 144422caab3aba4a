"""Nodes that runtimes have kernels for: what follows a product moved into it.

Batch normalisation after a convolution multiplies the scales of its kernel, never the codes,
and adds to its bias; a bias after a matrix product makes a ``Gemm``, with an int32 bias where
both operands are quantized, as integer kernels add it.
"""

import collections

import numpy as np
import onnx

from jmpq.export.onnx_values import Graph

PRODUCTS = ("Conv", "MatMul")
BIAS_STEPS = 256  # least codes between zero and the greatest bias
AFFINE = ("Add", "Sub", "Mul", "Div")


def fuse(graph: Graph, outputs: set[str]) -> None:
    """Fuse what can be fused, drop what nothing reads; `outputs` are names that stay."""
    for node in [node for node in graph.nodes if node.op_type in PRODUCTS]:
        while _fused(graph, node, outputs):
            pass
    _sort(graph)
    _drop_dead(graph, outputs)


def _fused(graph: Graph, node: onnx.NodeProto, outputs: set[str]) -> bool:
    """Whether the node after a product was moved into it."""
    readers = [i for i, other in enumerate(graph.nodes) if node.output[0] in other.input]
    if len(readers) != 1 or node.output[0] in outputs:
        return False
    after = graph.nodes[readers[0]]
    first = after.input[0] == node.output[0]
    if after.op_type not in AFFINE or (not first and after.op_type in ("Sub", "Div")):
        return False
    other = graph.arrays.get(after.input[1 if first else 0])
    moved = _into_conv if node.op_type == "Conv" else _into_gemm
    if other is None or not moved(graph, node, after.op_type, other):
        return False
    node.output[0] = after.output[0]
    del graph.nodes[readers[0]]
    return True


def _into_conv(graph: Graph, node: onnx.NodeProto, kind: str, other: np.ndarray) -> bool:
    """Multiply the kernel, or add to the bias, channel by channel."""
    if not (channels := _channels(graph, node)):
        return False
    if other.ndim not in (0, 4) or other.size not in (1, channels):
        return False
    if other.ndim == 4 and other.shape[1] != other.size:
        return False
    values = np.broadcast_to(other.reshape(-1), channels).astype(np.float32)
    bias = np.zeros(channels, np.float32)
    if len(node.input) == 3:
        bias = graph.arrays[node.input[2]]
    if kind in ("Add", "Sub"):
        _set_bias(graph, node, bias + values if kind == "Add" else bias - values)
        return True
    factor = values if kind == "Mul" else 1 / values
    if not np.isfinite(factor).all() or (factor == 0).any():
        return False
    if not _scaled_kernel(graph, node, factor):
        return False
    if len(node.input) == 3:
        _set_bias(graph, node, bias * factor)
    return True


def _channels(graph: Graph, node: onnx.NodeProto) -> int:
    """Output channels of a convolution; 0 where its kernel cannot be scaled."""
    if node.input[1] in graph.arrays:
        return graph.arrays[node.input[1]].shape[0]
    source = _producer(graph, node.input[1])
    if source is None or source.op_type != "DequantizeLinear":
        return 0
    codes = source.input[0]
    cast = _producer(graph, codes)
    return graph.codes[cast.input[0] if cast is not None else codes].dims[0]


def _scaled_kernel(graph: Graph, node: onnx.NodeProto, factor: np.ndarray) -> bool:
    """Give a convolution a kernel with its output channels multiplied."""
    name = node.input[1]
    if name in graph.arrays:
        kernel = graph.arrays[name]
        node.input[1] = graph.array(kernel * factor[:, None, None, None], "kernel")
        return True
    source = _producer(graph, name)
    assert source is not None
    axis = next((a.i for a in source.attribute if a.name == "axis"), 0)
    if axis != 0:
        return False
    scale = graph.arrays[source.input[1]]
    inputs = [source.input[0], graph.array(scale * factor, "kernel/scale")]
    if len(source.input) == 3:
        zero = graph.arrays[source.input[2]]
        inputs.append(graph.array(np.broadcast_to(zero, factor.shape).copy()))
    node.input[1] = graph.node("DequantizeLinear", inputs, axis=0)
    return True


def _set_bias(graph: Graph, node: onnx.NodeProto, bias: np.ndarray) -> None:
    name = graph.array(bias.astype(np.float32), "bias")
    del node.input[2:]
    node.input.append(name)


def _into_gemm(graph: Graph, node: onnx.NodeProto, kind: str, other: np.ndarray) -> bool:
    """A matrix product of two axes and the bias after it."""
    if node.op_type != "MatMul" or kind != "Add" or other.ndim != 2 or other.shape[0] != 1:
        return False
    bias = other.reshape(-1).astype(np.float32)
    node.input.append(_whole_bias(graph, node, bias) or graph.array(bias, "bias"))
    node.op_type = "Gemm"
    return True


def _whole_bias(graph: Graph, node: onnx.NodeProto, bias: np.ndarray) -> str | None:
    """A bias as int32 codes on the grid of the products; None where they have no one grid."""
    sources = [_producer(graph, name) for name in node.input]
    if any(source is None or source.op_type != "DequantizeLinear" for source in sources):
        return None
    one, two = (graph.arrays[source.input[1]] for source in sources if source is not None)
    if one.size > 1 or two.size not in (1, bias.size):
        return None
    scale = (one.reshape(-1) * two.reshape(-1)).astype(np.float32)
    codes = np.round(bias / scale)
    if not BIAS_STEPS <= np.abs(codes).max() < 2**31:  # of few bits the grid is too coarse
        return None
    shaped = scale if scale.size > 1 else scale.reshape(())
    names = [graph.array(codes.astype(np.int32)), graph.array(shaped, "bias/scale")]
    return graph.node("DequantizeLinear", names, **({"axis": 0} if scale.size > 1 else {}))


def _producer(graph: Graph, name: str) -> onnx.NodeProto | None:
    return next((node for node in graph.nodes if name in node.output), None)


def _sort(graph: Graph) -> None:
    """Put nodes behind those that they read, otherwise as they stand; drop what none reads."""
    made = {name for node in graph.nodes for name in node.output}
    waiting, done, order = collections.deque(graph.nodes), set(), []
    while waiting:
        node = waiting.popleft()
        if all(name in done or name not in made for name in node.input):
            order.append(node)
            done.update(node.output)
        else:
            waiting.append(node)
    graph.nodes = order


def _drop_dead(graph: Graph, outputs: set[str]) -> None:
    """Drop nodes that no output needs."""
    needed, kept = set(outputs), []
    for node in reversed(graph.nodes):
        if needed & set(node.output):
            needed.update(node.input)
            kept.append(node)
    graph.nodes = kept[::-1]
