"""Published weights of image networks, by the names of torchvision, timm and big_vision."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jmpq.kinds import check_kinds
from jmpq.zoo.published.match import read_leaves
from jmpq.zoo.tensor_files import flatten, unflatten

INPUT_SHAPE = (32, 32, 3)


@check_kinds
def load_published(
    path: pathlib.Path | str,
    module: nn.Module,
    *,
    input_shape: tuple[int, ...] = INPUT_SHAPE,
) -> dict[str, PyTree]:
    """Variables of `module` from published weights of the same network.

    Args:
        path: A file or folder as in `jmpq.zoo.published`. In PyTorch's files names are as
            ``layer1.0.conv1.weight`` (with ``module.`` or ``model.`` before them, or not),
            convolutions OIHW, depthwise ones (C, 1, H, W), dense layers (out, in); Flax trees
            have the paths and shapes of `module`. timm's names of MobileNetV2,
            EfficientNet-Lite, VGG and ViT are known too, and big_vision's of ViT.
        module: The network; its parameters' paths are the published names with slashes.
        input_shape: Shape of one example; for most built-in networks only the channels matter.

    Returns:
        ``{"params": ..., "batch_stats": ...}``, float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or a tensor is missing, unexpected, of another
            shape, of whole numbers or not finite: the tensor is named.
    """
    structs = flatten(abstract_variables(module, input_shape))
    leaves = read_leaves(path, {leaf: struct.shape for leaf, struct in structs.items()})
    return unflatten(leaves, jnp.float32)


def abstract_variables(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, PyTree]:
    """Shapes and dtypes of a network's variables, from the shape of one example's input."""
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), example)  # type: ignore[arg-type]
