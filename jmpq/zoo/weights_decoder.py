"""Published weights of decoders, by Hugging Face's names of Llama."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jmpq.kinds import check_kinds
from jmpq.zoo.decoder import Decoder, example_ids, read_decoder_config
from jmpq.zoo.published.match import read_leaves
from jmpq.zoo.tensor_files import flatten, unflatten

ADVICE = "Choose the architecture of the file, and tied=True where it has no lm_head."


def load_decoder(path: pathlib.Path | str, module: Decoder) -> dict[str, PyTree]:
    """Variables of `module` from published weights of a decoder of the same sizes.

    Args:
        path: A file or folder as in `jmpq.zoo.published`. Names as ``model.layers.0.self_attn.
            q_proj.weight``, rows in the half-split rotary order of Hugging Face.
        module: The network.

    Returns:
        ``{"params": ...}`` in the module's dtype.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, a tensor is missing, unexpected, of another
            shape, of whole numbers or not finite, or the network is tied and the file has
            another kernel of the logits: the tensor is named.
    """
    structs = flatten(jax.eval_shape(module.init, jax.random.key(0), example_ids()))
    copies = {"lm_head.weight": "embed_tokens.weight"} if module.config.tied else {}
    shapes = {leaf: struct.shape for leaf, struct in structs.items()}
    leaves = read_leaves(path, shapes, copies=copies, advice=ADVICE)
    return unflatten({leaf: np.asarray(x) for leaf, x in leaves.items()}, module.dtype)


@check_kinds
def read_decoder(
    folder: pathlib.Path | str, **options: Any
) -> tuple[Decoder, dict[str, PyTree]]:
    """Network and variables from a published folder: ``config.json`` and weights.

    Args:
        folder: The folder.
        options: Fields of `DecoderConfig` that replace those of the file.

    Raises:
        FileNotFoundError: If one of the files is not there.
        ValueError: As `read_decoder_config` and `load_decoder`.
    """
    module = Decoder(dataclasses.replace(read_decoder_config(folder), **options))
    return module, load_decoder(folder, module)
