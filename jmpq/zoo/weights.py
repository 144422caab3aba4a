"""Weights of any built-in network, from a file of jmpq or as they were published."""

import pathlib

import flax.linen as nn
from jaxtyping import PyTree

from jmpq.zoo.bert import Bert
from jmpq.zoo.decoder import Decoder
from jmpq.zoo.tensor_files import header_of, load_variables
from jmpq.zoo.vit import ViT
from jmpq.zoo.weights_bert import load_bert
from jmpq.zoo.weights_decoder import load_decoder
from jmpq.zoo.weights_torchvision import load_published


def load_weights(
    path: pathlib.Path | str, module: nn.Module, *, architecture: str
) -> dict[str, PyTree]:
    """Variables of a network from a file of jmpq or as others published them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `load_variables`, `load_published`, `load_bert` and `load_decoder`.
    """
    if header_of(path):
        return load_variables(path, architecture=architecture)[0]
    if isinstance(module, Bert):
        return load_bert(path, module)
    if isinstance(module, Decoder):
        return load_decoder(path, module)
    if isinstance(module, ViT):
        side = module.config.image_size
        return load_published(path, module, input_shape=(side, side, 3))
    return load_published(path, module)
