"""HAWQ: bits by module for its quantized ResNets, an entry of its ``bit_config_dict``."""

import re

from jmpq.export.codes import Coded
from jmpq.export.exchange.contents import (
    Exchange,
    NotExpressible,
    check_widths,
    left_out,
    quantized_layers,
    refused,
)
from jmpq.formats import UNQUANTIZED
from jmpq.network.layers import Layer

WIDTHS = range(2, 17)
RESIDUAL_BITS = 16  # bits of the sums of blocks
NETWORKS = {  # blocks of the stages, convolutions of a block
    "resnet18": ((2, 2, 2, 2), 2),
    "resnet50": ((3, 4, 6, 3), 3),
    "resnet101": ((3, 4, 23, 3), 3),
}
CONV = re.compile(r"layer(\d)/(\d+)/conv(\d)")
PROJECTION = re.compile(r"layer(\d)/(\d+)/downsample/.+")


def hawq_bit_config(coded: Coded) -> Exchange:
    """``bit_config_dict["bit_config_NETWORK_NAME"]``: bits of weights and of inputs by module.

    Raises:
        NotExpressible: If HAWQ does not have the network, a layer stays unquantized, or the
            first convolution of a block and the parallel projection, which share an input,
            have different bits for it.
    """
    layers = coded.network.layers
    network = _network(layers)
    check_widths(coded, "HAWQ", WIDTHS, WIDTHS)
    chosen = dict.fromkeys((x.name for x in layers), UNQUANTIZED)
    chosen |= {layer.name: choice for layer, choice in quantized_layers(coded)}
    bits: dict[str, int] = {}
    for layer in layers:
        choice = chosen[layer.name]
        if choice == UNQUANTIZED:
            raise refused(layer, choice, "HAWQ", "it quantizes every layer")
        weights, inputs = _modules(layer.name, network)
        if bits.setdefault(inputs, choice.a_bits) != choice.a_bits:
            raise refused(
                layer,
                choice,
                "HAWQ",
                f"its input is that of another layer, at {bits[inputs]} bits",
            )
        bits[weights] = choice.w_bits
    blocks, _ = NETWORKS[network]
    sums = [f"stage{s}.unit{u}." for s, n in enumerate(blocks, 1) for u in range(1, n + 1)]
    bits |= dict.fromkeys((f"{unit}quant_act_int32" for unit in ["", *sums]), RESIDUAL_BITS)
    return Exchange(
        content={f"bit_config_{network}_jmpq": bits},
        left_out=left_out(
            coded,
            "HAWQ",
            weights={
                "grid": ("symmetric",),
                "granularity": ("channel",),
                "clipping": ("minmax",),
                "rounding": ("nearest",),
            },
            inputs={"granularity": ("tensor",)},
        ),
    )


def _network(layers: tuple[Layer, ...]) -> str:
    """HAWQ's name of the network.

    Raises:
        NotExpressible: If HAWQ does not have the network.
    """
    names = {x.name for x in layers}
    found = {tuple(map(int, m.groups())) for m in map(CONV.fullmatch, names) if m}
    for network, (blocks, convolutions) in NETWORKS.items():
        expected = {
            (stage, block, conv)
            for stage, count in enumerate(blocks, 1)
            for block in range(count)
            for conv in range(1, convolutions + 1)
        }
        rest = {x for x in names if not CONV.fullmatch(x) and not PROJECTION.fullmatch(x)}
        if found == expected and rest == {"conv1", "fc"}:
            return network
    raise NotExpressible(
        f"HAWQ cannot express layer {layers[0].name!r} of this network: it has quantized "
        f"modules for {', '.join(NETWORKS)} alone. Export to another format."
    )


def _modules(name: str, network: str) -> tuple[str, str]:
    """HAWQ's modules of a layer's weights and of its input."""
    if name == "conv1":
        block = "_block" if network == "resnet18" else ""
        return f"quant_init{block}_convbn", "quant_input"
    if name == "fc":
        return "quant_output", "quant_act_output"
    match = PROJECTION.fullmatch(name) or CONV.fullmatch(name)
    assert match is not None
    stage, block, *conv = map(int, match.groups())
    unit = f"stage{stage}.unit{block + 1}."
    if not conv:
        return f"{unit}quant_identity_convbn", f"{unit}quant_act"
    before = "" if conv[0] == 1 else str(conv[0] - 1)
    return f"{unit}quant_convbn{conv[0]}", f"{unit}quant_act{before}"
