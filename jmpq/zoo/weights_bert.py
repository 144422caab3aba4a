"""Published weights of BERT encoders, by their names: safetensors, or .bin where torch is."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jmpq.zoo.bert import (
    Bert,
    BertConfig,
    Tokens,
    example_tokens,
    read_config,
    split_heads,
)
from jmpq.zoo.tensor_files import check_tensors, flatten, read_tensors, unflatten

FILES = ("model.safetensors", "pytorch_model.bin")
# Leaves of ours -> last part of the published name; kernels are (out, in) there.
LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # no parameters
ADVICE = "Choose the architecture, the tokenizer and the number of classes of the file."
HEADS = ("pooler.", "classifier.", "cls.", "qa_outputs.")  # what a head of ours may not need


def load_bert(
    path: pathlib.Path | str, module: Bert, *, key: Array | None = None
) -> dict[str, PyTree]:
    """Variables of `module` from published weights of an encoder of the same sizes.

    Args:
        path: Safetensors file, a ``.bin`` file (where torch is installed), or a folder with
            ``model.safetensors`` or ``pytorch_model.bin``. Names as ``encoder.layer.0.output.
            dense.weight``, with or without ``bert.`` before them.
        module: The network.
        key: Key to draw at random a ``pooler`` or ``classifier`` that the file lacks, for
            fine-tuning; without a key that is an error.

    Returns:
        ``{"params": ...}`` in the module's dtype. Heads of the file that `module` does not
        have are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If a ``.bin`` file is given and torch is not installed.
        ValueError: If the file cannot be read, or a tensor is missing, unexpected, of another
            shape, or not finite: the tensor is named.
    """
    whole = Bert(_joined(module.config), module.head, module.num_classes, module.dtype)
    pair = (2,) * (module.head == "similarity")
    example = example_tokens(1, *pair, 2)
    init = functools.partial(_init, whole, example)
    structs = flatten(jax.eval_shape(init, jax.random.key(0)))
    names = {leaf: bert_name(leaf) for leaf in structs}
    tensors = {
        name: tensor
        for name, tensor in _tensors(path).items()
        if name in names.values() or not name.startswith((*BUFFERS, *HEADS))
    }
    fresh = {
        leaf
        for leaf, name in names.items()
        if key is not None and name not in tensors and name.startswith(HEADS)
    }
    shapes = {
        name: structs[leaf].shape[::-1] if leaf.endswith("/kernel") else structs[leaf].shape
        for leaf, name in names.items()
        if leaf not in fresh
    }
    check_tensors(tensors, shapes, path, ADVICE)
    drawn = {}
    if fresh:
        assert key is not None
        drawn = {leaf: np.asarray(x) for leaf, x in flatten(init(key)).items()}
    leaves = {
        leaf: drawn[leaf]
        if leaf in fresh
        else tensors[name].T
        if leaf.endswith("/kernel")
        else tensors[name]
        for leaf, name in names.items()
    }
    params = unflatten(leaves, module.dtype)
    if module.config.split_heads:
        params = split_heads(params, module.config)
    return {"params": params}


def read_bert(
    folder: pathlib.Path | str, head: str = "hidden", **options: Any
) -> tuple[Bert, dict[str, PyTree]]:
    """Network and variables from a published folder: ``config.json`` and weights.

    Args:
        folder: The folder.
        head: Head of the network.
        options: Fields of `BertConfig` that replace those of the file (``split_heads=True``).

    Raises:
        FileNotFoundError: If one of the files is not there.
        ValueError: As `read_config` and `load_bert`.
    """
    config = dataclasses.replace(read_config(folder), **options)
    module = Bert(config, head)
    return module, load_bert(folder, module)


def bert_name(leaf: str) -> str:
    """Name of a parameter in the published weights.

    >>> bert_name("embeddings/LayerNorm/scale"), bert_name("pooler/dense/kernel")
    ('embeddings.LayerNorm.weight', 'pooler.dense.weight')
    """
    *path, last = leaf.split("/")
    return ".".join([*path, LEAVES[last]])


def _init(module: Bert, example: Tokens, key: Array) -> PyTree:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return module.init(key, example)["params"]


def _joined(config: BertConfig) -> BertConfig:
    return dataclasses.replace(config, split_heads=False)


def _tensors(path: pathlib.Path | str) -> dict[str, np.ndarray]:
    path = pathlib.Path(path)
    if path.is_dir():
        there = [path / name for name in FILES if (path / name).is_file()]
        if not there:
            raise FileNotFoundError(
                f"There are no weights in {path}: expected {' or '.join(FILES)}."
            )
        path = there[0]
    tensors = _torch_tensors(path) if path.suffix in (".bin", ".pt") else read_tensors(path)[0]
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.")
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def _torch_tensors(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}.")
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is a PyTorch file: install torch to read it, or convert it to safetensors."
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in state.items()}
    except Exception as error:  # the unpickler raises whatever it likes
        raise ValueError(f"{path} is no PyTorch file of plain tensors: {error}.") from error
