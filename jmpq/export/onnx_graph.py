"""ONNX: the same walk that evaluates a network writes its nodes, with integer codes inside.

Kernels are codes behind DequantizeLinear, inputs of layers pass QuantizeLinear and
DequantizeLinear on the grid that they were calibrated on. Codes of 2 and 4 bits are stored as
such and cast to 8 bits (the default: runtimes fold that when they load), or read natively.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import onnx
from jax.extend import core
from jaxtyping import Array
from onnx import helper

from jmpq.export.codes import Coded, InputGrid, code_ends
from jmpq.export.onnx_fusion import fuse
from jmpq.export.onnx_ops import RULES, elementwise, full
from jmpq.export.onnx_values import CodedKernel, Constant, Graph, NotExportable, Tensor, Value
from jmpq.files import atomic_file, versions
from jmpq.network.network import Network
from jmpq.network.sites import Op, Site
from jmpq.network.tree_paths import leaf_paths
from jmpq.network.walk import Path, bind, body, equations, is_call, walk
from jmpq.quantizers.fake_quant import input_grid

PRIMES = (1009, 1013, 2003, 4001, 7919)  # one of them stands for the size of the batch
IR_VERSIONS = {21: 10, 25: 13}  # by opset: the first that has its types
OUTPUT, BATCH = "logits", "batch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """How a graph is written.

    Attributes:
        native: Whether DequantizeLinear reads codes below 8 bits itself; by default a Cast to
            8 bits comes before it, which every runtime folds when it loads.
        smallest: Least bits that codes are stored at: 4 for OpenVINO, which has no type of 2.
    """

    native: bool = False
    smallest: Literal[2, 4, 8] = 2


def save_onnx(
    path: pathlib.Path | str, coded: Coded, options: OnnxOptions = OnnxOptions()
) -> onnx.ModelProto:
    """Write a network under an allocation as ONNX, whole or not at all.

    Raises:
        NotExportable: If the network does what the emitter has no node for; the primitive and
            the module it stands in are named.
        OSError: If the folder cannot be written.
    """
    model = onnx_model(coded, options)
    with atomic_file(pathlib.Path(path)) as file:
        file.write(model.SerializeToString())
    return model


def onnx_model(coded: Coded, options: OnnxOptions = OnnxOptions()) -> onnx.ModelProto:
    """The graph of a network under an allocation; inputs by path, output ``logits``.

    Raises:
        NotExportable: As `save_onnx`.
    """
    network = coded.network
    batch = _prime(network)
    graph = Graph(batch, native=options.native, smallest=options.smallest)
    emitter = _Emitter(coded, graph)
    leaves, tree = jax.tree.flatten(network.tap.inputs)
    names = [path or "inputs" for path in leaf_paths(network.tap.inputs)]
    inputs = [
        Tensor(n, shape, shape, np.dtype(x.dtype), tuple(range(len(shape))))
        for n, x in zip(names, leaves, strict=True)
        for shape in [(batch, *x.shape[1:])]
    ]
    wrapped = jax.tree.unflatten(tree, inputs)
    result = network.run(wrapped, emitter.at_site, rule=emitter.rule)
    result = graph.whole(result) if isinstance(result, Tensor) else result
    graph.node("Identity", [graph.name_of(result, range(len(result.shape)))])
    graph.nodes[-1].output[0] = OUTPUT
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
        self.scopes: list[str] = []  # modules around the equation
        self.last = ""  # layer before it

    def at_site(self, site: Site, x: Any, op: Op) -> Value:
        """A layer: its input on its grid, its kernel from codes, its output corrected."""
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

    def rule(self, eqn: Any, ins: Sequence[Any], path: Path) -> list[Value]:
        """The nodes of one equation."""
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
        """QuantizeLinear and DequantizeLinear, behind a Clip where the type has more codes."""
        graph, spec = self.graph, self.coded.activations
        rows = jax.numpy.asarray(found.scale), jax.numpy.asarray(found.zero_point)
        grid = input_grid(site, spec, x.shape, rows[0], rows[1])
        scale, zero = (np.asarray(values) for values in grid)
        least, most = code_ends(found.bits, spec.grid)
        signed = spec.grid != "affine"
        width = 8 if found.bits <= 8 else 16
        kind = np.dtype(f"{'' if signed else 'u'}int{width}")
        low, high = (scale * (end - zero) for end in (least, most))
        info = np.iinfo(kind)
        # Integer kernels take one scale for an input; other grids are computed in floats.
        if scale.size > 1 or not info.min <= zero.min() <= zero.max() <= info.max:
            return self._written_out(x, scale, least - zero, most - zero)
        if (least, most) != (info.min, info.max):
            x = elementwise(graph, "Max", [x, _constant(low)], x.dtype)
            x = elementwise(graph, "Min", [x, _constant(high)], x.dtype)
        names = [graph.array(scale.reshape(())), graph.array(zero.reshape(()).astype(kind))]
        for node in ("QuantizeLinear", "DequantizeLinear"):
            x = dataclasses.replace(x, name=graph.node(node, [x.name, *names]))
        return x

    def _written_out(
        self, x: Tensor, scale: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> Tensor:
        steps = (("Div", scale), ("Round", None), ("Max", low), ("Min", high), ("Mul", scale))
        for kind, array in steps:
            ins = [x] if array is None else [x, _constant(array)]
            x = elementwise(self.graph, kind, ins, x.dtype)
        return x

    def _kernel(self, site: Site) -> CodedKernel:
        """Codes, scales and zero points as the operation sees the kernel."""
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


def _constant(x: Any) -> Constant:
    array = np.asarray(x)
    return Constant(array, array.shape)


def _evaluated(graph: Graph, eqn: Any, ins: Sequence[Constant]) -> list[Value]:
    """An equation of constants: computed now, as JAX computes it."""
    if eqn.primitive.name == "broadcast_in_dim":
        (x,), shape = ins[:1], eqn.outvars[0].aval.shape
        own = [1] * len(shape)
        for axis, size in zip(eqn.params["broadcast_dimensions"], x.array.shape, strict=True):
            own[axis] = size
        return [Constant(x.array.reshape(own), tuple(shape))]
    arrays: list[Array] = [jax.numpy.asarray(full(graph, x)) for x in ins]
    return [_constant(x) for x in bind(eqn, arrays)]


def _prime(network: Network) -> int:
    """A number for the size of the batch that no other size is a multiple of."""
    jaxpr = network.tap.jaxpr
    sizes = {
        size
        for eqn in equations(jaxpr)
        for v in (*eqn.invars, *eqn.outvars)
        if not isinstance(v, core.Literal)
        for size in getattr(v.aval, "shape", ())
    }
    return next(p for p in PRIMES if all(size % p or not size for size in sizes))
