"""Published weights of BERT encoders, by their names."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jmpq.kinds import check_kinds
from jmpq.zoo.bert import (
    Bert,
    BertConfig,
    Tokens,
    example_tokens,
    read_config,
    split_heads,
)
from jmpq.zoo.published.match import read_leaves
from jmpq.zoo.tensor_files import flatten, unflatten

ADVICE = "Choose the architecture, the tokenizer and the number of classes of the file."
HEADS = ("pooler.", "classifier.", "cls.", "qa_outputs.")  # what a head of ours may not need


def load_bert(
    path: pathlib.Path | str, module: Bert, *, key: Array | None = None
) -> dict[str, PyTree]:
    """Variables of `module` from published weights of an encoder of the same sizes.

    Args:
        path: A file or folder as in `jmpq.zoo.published`. Names as ``encoder.layer.0.output.
            dense.weight``, with or without ``bert.`` before them.
        module: The network.
        key: Key to draw at random a ``pooler`` or ``classifier`` that the file lacks, for
            fine-tuning; without a key that is an error.

    Returns:
        ``{"params": ...}`` in the module's dtype. Heads of the file that `module` does not
        have are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or a tensor is missing, unexpected, of another
            shape, or not finite: the tensor is named.
    """
    whole = Bert(_joined(module.config), module.head, module.num_classes, module.dtype)
    pair = (2,) * (module.head == "similarity")
    example = example_tokens(1, *pair, 2)
    init = functools.partial(_init, whole, example)
    structs = flatten({"params": jax.eval_shape(init, jax.random.key(0))})
    shapes = {leaf: struct.shape for leaf, struct in structs.items()}
    absent = () if key is None else HEADS
    leaves = read_leaves(path, shapes, spare=HEADS, absent=absent, advice=ADVICE)
    if key is not None and (fresh := shapes.keys() - leaves.keys()):
        drawn = flatten({"params": init(key)})
        leaves |= {leaf: np.asarray(drawn[leaf]) for leaf in fresh}
    leaves = {leaf.removeprefix("params/"): array for leaf, array in leaves.items()}
    params = unflatten(leaves, module.dtype)
    if module.config.split_heads:
        params = split_heads(params, module.config)
    return {"params": params}


@check_kinds
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


def _init(module: Bert, example: Tokens, key: Array) -> PyTree:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return module.init(key, example)["params"]


def _joined(config: BertConfig) -> BertConfig:
    return dataclasses.replace(config, split_heads=False)
