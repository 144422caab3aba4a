"""LiteRT (``.tflite``), without TensorFlow: litert-converter, then ai-edge-quantizer.

The network is converted with fake-quantized kernels and quantized by the recipe of
`jmpq.export.exchange.ai_edge`. Then our codes, scales and ranges replace the quantizer's, so
the grids are those that the accuracy was measured with, at any bits up to 8. It needs the extra
``litert``.
"""

import contextlib
import importlib
import io
import pathlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ai_edge_litert import interpreter
from ai_edge_quantizer import quantizer
from jaxtyping import Array, PyTree

from jmpq.export.codes import Coded, check_no_cache, code_ends, float_on_grid
from jmpq.export.exchange.ai_edge import ai_edge_recipe, kernel_width
from jmpq.export.litert_file import (
    Product,
    custom_outputs,
    named_products,
    put_codes,
    read_file,
    written_file,
)
from jmpq.files import atomic_file
from jmpq.network.network import Network
from jmpq.network.sites import Op, Site
from jmpq.network.tree_paths import leaf_paths
from jmpq.network.walk import Path, bind
from jmpq.quantizers.stream import points_of

# Extension modules, which have no types.
converter: Any = importlib.import_module("litert_converter.converter_api_ext")
ir: Any = importlib.import_module("litert_converter.mlir.ir")
passmanager: Any = importlib.import_module("litert_converter.mlir.passmanager")

SIGNATURE, OUTPUT = "serving_default", "logits"
AFTER = "after layer "  # scope of an equation: the layer before it


def save_litert(
    path: pathlib.Path | str, coded: Coded, examples: Sequence[PyTree], smallest: int = 8
) -> bytes:
    """Write a network under an allocation as ``.tflite``, atomically.

    Raises:
        NotExpressible: If LiteRT cannot represent a choice (see `litert_model`).
        ValueError: If the network cannot be converted (see `litert_model`).
        OSError: If the folder cannot be written.
    """
    content = litert_model(coded, examples, smallest)
    with atomic_file(pathlib.Path(path)) as file:
        file.write(content)
    return content


def litert_model(coded: Coded, examples: Sequence[PyTree], smallest: int = 8) -> bytes:
    """Content of the ``.tflite`` file of a network under an allocation, for batch size 1.

    Kernels have our codes, and inputs of layers our ranges. With placement ``stream`` the
    stream has our ranges too. Other integer tensors have their range on the examples.

    Args:
        coded: The network under the allocation.
        examples: Inputs, batch by batch; unused if no input is quantized.
        smallest: Least bits at which kernels are stored. With 4 the file is smaller, but the
            runtime's 4-bit convolutions may be slower than float ones.

    Raises:
        NotExpressible: If LiteRT cannot represent a choice; the message names the layer.
        ValueError: If the converter lacks an operation of the network, or a layer's kernel is
            not found in its file, or the network has rows of keys and values.
    """
    check_no_cache(coded, "LiteRT")
    recipe = ai_edge_recipe(coded, smallest)
    floats = float_on_grid(coded)
    content = _converted(floats)
    model = read_file(content)
    products = named_products(model, floats.network)
    content = written_file(model)
    if not recipe.content:
        return content
    found = quantizer.Quantizer(bytearray(content), recipe.content)
    ranges = None
    with _quiet():
        if found.need_calibration:
            rows = [row for batch in examples for row in _rows(coded.network, batch)]
            ranges = found.calibrate({SIGNATURE: rows[:1]}, num_threads=1)
            _put_extremes(content, rows, ranges)
            _put_ranges(coded, products, ranges)
        result = found.quantize(ranges, enable_progress_report=False)
    assert result.quantized_model is not None
    model = read_file(bytes(result.quantized_model))
    for product in products:
        _put_kernel(coded, model, product, smallest)
    return written_file(model)


def float_litert(coded: Coded) -> bytes:
    """Content of the file of an unquantized network, with our names of layers and kernels.

    Raises:
        ValueError: If the network cannot be converted (see `litert_model`).
    """
    check_no_cache(coded, "LiteRT")
    model = read_file(_converted(coded))
    named_products(model, coded.network)
    return written_file(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantizer's progress and its advice on tensors that are kept."""
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def payload_bytes(content: bytes) -> int:
    """Bytes of all constants of a file."""
    buffers = read_file(content).buffers
    return sum(len(x.data) for x in buffers if x.data is not None)


@contextlib.contextmanager
def _scopes_as_locations() -> Iterator[None]:
    """Let operations be located by their scopes, not by lines of code, which name no layer."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _converted(coded: Coded) -> bytes:
    """The network in floats, with corrections, for one example."""
    network = coded.network
    leaves, tree = jax.tree.flatten(network.tap.inputs)
    last = [""]

    def at_site(site: Site, x: Any, op: Op) -> Any:
        last[0] = site.name
        y = op(x)
        if (correction := coded.corrections.get(site.index)) is None:
            return y
        return correction.gain * y + correction.shift

    def rule(eqn: Any, ins: Sequence[Any], path: Path) -> list:
        with jax.named_scope(f"{AFTER}{last[0]}: {eqn.primitive.name}"):
            return bind(eqn, ins, path)

    def logits(*inputs: Array) -> Any:
        return network.run(jax.tree.unflatten(tree, inputs), at_site, rule=rule)

    shapes = [jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in leaves]
    with _scopes_as_locations():
        text = jax.jit(logits).lower(*shapes).as_text(debug_info=True)
    names = [path or "inputs" for path in leaf_paths(network.tap.inputs)]
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context, ir.Location.unknown():
        module = ir.Module.parse(text)
        converter.set_signature(module.operation, SIGNATURE, names, [OUTPUT])
        try:
            passes, how = passmanager.PassManager(), converter.ConvertToTFLConfig()
            converter.run_convert_to_tfl_passes(module, passes, how)
            content = converter.export_flatbuffer_to_bytes(module.operation)
        except Exception as error:  # whatever MLIR raises
            raise ValueError(_refusal(str(error))) from error
    try:
        interpreter.Interpreter(model_content=content, num_threads=1).allocate_tensors()
    except (RuntimeError, ValueError) as error:  # an operation that the runtime lacks
        raise ValueError(_refusal(f"{error} {custom_outputs(content)}")) from error
    return content


def _refusal(error: str) -> str:
    # What is called inside an operation stands before it.
    where = re.search(rf'(?:callsite\("(\w+)" at "[^"]*)?{AFTER}(.*?): (\w+)', error)
    what = f"`{where[1] or where[3]}`" if where else "the network"
    after = f" after layer {where[2]!r}" if where and where[2] else ""
    first = error.strip().partition("\n")[0][:200]
    return (
        f"LiteRT's converter has no operation for {what}{after} ({first}). Write it otherwise, "
        "or export to another format."
    )


def _rows(network: Network, batch: PyTree) -> list[dict[str, np.ndarray]]:
    """Examples one at a time, keyed by the signature's names."""
    names = [path or "inputs" for path in leaf_paths(batch)]
    arrays = [np.asarray(x) for x in jax.tree.leaves(batch)]
    kinds = [np.dtype(x.dtype) for x in jax.tree.leaves(network.tap.inputs)]
    return [
        {n: x[i : i + 1].astype(kind) for n, x, kind in zip(names, arrays, kinds, strict=True)}
        for i in range(len(arrays[0]))
    ]


def _put_extremes(
    content: bytes, rows: Sequence[dict[str, np.ndarray]], ranges: dict[str, Any]
) -> None:
    """Set the exact minimum and maximum of every tensor; the quantizer would average them."""
    model = interpreter.Interpreter(
        model_content=content, num_threads=1, experimental_preserve_all_tensors=True
    )
    run = model.get_signature_runner(SIGNATURE)
    tensors = [
        (x["index"], x["name"])
        for x in model.get_tensor_details()
        if x["dtype"] is np.float32 and ranges.get(x["name"])
    ]
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        run(**row)
        for index, name in tensors:
            values = model.get_tensor(index)
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = min(low, float(values.min())), max(high, float(values.max()))
    for name, ends in found.items():
        _put_range(ranges, name, ends)


def _put_range(ranges: dict[str, Any], name: str, ends: tuple[float, float]) -> None:
    shape = np.shape(ranges[name]["min"])
    pairs = zip(("min", "max"), ends, strict=True)
    ranges[name] = {key: np.full(shape, end, np.float32) for key, end in pairs}


def _put_ranges(coded: Coded, products: Sequence[Product], ranges: dict[str, Any]) -> None:
    """Set our ranges of layer inputs and of the stream; a tensor's first reader decides."""
    sites = {site.name: site for site in coded.network.sites}
    grids = [(p.source, coded.inputs[sites[p.name].index]) for p in products]
    points = zip(points_of(coded.network), coded.stream, strict=True)
    grids += [((point.name.removesuffix(":output"),), grid) for point, grid in points]
    done: set[str] = set()
    for names, grid in grids:
        if grid is None or grid.single is None:
            continue
        least, most = code_ends(grid.bits, coded.activations.grid)
        if grid.bits == 8 and coded.activations.grid == "symmetric":
            least -= 1  # all 256 codes at the same scale, zero point 0
        scale, zero = grid.single
        for name in names:
            if name not in done and ranges.get(name):
                _put_range(ranges, name, (scale * (least - zero), scale * (most - zero)))
                done.add(name)


def _put_kernel(coded: Coded, model: Any, product: Product, smallest: int) -> None:
    kernel = coded.kernels[product.layer]
    if kernel is None:
        return
    network = coded.network

    def matrix(blocks: np.ndarray) -> np.ndarray:
        leaf = coded.leaf(product.layer, jax.numpy.asarray(blocks, np.float32))
        return np.asarray(network.to_matrix(product.layer, leaf))

    scale = matrix(np.broadcast_to(kernel.scale[:, None], kernel.codes.shape))[:, 0]
    codes = matrix(kernel.codes).astype(np.int64)
    depthwise = product.operation == "DEPTHWISE_CONV_2D"
    put_codes(model, product, codes, scale, kernel_width(kernel.bits, depthwise, smallest))
