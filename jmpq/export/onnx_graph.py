"""ONNX: the walk that evaluates a network writes its nodes, with integer codes inside.

Kernels are codes followed by DequantizeLinear. Inputs of layers pass QuantizeLinear and
DequantizeLinear on their calibrated grid. Codes of 2 and 4 bits are stored as such. By default
they are cast to 8 bits, which runtimes fold at load time; optionally they are read natively.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend import core
from jaxtyping import Array
from onnx import helper

from jmpq.export.codes import Coded, InputGrid, check_no_cache, code_ends
from jmpq.export.onnx_fusion import fuse
from jmpq.export.onnx_ops import RULES, elementwise, full
from jmpq.export.onnx_patterns import merge
from jmpq.export.onnx_values import CodedKernel, Constant, Graph, NotExportable, Tensor, Value
from jmpq.files import atomic_file, versions
from jmpq.network.network import Network
from jmpq.network.sites import Op, Site
from jmpq.network.tree_paths import leaf_paths
from jmpq.network.walk import Path, bind, body, equations, is_call, walk
from jmpq.quantizers.fake_quant import input_grid
from jmpq.quantizers.stream import KEPT, Point, run_on_stream

PRIMES = (1009, 1013, 2003, 4001, 7919)  # candidates for the batch size in tracing
IR_VERSIONS = {21: 10, 25: 13}  # by opset: the first that has its types
OUTPUT, BATCH = "logits", "batch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """Options of a graph.

    Attributes:
        native: Whether DequantizeLinear reads codes below 8 bits directly. By default a Cast to
            8 bits precedes it, which every runtime folds at load time.
        smallest: Least bits at which codes are stored: 4 for OpenVINO, which has no 2-bit type.
    """

    native: bool = False
    smallest: Literal[2, 4, 8] = 2


def save_onnx(
    path: pathlib.Path | str, coded: Coded, options: OnnxOptions = OnnxOptions()
) -> onnx.ModelProto:
    """Write a network under an allocation as ONNX, atomically.

    Raises:
        NotExportable: If a primitive of the network has no rule; the message names it and the
            module that contains it.
        OSError: If the folder cannot be written.
    """
    model = onnx_model(coded, options)
    with atomic_file(pathlib.Path(path)) as file:
        file.write(model.SerializeToString())
    return model


def onnx_model(coded: Coded, options: OnnxOptions = OnnxOptions()) -> onnx.ModelProto:
    """The model of a network under an allocation; inputs named by path, output ``logits``.

    Raises:
        NotExportable: If a primitive of the network has no rule (see `save_onnx`).
        ValueError: If the network has rows of keys and values.
    """
    network = coded.network
    check_no_cache(coded, "ONNX")
    _check_formats(coded)
    batch = _prime(network)
    graph = Graph(batch, native=options.native, smallest=options.smallest)
    emitter = _Emitter(coded, graph)
    leaves, tree = jax.tree.flatten(network.tap.inputs)
    names = [path or "inputs" for path in leaf_paths(network.tap.inputs)]
    inputs = [
        graph.known(Tensor(n, shape, shape, np.dtype(x.dtype), tuple(range(len(shape)))))
        for n, x in zip(names, leaves, strict=True)
        for shape in [(batch, *x.shape[1:])]
    ]
    wrapped = jax.tree.unflatten(tree, inputs)
    if any(coded.stream):
        walked = wrapped, emitter.at_site, emitter.at_point
        result = run_on_stream(network, *walked, rule=emitter.rule)
    else:
        result = network.run(wrapped, emitter.at_site, rule=emitter.rule)
    result = graph.whole(result) if isinstance(result, Tensor) else result
    graph.node("Identity", [graph.name_of(result, range(len(result.shape)))])
    graph.nodes[-1].output[0] = OUTPUT
    merge(graph, {OUTPUT})
    fuse(graph, {OUTPUT})
    return _model(coded, graph, inputs, result)


def _model(
    coded: Coded, graph: Graph, inputs: Sequence[Tensor], result: Any
) -> onnx.ModelProto:
    def info(name: str, x: Any) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(x.dtype))
        return helper.make_tensor_value_info(name, kind, [BATCH, *x.shape[1:]])

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "jmpq",
            [info(x.name, x) for x in inputs],
            [info(OUTPUT, result)],
            graph.initializers(),
        ),
        opset_imports=[helper.make_opsetid("", graph.opset)],
        producer_name="jmpq",
        producer_version=versions()["jmpq"],
        ir_version=IR_VERSIONS[graph.opset],
    )
    helper.set_model_props(
        model, {"jmpq": json.dumps({"allocation": coded.allocation.to_json()})}
    )
    onnx.checker.check_model(model)
    return model


class _Emitter:
    """The rule of the walk and the transform of the sites."""

    def __init__(self, coded: Coded, graph: Graph) -> None:
        self.coded, self.graph = coded, graph
        self.kernels: dict[Path, tuple[int, CodedKernel]] = {}
        self.on_grid: dict[str, _Grid] = {}  # of what DequantizeLinear gives
        self.skipping: dict[str, tuple[Tensor, list[int]]] = {}  # by result: source, strides
        self.scopes: list[str] = []  # modules around the equation
        self.last = ""  # layer before it

    def at_site(self, site: Site, x: Any, op: Op) -> Value:
        """Nodes of a layer: quantized input, kernel from codes, corrected output."""
        found, self.last = self.coded.inputs[site.index], site.name
        if found is not None and isinstance(x, Tensor):
            if site.operation.kind == "conv":  # one transposition, before the codes
                dims = site.operation.eqn.params["dimension_numbers"]
                x = self.graph.whole(x, dims.lhs_spec)
            x = self._on_grid(site, x, found)
        if self.coded.kernels[site.layer_index] is not None:
            operation = site.operation
            self.kernels[operation.path] = (operation.operand, self._kernel(site))
        y = op(x)
        if (correction := self.coded.corrections.get(site.index)) is None:
            return y
        for kind, array in (("Mul", correction.gain), ("Add", correction.shift)):
            y = elementwise(self.graph, kind, [y, _constant(array)], y.dtype)
        return y

    def at_point(self, point: Point, x: Any) -> Value:
        """Nodes that quantize a tensor of the stream."""
        if (found := self.coded.stream[point.index]) is None:
            return x
        scale, zero = found.scale.reshape(()), found.zero_point.reshape(())
        return self._quantized(x, scale, zero, found.bits)

    def rule(self, eqn: Any, ins: Sequence[Any], path: Path) -> list[Value]:
        """Nodes of one equation; tensors that are only moved stay on the stream's grid."""
        grid = None
        if eqn.primitive.name in (*KEPT, "pad") and isinstance(ins[0], Tensor):
            grid = self.on_grid.get(ins[0].name)
        if grid is None:
            return self._nodes(eqn, ins, path)
        if (wider := self._with_channels(eqn, ins, grid)) is not None:
            return [wider]
        outs = []
        for out in self._nodes(eqn, ins, path):
            if isinstance(out, Tensor):
                out = self._between(out, grid)
                if eqn.primitive.name == "slice" and (strides := _strides(ins[0], eqn)):
                    self.skipping[out.name] = ins[0], strides
            outs.append(out)
        return outs

    def _with_channels(self, eqn: Any, ins: Sequence[Any], grid: "_Grid") -> Tensor | None:
        """Channels of zeros around codes: a convolution with ones, which gives the same codes.

        Runtimes pad in floats but have a fast integer convolution. It also skips positions,
        where that came before, as in the shortcuts of ResNets without projections. None where
        the equation is another one.
        """
        graph, x = self.graph, ins[0]
        bytes_of_code = graph.arrays[grid.names[1]].dtype.itemsize
        if eqn.primitive.name != "pad" or len(x.order) != 4 or grid.ends or bytes_of_code > 1:
            return None
        value = ins[1].array if isinstance(ins[1], Constant) else ins[1]
        added = [eqn.params["padding_config"][a] for a in x.order]
        low, high, inner = added.pop(1)
        if min(low, high) < 0 or low + high == 0 or inner or np.any(added) or np.any(value):
            return None
        if x.own != x.shape or not graph.is_batch(x.shape[x.order[0]]):
            return None
        count = x.shape[x.order[1]]
        ones = np.pad(np.eye(count, dtype=np.int8), ((low, high), (0, 0)))[:, :, None, None]
        names = graph.array(np.ones((), np.float32)), graph.array(np.zeros((), np.int8))
        kernel = graph.node("DequantizeLinear", [graph.array(ones, "shortcut/codes"), *names])
        source, strides = self.skipping.get(x.name, (x, [1, 1]))
        more = {"kernel_shape": [1, 1], "strides": strides}
        shape = eqn.outvars[0].aval.shape
        y = graph.emit("Conv", [source.name, kernel], shape, x.dtype, x.order, **more)
        return self._between(y, grid)

    def _nodes(self, eqn: Any, ins: Sequence[Any], path: Path) -> list[Value]:
        scopes = [*self.scopes, str(eqn.source_info.name_stack)]
        if is_call(eqn):
            outside, self.scopes = self.scopes, scopes
            outs = walk(*body(eqn), ins, self.rule, at=path)
            self.scopes = outside
            return outs
        values = [x if isinstance(x, Value) else _constant(x) for x in ins]
        if path in self.kernels:
            operand, kernel = self.kernels[path]
            values[operand] = kernel
        name = eqn.primitive.name
        try:
            constants = [x for x in values if isinstance(x, Constant)]
            if len(constants) == len(values) and name != "iota":
                return _evaluated(self.graph, eqn, constants)
            if name not in RULES:
                raise NotExportable("there is no rule for it")
            return RULES[name](self.graph, eqn, values)
        except NotExportable as error:
            where = "/".join(filter(None, scopes)) or "the network"
            after = f", after layer {self.last!r}" if self.last else ""
            raise NotExportable(
                f"Cannot write `{name}` in {where}{after} as ONNX: {error}. Write it "
                "otherwise, or add a rule to jmpq.export.onnx_ops."
            ) from error

    def _on_grid(self, site: Site, x: Tensor, found: InputGrid) -> Tensor:
        """Nodes that quantize a site's input."""
        rows = jax.numpy.asarray(found.scale), jax.numpy.asarray(found.zero_point)
        grid = input_grid(site, x.shape, rows[0], rows[1])
        scale, zero = (np.asarray(values) for values in grid)
        return self._quantized(x, scale, zero, found.bits)

    def _quantized(self, x: Tensor, scale: np.ndarray, zero: np.ndarray, bits: int) -> Tensor:
        graph, grid = self.graph, self.coded.activations.grid
        least, most = code_ends(bits, grid)
        signed = grid != "affine"
        width = 8 if bits <= 8 else 16
        kind = np.dtype(f"{'' if signed else 'u'}int{width}")
        info = np.iinfo(kind)
        # Integer kernels take one scale for an input; other grids are computed in floats.
        if scale.size > 1 or not info.min <= zero.min() <= zero.max() <= info.max:
            return self._written_out(x, scale, least - zero, most - zero)
        names = graph.array(scale.reshape(())), graph.array(zero.reshape(()).astype(kind))
        whole = (least, most) == (info.min, info.max)
        ends = () if whole else tuple(graph.array(kind.type(end)) for end in (least, most))
        return self._between(x, _Grid(names, ends))

    def _between(self, x: Tensor, grid: "_Grid") -> Tensor:
        """QuantizeLinear and DequantizeLinear, unless the tensor is already on the grid.

        Codes are clipped in between if the type has more codes than the grid.
        """
        if self.on_grid.get(x.name) == grid:
            return x
        name = self.graph.node("QuantizeLinear", [x.name, *grid.names])
        if grid.ends:
            name = self.graph.node("Clip", [name, *grid.ends])
        name = self.graph.node("DequantizeLinear", [name, *grid.names])
        self.on_grid[name] = grid
        return self.graph.known(dataclasses.replace(x, name=name))

    def _written_out(
        self, x: Tensor, scale: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> Tensor:
        steps = (("Div", scale), ("Round", None), ("Max", low), ("Min", high), ("Mul", scale))
        for kind, array in steps:
            ins = [x] if array is None else [x, _constant(array)]
            x = elementwise(self.graph, kind, ins, x.dtype)
        return x

    def _kernel(self, site: Site) -> CodedKernel:
        """Codes, scales and zero points in the layout of the operation's kernel."""
        kernel = self.coded.kernels[site.layer_index]
        assert kernel is not None

        def seen(blocks: np.ndarray) -> np.ndarray:
            leaf = self.coded.leaf(site.layer_index, jax.numpy.asarray(blocks, np.float32))
            return np.asarray(site.operation.see(leaf))

        wide = np.broadcast_to
        codes = seen(kernel.codes)
        if codes.dtype != np.float32:
            raise NotExportable(
                f"Layer {site.name!r} casts its kernel to {codes.dtype}: only float32 networks "
                "can be written as ONNX."
            )
        return CodedKernel(
            codes.astype(np.int32),
            seen(wide(kernel.scale[:, None], kernel.codes.shape)),
            seen(wide(kernel.zero_point[:, None], kernel.codes.shape)).astype(np.int32),
            kernel.bits,
            self.coded.weights.grid != "affine",
        )


def _check_formats(coded: Coded) -> None:
    """Check that all formats are plain integers.

    Raises:
        NotExportable: If not; the message names the layer.
    """
    network = coded.network
    layers, sites = network.layers, [site.layer for site in network.sites]
    for tables, found in ((layers, coded.kernels), (sites, coded.inputs)):
        for layer, own in zip(tables, found, strict=True):
            if own is not None and not own.scheme.is_plain:
                raise NotExportable(
                    f"Layer {layer.name!r} has format {own.scheme.name}, which is not written "
                    "as ONNX. Export 'packed', or allow integer formats only."
                )


class _Grid(NamedTuple):
    """Initializers of a grid: scale, zero point, and code limits if narrower than the type."""

    names: tuple[str, str]
    ends: tuple[str, ...]


def _strides(x: Tensor, eqn: Any) -> list[int]:
    """Strides of a slice along the last two axes of four; none where it also cuts."""
    strides = eqn.params["strides"] or (1,) * len(x.shape)
    outs = eqn.outvars[0].aval.shape
    steps = zip(x.shape, strides, outs, strict=True)
    if len(x.shape) != 4 or any(eqn.params["start_indices"]) or x.own != x.shape:
        return []
    if any(-(-n // step) != m for n, step, m in steps):
        return []
    batch, channel, *rest = (strides[a] for a in x.order)
    return rest if batch == channel == 1 else []


def _constant(x: Any) -> Constant:
    array = np.asarray(x)
    return Constant(array, array.shape)


def _evaluated(graph: Graph, eqn: Any, ins: Sequence[Constant]) -> list[Value]:
    """Evaluate an equation of constants with JAX."""
    if eqn.primitive.name == "broadcast_in_dim":
        (x,), shape = ins[:1], eqn.outvars[0].aval.shape
        own = [1] * len(shape)
        for axis, size in zip(eqn.params["broadcast_dimensions"], x.array.shape, strict=True):
            own[axis] = size
        return [Constant(x.array.reshape(own), tuple(shape))]
    arrays: list[Array] = [jax.numpy.asarray(full(graph, x)) for x in ins]
    return [_constant(x) for x in bind(eqn, arrays)]


def _prime(network: Network) -> int:
    """Batch size for tracing, of which no other size is a multiple."""
    jaxpr = network.tap.jaxpr
    sizes = {
        size
        for eqn in equations(jaxpr)
        for v in (*eqn.invars, *eqn.outvars)
        if not isinstance(v, core.Literal)
        for size in getattr(v.aval, "shape", ())
    }
    return next(p for p in PRIMES if all(size % p or not size for size in sizes))
