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
from jmpq.formats import FLOAT_BITS, Choice
from jmpq.quantizers.spec import TensorSpec

TOOL = "compressed-tensors"
WIDTHS = range(2, 17)


def compressed_tensors_config(coded: Coded) -> Exchange:
    """``quantization_config`` with one group of layers per choice and size of groups.

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
    for layer, choice in sorted(chosen, key=lambda pair: pair[1]):
        weights, inputs = _weights(coded, layer, choice), None
        indices = layer.kind == "embedding"  # are its input, and are not quantized
        if choice.a_bits != FLOAT_BITS and not indices:
            inputs = _arguments(coded.activations, choice.a_bits) | {
                "strategy": "tensor",
                "dynamic": False,
            }
        label = Choice(choice.weights).label if indices else choice.label
        if "group_size" in weights:
            label = f"{label}_g{weights['group_size']}"
        group = groups.setdefault(
            label, {"targets": [], "weights": weights, "input_activations": inputs}
        )
        group["targets"].append(f"re:^{re.escape(dotted(layer.name))}$")
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
