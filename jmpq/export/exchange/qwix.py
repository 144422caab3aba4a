"""Qwix: an ordered list of rules, one per layer, with the ranges of inputs."""

import re
from typing import Any

from jmpq.export.codes import Coded, code_ends
from jmpq.export.exchange.contents import (
    Exchange,
    check_modules,
    check_widths,
    left_out,
    quantized_layers,
    refused,
)
from jmpq.formats import FLOAT_BITS

WIDTHS = range(2, 9)


def qwix_rules(coded: Coded) -> Exchange:
    """Fields of `qwix.QuantizationRule`, in order.

    To use them::

        rules = [qwix.QuantizationRule(**rule) for rule in json.load(file)]
        qwix.quantize_model(module, qwix.PtqProvider(rules))

    Qwix has our ``half`` grid and computes the weights' scales itself, from the largest
    magnitude of a channel. Ranges of inputs with one scale are passed as ``fixed,LOW,HIGH``.

    Raises:
        NotExpressible: If a layer has bits outside 2 to 8; if weights are unquantized while
            their input is quantized; if weights and input of a convolution differ in bits; if
            an embedding or a slice of a stacked parameter is quantized.
    """
    check_modules(coded, "Qwix")
    check_widths(coded, "Qwix", WIDTHS, (*WIDTHS, FLOAT_BITS))
    rules = []
    for layer, choice in quantized_layers(coded):
        if layer.kind == "embedding":
            raise refused(layer, choice, "Qwix", "it leaves the rows of embeddings as they are")
        if layer.kind == "conv" and choice.a_bits != choice.w_bits:
            raise refused(
                layer, choice, "Qwix", "a convolution's weights and input have the same bits"
            )
        rule: dict[str, Any] = {
            "module_path": re.escape(layer.name),
            "weight_qtype": f"int{choice.w_bits}",
            "weight_calibration_method": "absmax",
        }
        if choice.a_bits != FLOAT_BITS:
            rule["act_qtype"] = f"int{choice.a_bits}"
            rule["act_calibration_method"] = _range(coded, layer.name)
            rule["act_static_scale"] = False
        rules.append(rule)
    found = sum(rule.get("act_calibration_method") == "absmax" for rule in rules)
    dynamic = f"Ranges of inputs of {found} layers: Qwix finds its own, input by input."
    return Exchange(
        content=rules,
        left_out=((dynamic,) if found else ())
        + left_out(
            coded,
            "Qwix",
            weights={
                "grid": ("half",),
                "granularity": ("channel",),
                "clipping": ("minmax",),
                "rounding": ("nearest",),
            },
            inputs={"grid": ("half",), "granularity": ("tensor",)},
            scales=True,
        ),
    )


def _range(coded: Coded, layer: str) -> str:
    """Range of a layer's input, at its first use, on Qwix's grid; dynamic if unknown."""
    site = next(x.index for x in coded.network.sites if x.layer.name == layer)
    grid = coded.inputs[site]
    if grid is None or grid.single is None:
        return "absmax"
    scale, zero_point = grid.single
    least, most = code_ends(grid.bits, coded.activations.grid)
    if coded.activations.grid != "affine":  # scale = clip / (2^(bits − 1) − 0.5)
        return f"fixed,{scale * (2 ** (grid.bits - 1) - 0.5)!r}"
    if grid.bits not in (4, 8):  # Qwix has zero points at these only
        return "absmax"
    return f"fixed,{scale * (least - zero_point)!r},{scale * (most - zero_point)!r}"
