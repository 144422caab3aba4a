"""Tools by the names of `jmpq export --format`."""

import importlib

from jmpq.export.codes import Coded, check_no_cache
from jmpq.export.exchange.contents import Exchange

TOOLS = {  # module of this folder, function in it
    "qwix": ("qwix", "qwix_rules"),
    "aimet": ("aimet", "aimet_encodings"),
    "compressed-tensors": ("compressed_tensors", "compressed_tensors_config"),
    "modelopt": ("modelopt", "modelopt_config"),
    "maxtext": ("maxtext", "maxtext_config"),
    "ai-edge-quantizer": ("ai_edge", "ai_edge_recipe"),
    "hawq": ("hawq", "hawq_bit_config"),
}


def tell(tool: str, coded: Coded) -> Exchange:
    """An allocation in the format of a tool.

    Raises:
        NotExpressible: If the tool does not support a choice; the message names the layer.
        ValueError: If the network has rows of keys and values.
        KeyError: If there is no such tool.
    """
    check_no_cache(coded, f"A file for {tool}")
    module, function = TOOLS[tool]
    return getattr(importlib.import_module(f"jmpq.export.exchange.{module}"), function)(coded)
