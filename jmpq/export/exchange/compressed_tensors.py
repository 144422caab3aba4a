"""compressed-tensors: ``quantization_config`` of Hugging Face, llm-compressor and vLLM."""

import re
from typing import Any

from jmpq.export.codes import Coded
from jmpq.export.exchange.contents import (
    Exchange,
    check_modules,
    check_widths,
    dotted,
    left_out,
    quantized_layers,
    refused,
)
from jmpq.formats import FLOAT_BITS
from jmpq.quantizers.spec import TensorSpec

TOOL = "compressed-tensors"
WIDTHS = range(2, 17)


def compressed_tensors_config(coded: Coded) -> Exchange:
    """``quantization_config`` with one group of layers per choice.

    To read it::

        QuantizationConfig.model_validate(json.load(file))  # of compressed_tensors.quantization

    Layers have PyTorch names; the config ignores unquantized layers.

    Raises:
        NotExpressible: If a convolution or a slice of a stacked parameter is quantized, a
            layer has 1 bit, or weights are unquantized while their input is quantized.
    """
    check_modules(coded, TOOL)
    check_widths(coded, TOOL, WIDTHS, (*WIDTHS, FLOAT_BITS))
    groups: dict[str, Any] = {}
    chosen = quantized_layers(coded)
    for layer, choice in chosen:
        if layer.kind == "conv":
            raise refused(layer, choice, TOOL, "it quantizes dense layers and embeddings only")
    for choice in sorted({choice for _, choice in chosen}):
        own = [layer for layer, other in chosen if other == choice]
        weights = _weights(coded, own[0], choice)
        inputs = None
        if choice.a_bits != FLOAT_BITS:
            inputs = _arguments(coded.activations, choice.a_bits) | {
                "strategy": "tensor",
                "dynamic": False,
            }
        groups[choice.label] = {
            "targets": [f"re:^{re.escape(dotted(layer.name))}$" for layer in own],
            "weights": weights,
            "input_activations": inputs,
        }
    named = {layer.name for layer, _ in chosen}
    return Exchange(
        content={
            "quant_method": TOOL,
            "format": "fakequant",
            "config_groups": groups,
            "ignore": [dotted(x.name) for x in coded.network.layers if x.name not in named],
        },
        left_out=left_out(
            coded,
            TOOL,
            weights={"grid": ("half", "affine"), "rounding": ("nearest",)},
            inputs={"grid": ("half", "affine"), "granularity": ("tensor",)},
        ),
    )


def _weights(coded: Coded, layer: Any, choice: Any) -> dict[str, Any]:
    spec = coded.weights
    if spec.granularity != "group":
        return _arguments(spec, choice.w_bits) | {"strategy": spec.granularity}
    rows, columns = spec.layer_blocks(layer)
    if rows > 1:
        raise refused(layer, choice, TOOL, "its groups lie along the inputs of one output")
    return _arguments(spec, choice.w_bits) | {"strategy": "group", "group_size": columns}


def _arguments(spec: TensorSpec, bits: int) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": spec.grid != "affine"}
