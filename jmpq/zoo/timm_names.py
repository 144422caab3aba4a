"""Names of timm's state dicts where they differ from torchvision's."""

import re
from collections.abc import Mapping

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
_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(\w+)")


def torchvision_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tensors under torchvision's names; those of other networks as they are.

    Known are MobileNetV2 and VGG, whose first dense layers are convolutions in timm. ResNets
    have the same names in both.
    """
    if "conv_stem.weight" in tensors:
        return _mobilenet_v2(tensors)
    if "pre_logits.fc1.weight" in tensors:
        return {_vgg(name): _flat(name, tensor) for name, tensor in tensors.items()}
    return dict(tensors)


def _mobilenet_v2(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    blocks = sorted({(int(m[1]), int(m[2])) for m in map(_BLOCK.match, tensors) if m})
    last = len(blocks) + 1
    ends = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": f"features.{last}.0",
        "bn2": f"features.{last}.1",
        "classifier": "classifier.1",
    }

    def renamed(name: str) -> str:
        layer, _, leaf = name.rpartition(".")
        if match := _BLOCK.fullmatch(layer):
            number = blocks.index((int(match[1]), int(match[2]))) + 1
            inverted = f"blocks.{match[1]}.{match[2]}.conv_pwl.weight" in tensors
            inner = (INVERTED if inverted else SEPARABLE).get(match[3], match[3])
            return f"features.{number}.conv.{inner}.{leaf}"
        return f"{ends.get(layer, layer)}.{leaf}"

    return {renamed(name): tensor for name, tensor in tensors.items()}


def _vgg(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{VGG_HEAD.get(layer, layer)}.{leaf}"


def _flat(name: str, tensor: np.ndarray) -> np.ndarray:
    """The kernel of a convolution over all positions as that of a dense layer."""
    convolution = name.startswith("pre_logits.") and tensor.ndim == 4
    return tensor.reshape(len(tensor), -1) if convolution else tensor
