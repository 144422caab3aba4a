"""ai-edge-quantizer: a recipe, rules that match the names of a ``.tflite`` file's tensors."""

import re
from typing import Any

from jmpq.export.codes import Coded
from jmpq.export.exchange.contents import (
    Exchange,
    check_widths,
    left_out,
    quantized_layers,
    refused,
)
from jmpq.formats import FLOAT_BITS, Choice
from jmpq.network.layers import Layer

TOOL = "ai-edge-quantizer"
W_BITS = range(2, 9)
A_BITS = (8, 16, FLOAT_BITS)
ALGORITHM = "min_max_uniform_quantize"
# Operations between layers that only move, add or average values run in integers too;
# otherwise every layer would convert to floats and back.
BETWEEN = (
    "ADD",
    "AVERAGE_POOL_2D",
    "CONCATENATION",
    "MAX_POOL_2D",
    "MEAN",
    "PAD",
    "PADV2",
    "RESHAPE",
    "SLICE",
    "STRIDED_SLICE",
    "TRANSPOSE",
)


def ai_edge_recipe(coded: Coded, smallest: int = 4) -> Exchange:
    """Recipe for the file that `jmpq.export.litert.float_litert` writes.

    It is passed to the quantizer by path::

        ai_edge_quantizer.quantizer.Quantizer("float.tflite", "recipe.json")

    A rule names a layer by the output of its operation. In a convolutional network, tensors
    between layers are quantized to 8 bits, as the runtime's fast kernels require.

    Args:
        coded: The network under the allocation.
        smallest: Least bits at which kernels are stored, 4 or 8.

    Raises:
        NotExpressible: If weights have more than 8 bits, or are unquantized while their input
            is quantized; if an input has bits other than 8 or 16; if an embedding is
            quantized; or if the weights' grid is not ``symmetric`` or has several scales per
            output.
    """
    check_widths(coded, TOOL, W_BITS, A_BITS)
    chosen = quantized_layers(coded)
    rules: list[dict[str, Any]] = []
    if any(x.kind == "conv" and choice.a_bits == 8 for x, choice in chosen):
        config = _config(8, 8)
        rules += [_rule(".*", operation, config) for operation in BETWEEN]
    # The converter writes a convolution of one channel as a depthwise one.
    depthwise = {x.layer.name for x in coded.network.sites if x.operation.sees_one_feature}
    for layer, choice in chosen:
        _check(coded, layer, choice)
        width = kernel_width(choice.w_bits, layer.name in depthwise, smallest)
        operation = "FULLY_CONNECTED" if layer.kind == "dense" else "CONV_2D"
        if layer.name in depthwise:
            operation = "DEPTHWISE_CONV_2D"
        regex = rf"^{re.escape(layer.name)}(#\d+)?;"
        rules.append(_rule(regex, operation, _config(width, choice.a_bits)))
    return Exchange(
        content=rules,
        left_out=left_out(
            coded,
            TOOL,
            weights={"clipping": ("minmax",), "rounding": ("nearest",)},
            inputs={"granularity": ("tensor",), "clipping": ("minmax",)},
        ),
    )


def kernel_width(bits: int, depthwise: bool, smallest: int = 4) -> int:
    """Bits at which a kernel's codes are stored: 4 (not depthwise) or 8."""
    return 4 if max(bits, smallest) <= 4 and not depthwise else 8


def _check(coded: Coded, layer: Layer, choice: Choice) -> None:
    spec = coded.weights
    columns = layer.parameters // layer.output_features
    if layer.kind == "embedding":
        raise refused(layer, choice, TOOL, "embeddings stay unquantized")
    if spec.grid != "symmetric":
        raise refused(
            layer, choice, TOOL, f"weights are on a symmetric grid, not on {spec.grid!r}"
        )
    if spec.layer_blocks(layer)[1] != columns:
        raise refused(layer, choice, TOOL, "weights have one scale an output")


def _config(w_bits: int, a_bits: int) -> dict[str, Any]:
    weights = {
        "num_bits": w_bits,
        "symmetric": True,
        "granularity": "CHANNELWISE",
        "dtype": "INT",
    }
    if a_bits == FLOAT_BITS:
        how = {"compute_precision": "FLOAT", "explicit_dequantize": True}
        return {"weight_tensor_config": weights, **how}
    inputs = {
        "num_bits": a_bits,
        "symmetric": a_bits == 16,
        "granularity": "TENSORWISE",
        "dtype": "INT",
    }
    how = {"compute_precision": "INTEGER", "explicit_dequantize": False}
    return {"activation_tensor_config": inputs, "weight_tensor_config": weights, **how}


def _rule(regex: str, operation: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "regex": regex,
        "operation": operation,
        "algorithm_key": ALGORITHM,
        "op_config": config,
    }
