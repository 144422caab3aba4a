"""Fusion of nodes after a product into it, for which runtimes have integer kernels.

A batch normalisation after a convolution multiplies the scales of the kernel, never its codes,
and adds to the bias. A bias after a matrix product makes a ``Gemm``. If both operands are
quantized, the bias becomes int32 codes, as integer kernels require.
"""

import collections

import numpy as np
import onnx

from jmpq.export.onnx_values import Graph

PRODUCTS = ("Conv", "MatMul")
BIAS_STEPS = 256  # least number of codes between zero and the largest bias
AFFINE = ("Add", "Sub", "Mul", "Div")
CLAMPS = ("Relu", "Max", "Min", "Clip")


def fuse(graph: Graph, outputs: set[str]) -> None:
    """Fuse nodes and drop those that nothing reads; tensors named in `outputs` stay."""
    _clip(graph, outputs)
    _cancel(graph, outputs)
    for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        while _needless_clamp(graph, node, outputs):
            pass
    _drop_dead(graph, outputs)
    for node in [node for node in graph.nodes if node.op_type in PRODUCTS]:
        while _fused(graph, node, outputs):
            pass
    _sort(graph)
    _drop_dead(graph, outputs)


def _readers(graph: Graph, name: str) -> list[onnx.NodeProto]:
    return [node for node in graph.nodes if name in node.input]


def _clip(graph: Graph, outputs: set[str]) -> None:
    """Merge Relu and Min with a constant into one Clip, which runtimes fuse."""
    for node in [node for node in graph.nodes if node.op_type == "Min"]:
        relu = _producer(graph, node.input[0])
        cap = graph.arrays.get(node.input[1])
        if relu is None or relu.op_type != "Relu" or cap is None or cap.size != 1:
            continue
        if len(_readers(graph, relu.output[0])) == 1 and relu.output[0] not in outputs:
            ends = [graph.array(x.astype(cap.dtype)) for x in (np.zeros(()), cap.reshape(()))]
            node.op_type, node.input[:] = "Clip", [relu.input[0], *ends]


def _cancel(graph: Graph, outputs: set[str]) -> None:
    """Leave out a division by the number that the node before multiplies with: a mean."""
    for node in [node for node in graph.nodes if node.op_type == "Div"]:
        product = _producer(graph, node.input[0])
        if product is None or product.op_type != "Mul" or node.output[0] in outputs:
            continue
        one, two = (graph.arrays.get(x.input[1]) for x in (product, node))
        if one is not None and two is not None and one.size == 1 and np.array_equal(one, two):
            for reader in _readers(graph, node.output[0]):
                names = [product.input[0] if n == node.output[0] else n for n in reader.input]
                reader.input[:] = names


def _needless_clamp(graph: Graph, node: onnx.NodeProto, outputs: set[str]) -> bool:
    """Remove a clamp before QuantizeLinear that saturates there anyway; whether it did."""
    clamp = _producer(graph, node.input[0])
    if clamp is None or clamp.op_type not in CLAMPS or clamp.output[0] in outputs:
        return False
    if any(reader.op_type != "QuantizeLinear" for reader in _readers(graph, clamp.output[0])):
        return False
    ends = [graph.arrays.get(name, np.zeros((0, 0))) for name in clamp.input[1:]]
    if any(end.size != 1 for end in ends):
        return False
    values = [float(end.reshape(())) for end in ends]
    low, high = {
        "Relu": (0.0, np.inf),
        "Max": (*values, np.inf),
        "Min": (-np.inf, *values),
        "Clip": tuple(values),
    }[clamp.op_type]
    scale, zero = (graph.arrays[name] for name in node.input[1:])
    codes = [float(end) for end in (np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max)]
    following = _readers(graph, node.output[0])
    if [reader.op_type for reader in following] == ["Clip"]:  # of the codes
        codes = [float(graph.arrays[name]) for name in following[0].input[1:]]
    # A value beyond the last threshold between two codes takes the last code, clamped or not.
    least, most = (
        float(scale) * (end - float(zero)) for end in (codes[0] + 0.5, codes[1] - 0.5)
    )
    if low >= least or high <= most:
        return False
    node.input[0] = clamp.input[0]
    return True


def _fused(graph: Graph, node: onnx.NodeProto, outputs: set[str]) -> bool:
    """Move the node after a product into it, if possible; whether it did."""
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
        factor = factor.reshape(-1, *[1] * (kernel.ndim - 1))
        node.input[1] = graph.array(kernel * factor, "kernel")
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
        inputs.append(graph.zero_point(source.input[0], np.broadcast_to(zero, factor.shape)))
    node.input[1] = graph.node("DequantizeLinear", inputs, axis=0)
    return True


def _set_bias(graph: Graph, node: onnx.NodeProto, bias: np.ndarray) -> None:
    name = graph.array(bias.astype(np.float32), "bias")
    del node.input[2:]
    node.input.append(name)


def _into_gemm(graph: Graph, node: onnx.NodeProto, kind: str, other: np.ndarray) -> bool:
    """Merge a matrix product of two axes and the bias after it into a Gemm."""
    if node.op_type != "MatMul" or kind != "Add" or other.ndim != 2 or other.shape[0] != 1:
        return False
    bias = other.reshape(-1).astype(np.float32)
    node.input.append(_whole_bias(graph, node, bias) or graph.array(bias, "bias"))
    node.op_type = "Gemm"
    return True


def _whole_bias(graph: Graph, node: onnx.NodeProto, bias: np.ndarray) -> str | None:
    """A bias as int32 codes on the grid of the products; None without a common grid."""
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
    """Sort nodes after those that they read, stably; drop nodes that none reads."""
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
