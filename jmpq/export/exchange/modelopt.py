"""NVIDIA's Model Optimizer: ``quant_cfg``, an ordered list of quantizers by name."""

from typing import Any

from jmpq.export.codes import Coded
from jmpq.export.exchange.contents import (
    Exchange,
    check_modules,
    check_widths,
    dotted,
    left_out,
    quantized_layers,
)
from jmpq.formats import FLOAT_BITS

TOOL = "ModelOpt"
WIDTHS = (*range(2, 17), FLOAT_BITS)


def modelopt_config(coded: Coded) -> Exchange:
    """Argument of `modelopt.torch.quantization.quantize`: all off, then one entry per layer.

    Layers have PyTorch names.

    Raises:
        NotExpressible: If a layer has 1 bit or is a slice of a stacked parameter.
    """
    check_modules(coded, TOOL)
    check_widths(coded, TOOL, WIDTHS, WIDTHS)
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    per_channel = coded.weights.granularity != "tensor"
    for layer, choice in quantized_layers(coded):
        name = dotted(layer.name)
        if choice.w_bits != FLOAT_BITS:
            config = {"num_bits": choice.w_bits, "axis": 0 if per_channel else None}
            rules.append({"quantizer_name": f"{name}.weight_quantizer", "cfg": config})
        if choice.a_bits != FLOAT_BITS and layer.kind != "embedding":
            config = {"num_bits": choice.a_bits, "axis": None}
            rules.append({"quantizer_name": f"{name}.input_quantizer", "cfg": config})
    return Exchange(
        content={"quant_cfg": rules, "algorithm": "max"},
        left_out=left_out(
            coded,
            TOOL,
            weights={
                "grid": ("symmetric",),
                "granularity": ("tensor", "channel"),
                "clipping": ("minmax",),
                "rounding": ("nearest",),
            },
            inputs={
                "grid": ("symmetric",),
                "granularity": ("tensor",),
                "clipping": ("minmax",),
            },
        ),
    )
