"""Names of published vision transformers, as `jmpq.zoo.vit` has them: timm's, q, k, v apart."""

import re
from collections.abc import Collection, Mapping

import numpy as np

_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION = (
    (r"conv_proj\.", "patch_embed.proj."),
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"heads\.head\.", "head."),
    (_LAYER + r"ln_(\d)\.", r"blocks.\1.norm\2."),
    (_LAYER + r"self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (_LAYER + r"self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (_LAYER + r"mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (_LAYER + r"mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
)
# Parts of a block of big_vision, and of the first ViT, whose modules share one numbering.
BIG_VISION_BLOCK = {
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "LayerNorm_2": "norm2",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/Dense_1": "mlp.fc2",
}
BIG_VISION = {
    "embedding": "patch_embed.proj",
    "Transformer/encoder_norm": "norm",
    "head": "head",
}
PARTS = {"query": "q", "key": "k", "value": "v", "out": "proj"}
ENCODER = "params/Transformer/encoder"
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")
_ATTENTION = re.compile(r"MultiHeadDotProductAttention_[01]/(query|key|value|out)")


def known_names(
    tensors: Mapping[str, np.ndarray], expected: Collection[str]
) -> dict[str, np.ndarray]:
    """Tensors of torchvision's or timm's ViT as ours; those of other networks as they are."""
    if "conv_proj.weight" in tensors:
        renamed = {}
        for name, tensor in tensors.items():
            for pattern, ours in TORCHVISION:
                name = re.sub(f"^{pattern}", ours, name)
            renamed[name] = tensor
        tensors = renamed
    if "blocks.0.attn.qkv.weight" not in tensors or "blocks.0.attn.q.weight" not in expected:
        return dict(tensors)
    apart: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name and len(tensor) % 3 == 0:
            for part, rows in zip("qkv", np.split(tensor, 3), strict=True):
                apart[name.replace(".qkv.", f".{part}.")] = rows
        else:
            apart[name] = tensor
    return apart


def is_big_vision(flat: Mapping[str, np.ndarray]) -> bool:
    """Whether these parameters, by '/'-joined keys, are of a ViT of big_vision."""
    return any(name.startswith(ENCODER) for name in flat)


def from_big_vision(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our names and PyTorch's form from the parameters of a ViT of big_vision.

    Layers may be stacked (``scan=True``). What is not known keeps its name.
    """
    flat = {name.removeprefix("params/"): array for name, array in _unstacked(flat).items()}
    made: dict[str, np.ndarray] = {}
    for name, array in flat.items():
        layer, _, leaf = name.rpartition("/")
        if name.endswith("pos_embedding"):
            # big_vision adds positions before the class token, the first ViT after it.
            if "cls" in flat and not layer:
                array = np.pad(array, ((0, 0), (1, 0), (0, 0)))
            made["pos_embed"] = array
        elif name == "cls":
            made["cls_token"] = array
        elif match := _BLOCK.fullmatch(layer):
            ours, array = _in_block(match[2], leaf, array)
            made[f"blocks.{match[1]}.{ours}"] = array
        elif layer in BIG_VISION:
            made[f"{BIG_VISION[layer]}.{_leaf(leaf)}"] = _outputs_first(leaf, array)
        else:
            made[name] = array
    return made


def _in_block(layer: str, leaf: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Name and form of a parameter of a block."""
    if match := _ATTENTION.fullmatch(layer):
        if match[1] == "out":
            array = array.reshape(-1, array.shape[-1])
        elif leaf == "kernel":
            array = array.reshape(len(array), -1)
        else:
            array = array.reshape(-1)
        return f"attn.{PARTS[match[1]]}.{_leaf(leaf)}", _outputs_first(leaf, array)
    return f"{BIG_VISION_BLOCK.get(layer, layer)}.{_leaf(leaf)}", _outputs_first(leaf, array)


def _leaf(leaf: str) -> str:
    return {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)


def _outputs_first(leaf: str, array: np.ndarray) -> np.ndarray:
    if leaf != "kernel":
        return array.reshape(-1)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _unstacked(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layers that are stacked along the first axis, each by itself."""
    apart: dict[str, np.ndarray] = {}
    stack = f"{ENCODER}block/"
    for name, array in flat.items():
        if name.startswith(stack):
            rest = name.removeprefix(stack)
            apart |= {f"{ENCODER}block_{i}/{rest}": one for i, one in enumerate(array)}
        else:
            apart[name] = array
    return apart
