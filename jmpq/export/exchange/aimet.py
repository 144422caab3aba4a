"""AIMET: encodings of every kernel and input, for the accompanying float ONNX file."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from jmpq.export.codes import Coded, KernelCodes, code_ends, float_on_grid
from jmpq.export.exchange.contents import (
    Exchange,
    check_widths,
    left_out,
    quantized_layers,
    refused,
)
from jmpq.export.matching import find_layer, kernel_matrices
from jmpq.export.onnx_graph import onnx_model
from jmpq.files import versions
from jmpq.formats import FLOAT_BITS

WIDTHS = (*range(2, 17), FLOAT_BITS)
KERNELS = {"Conv": 1, "MatMul": 1, "Gemm": 1, "Gather": 0}  # input that is the kernel


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Use:
    """A layer's node: the kernel's tensor, and the factor of each output channel."""

    layer: int
    node: onnx.NodeProto
    axis: int  # of the kernel's tensor, along outputs
    factor: np.ndarray


def aimet_encodings(coded: Coded) -> Exchange:
    """Encodings 2.0.0, with the ONNX file whose tensors they name.

    To load both::

        sim = aimet_onnx.QuantizationSimModel(onnx.load("net.onnx"))
        aimet_onnx.load_encodings_to_sim(sim, "net.json", strict=False)

    The file's kernels are floats on our grid, so AIMET's codes equal ours. Biases and outputs
    have no encodings.

    Raises:
        NotExpressible: If weights or inputs have 1 bit, a kernel has several scales per
            output, an input has several scales, or two layers read one tensor at different
            bits.
        NotExportable: If the network cannot be written as ONNX; the message names the
            primitive.
    """
    check_widths(coded, "AIMET", WIDTHS, WIDTHS)
    chosen = dict(quantized_layers(coded))
    for layer, choice in chosen.items():
        columns = layer.parameters // layer.output_features
        if choice.w_bits != FLOAT_BITS and coded.weights.layer_blocks(layer)[1] != columns:
            raise refused(layer, choice, "AIMET", "weights have one scale an output here")
    floats = float_on_grid(coded)
    model = onnx_model(floats)
    uses = _uses(model, floats)
    encodings: dict[str, dict[str, Any]] = {}
    shared: list[str] = []
    for site in coded.network.sites:
        use = uses.get(site.index)
        layer, kernel = site.layer, coded.kernels[site.layer_index]
        if use is None or layer not in chosen:
            continue
        position = KERNELS[use.node.op_type]
        if kernel is not None:
            name = use.node.input[position]
            encodings[name] = {"name": name, **_of_kernel(coded, kernel, use)}
        if (grid := coded.inputs[site.index]) is None:
            continue
        if grid.single is None:
            raise refused(layer, chosen[layer], "AIMET", "an input has one scale here")
        name = use.node.input[1 - position]
        own = {"name": name, **_of_input(coded.activations.grid, grid.bits, *grid.single)}
        known = encodings.setdefault(name, own)
        if known["output_dtype"] != own["output_dtype"]:
            can = f"another layer reads the same tensor as {known['output_dtype']}"
            raise refused(layer, chosen[layer], "AIMET", can)
        if known != own:
            shared.append(layer.name)
    notes = left_out(coded, "AIMET", weights={}, inputs={}, scales=True)
    if shared:
        notes += (f"Ranges of {', '.join(shared)}: another layer's, of the same tensor.",)
    return Exchange(
        content={
            "version": "2.0.0",
            "producer": {"package": "jmpq", "version": versions()["jmpq"]},
            "encodings": list(encodings.values()),
        },
        left_out=tuple(x for x in notes if not x.startswith("Corrections")),
        companions={".onnx": model.SerializeToString()},
    )


def _uses(model: onnx.ModelProto, floats: Coded) -> dict[int, _Use]:
    """Nodes of the layers by site: the n-th node of a layer is its n-th use."""
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    matrices = kernel_matrices(floats.network)
    sites: dict[int, list[int]] = {}
    for site in floats.network.sites:
        sites.setdefault(site.layer_index, []).append(site.index)
    found: dict[int, _Use] = {}
    for node in model.graph.node:
        position = KERNELS.get(node.op_type)
        array = None if position is None else arrays.get(node.input[position])
        if array is None or array.dtype != np.float32 or array.ndim < 2:
            continue
        match = _match(node, array, matrices)
        if match is not None and sites[match[0]]:
            layer, axis, factor = match
            use = _Use(layer=layer, node=node, axis=axis, factor=factor)
            found[sites[layer].pop(0)] = use
    return found


def _match(
    node: onnx.NodeProto, array: np.ndarray, matrices: Sequence[np.ndarray]
) -> tuple[int, int, np.ndarray] | None:
    axes = (0,) if node.op_type in ("Conv", "Gather") else (1, 0)
    for axis in axes:
        seen = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        if (match := find_layer(seen, matrices)) is not None:
            return match[0], axis, match[1]
    return None


def _of_kernel(coded: Coded, kernel: KernelCodes, use: _Use) -> dict[str, Any]:
    outputs = len(use.factor)
    rows = outputs // len(kernel.scale)
    scale, zero = (np.repeat(x, rows) for x in (kernel.scale, kernel.zero_point))
    factor = np.where(use.factor == 0, 1, use.factor)  # all zero: any scale
    if coded.weights.grid == "affine":  # a negative factor counts codes from the other end
        most = code_ends(kernel.bits, "affine")[1]
        zero = np.where(factor < 0, most - zero, zero)
    encoding = _typed(coded.weights.grid, kernel.bits)
    encoding |= {"y_scale": (np.abs(factor) * scale).tolist(), "axis": use.axis}
    if coded.weights.grid == "affine":
        encoding["y_zero_point"] = zero.tolist()
    return encoding


def _of_input(grid: str, bits: int, scale: float, zero_point: float) -> dict[str, Any]:
    encoding = _typed(grid, bits) | {"y_scale": scale}
    if grid == "affine":
        encoding["y_zero_point"] = int(zero_point)
    return encoding


def _typed(grid: str, bits: int) -> dict[str, Any]:
    return {"output_dtype": f"{'u' if grid == 'affine' else ''}int{bits}"}
