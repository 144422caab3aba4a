"""MaxText: bits by layer for ``quantization="intmp"``, the file of its ``quant_cfg_path``."""

import re
from typing import Any

from jmpq.export.codes import Coded
from jmpq.export.exchange.contents import (
    Exchange,
    check_modules,
    check_widths,
    left_out,
    quantized_layers,
    refused,
)
from jmpq.formats import FLOAT_BITS

WIDTHS = (*range(2, 9), FLOAT_BITS)
DEFAULT = "__default__"  # of layers that no pattern names


def maxtext_config(coded: Coded) -> Exchange:
    """``{pattern: {"w_bits", "a_bits"}}``; patterns match a linen module's whole path.

    Raises:
        NotExpressible: If a layer is not a matrix product, has bits outside 2 to 8, or is a
            slice of a stacked parameter.
    """
    check_modules(coded, "MaxText")
    check_widths(coded, "MaxText", WIDTHS, WIDTHS)
    content: dict[str, Any] = {DEFAULT: {"w_bits": None, "a_bits": None}}
    for layer, choice in quantized_layers(coded):
        if layer.kind != "dense":
            raise refused(layer, choice, "MaxText", "it quantizes matrix products only")
        bits = {"w_bits": choice.w_bits, "a_bits": choice.a_bits}
        content[re.escape(layer.name)] = {
            key: None if value == FLOAT_BITS else value for key, value in bits.items()
        }
    same = {"granularity": ("channel",), "clipping": ("minmax",), "grid": ("half",)}
    return Exchange(
        content=content,
        left_out=left_out(
            coded,
            "MaxText",
            weights={**same, "rounding": ("nearest",)},
            inputs={"granularity": ("tensor",), "grid": ("half",)},
        ),
    )
