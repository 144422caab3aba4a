"""Arrays for the variables of a network, from whatever a file calls them."""

import pathlib
from collections.abc import Collection, Mapping
from types import MappingProxyType

import numpy as np

from jmpq.zoo.published import image_names, vit_names
from jmpq.zoo.published.files import from_torch, read_published, torch_name, torch_shape
from jmpq.zoo.tensor_files import ADVICE, check_tensors

# What training scripts and heads put before the names of a network.
PREFIXES = ("module.", "model.", "_orig_mod.", "bert.")
OLD_ENDS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Tensors that are no parameters: counters, tables that follow from the sizes.
BUFFERS = (
    "num_batches_tracked",
    "rotary_emb.inv_freq",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
)


def read_leaves(
    path: pathlib.Path | str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    spare: tuple[str, ...] = (),
    absent: tuple[str, ...] = (),
    copies: Mapping[str, str] = MappingProxyType({}),
    advice: str = ADVICE,
) -> dict[str, np.ndarray]:
    """Arrays of a network's variables from a published file.

    Args:
        path: File or folder, see `jmpq.zoo.published`.
        shapes: Shapes of the variables by path, ``params/conv1/kernel``.
        spare: Beginnings of names that the file may have and the network not.
        absent: Beginnings of names that the file may lack.
        copies: Names that the file may have besides, if they equal another tensor.
        advice: Last sentence of the error.

    Returns:
        An array for every variable that the file has.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or a tensor is missing, unexpected, of another shape,
            of whole numbers or not finite: the tensor is named.
    """
    names = {leaf: torch_name(leaf) for leaf in shapes}
    tensors = {
        name: tensor
        for name, tensor in fitted(read_published(path), names.values()).items()
        if name in names.values() or not (name.endswith(BUFFERS) or name.startswith(spare))
    }
    for name, other in copies.items():
        if name in tensors and other in tensors:
            if not np.array_equal(tensors[name], tensors[other]):
                raise ValueError(
                    f"{path} has {name} apart from {other}, which the network uses for both. "
                    f"{advice}"
                )
            del tensors[name]
    there = {
        leaf: name
        for leaf, name in names.items()
        if name in tensors or not name.startswith(absent)
    }
    wanted = {name: torch_shape(leaf, shapes[leaf]) for leaf, name in there.items()}
    check_tensors(tensors, wanted, path, advice)
    return {leaf: from_torch(leaf, tensors[name]) for leaf, name in there.items()}


def fitted(
    tensors: Mapping[str, np.ndarray], expected: Collection[str]
) -> dict[str, np.ndarray]:
    """Tensors by the names of a network: prefixes off, other publishers' names translated.

    A prefix goes where all names have it and those of the network do not, or where without it
    more names are those of the network (``model.`` beside ``lm_head.``).
    """
    wanted = frozenset(expected)
    for prefix in (*PREFIXES, *PREFIXES):  # one may stand before another
        shared = tensors and all(name.startswith(prefix) for name in tensors)
        if shared and not all(name.startswith(prefix) for name in wanted):
            tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    best = _translated(tensors, wanted)
    for prefix in PREFIXES:
        bare = {name.removeprefix(prefix): x for name, x in tensors.items()}
        if len(bare) == len(tensors):
            other = _translated(bare, wanted)
            best = max(best, other, key=lambda named: len(wanted & named.keys()))
    return best


def _translated(
    tensors: Mapping[str, np.ndarray], expected: frozenset[str]
) -> dict[str, np.ndarray]:
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in OLD_ENDS.items():
            name = f"{name.removesuffix(old)}{new}" if name.endswith(old) else name
        renamed[name] = tensor
    return image_names.known_names(vit_names.known_names(renamed, expected), expected)
