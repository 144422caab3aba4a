"""Names of published image networks where they differ from the built-in ones."""

import re
from collections.abc import Collection, Mapping

import numpy as np

# Layers of timm's blocks in torchvision's numbering: without expansion, and with.
SEPARABLE = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
INVERTED = {
    "conv_pw": "0.0",
    "bn1": "0.1",
    "conv_dw": "1.0",
    "bn2": "1.1",
    "conv_pwl": "2",
    "bn3": "3",
}
VGG_HEAD = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3",
            "head.fc": "classifier.6"}  # fmt: skip
# Layers of a block in the conversion of Google's EfficientNet, by timm's blocks.
LITE_SEPARABLE = {"conv_dw": "depthwise_conv", "bn1": "bn1",
                  "conv_pw": "project_conv", "bn2": "bn2"}  # fmt: skip
LITE_INVERTED = {"conv_pw": "expand_conv", "bn1": "bn0", "conv_dw": "depthwise_conv",
                 "bn2": "bn1", "conv_pwl": "project_conv", "bn3": "bn2"}  # fmt: skip
LITE_ENDS = {"bn1": "bn0", "bn2": "bn1", "classifier": "fc"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(\w+)")


def known_names(
    tensors: Mapping[str, np.ndarray], expected: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """The same tensors under the names of the built-in networks; others as they are.

    Known are timm's MobileNetV2, EfficientNet-Lite and VGG, whose first dense layers are
    convolutions in timm, and the EfficientNet-Lite of efficientnet-lite-pytorch, whose names
    begin with underscores. ResNets have the same names everywhere.

    Args:
        tensors: Tensors of a file.
        expected: Names of the network, which tell networks with the same names in timm apart.
    """
    if "_conv_stem.weight" in tensors:
        return {re.sub(r"(^|\.)_", r"\1", name): tensor for name, tensor in tensors.items()}
    if "conv_stem.weight" in tensors and "classifier.weight" in tensors:
        if "blocks.0.depthwise_conv.weight" in expected:
            return _blocks(tensors, "blocks.{}.{}", LITE_SEPARABLE, LITE_INVERTED, LITE_ENDS)
        return _mobilenet_v2(tensors)
    if "pre_logits.fc1.weight" in tensors:
        return {_vgg(name): _flat(name, tensor) for name, tensor in tensors.items()}
    return dict(tensors)


def _mobilenet_v2(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    last = len(_numbers(tensors)) + 1
    ends = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": f"features.{last}.0",
        "bn2": f"features.{last}.1",
        "classifier": "classifier.1",
    }
    return _blocks(tensors, "features.{}.conv.{}", SEPARABLE, INVERTED, ends, first=1)


def _blocks(
    tensors: Mapping[str, np.ndarray],
    form: str,
    separable: Mapping[str, str],
    inverted: Mapping[str, str],
    ends: Mapping[str, str],
    *,
    first: int = 0,
) -> dict[str, np.ndarray]:
    """Timm's blocks, which are counted stage by stage, numbered through from `first`."""
    blocks = _numbers(tensors)

    def renamed(name: str) -> str:
        layer, _, leaf = name.rpartition(".")
        if match := _BLOCK.fullmatch(layer):
            number = blocks.index((int(match[1]), int(match[2]))) + first
            expands = f"blocks.{match[1]}.{match[2]}.conv_pwl.weight" in tensors
            inner = (inverted if expands else separable).get(match[3], match[3])
            return f"{form.format(number, inner)}.{leaf}"
        return f"{ends.get(layer, layer)}.{leaf}"

    return {renamed(name): tensor for name, tensor in tensors.items()}


def _numbers(tensors: Mapping[str, np.ndarray]) -> list[tuple[int, int]]:
    return sorted({(int(m[1]), int(m[2])) for m in map(_BLOCK.match, tensors) if m})


def _vgg(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{VGG_HEAD.get(layer, layer)}.{leaf}"


def _flat(name: str, tensor: np.ndarray) -> np.ndarray:
    """The kernel of a convolution over all positions as that of a dense layer."""
    convolution = name.startswith("pre_logits.") and tensor.ndim == 4
    return tensor.reshape(len(tensor), -1) if convolution else tensor
