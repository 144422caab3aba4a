"""Published PyTorch weights of image networks, by the names of torchvision and timm."""

import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmpq.zoo.tensor_files import PICKLED, check_tensors, flatten, read_tensors, unflatten
from jmpq.zoo.timm_names import known_names

# (collection, leaf) of linen -> name of the published tensor
TORCH_NAMES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# Axes of ours in the published tensor: OIHW -> HWIO, (out, in) -> (in, out).
KERNEL_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}
INPUT_SHAPE = (32, 32, 3)
# What training scripts put before every name, and around the tensors.
PREFIXES = ("module.", "model.", "_orig_mod.")
NESTED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")


def load_published(
    path: pathlib.Path | str,
    module: nn.Module,
    *,
    input_shape: tuple[int, ...] = INPUT_SHAPE,
) -> dict[str, PyTree]:
    """Variables of `module` from published PyTorch weights of the same network.

    Args:
        path: A state dict as safetensors, or as ``.pth``, ``.pt`` or ``.th`` where PyTorch is
            installed; names as ``layer1.0.conv1.weight`` (with ``module.`` or ``model.``
            before all of them, or not), convolutions OIHW, depthwise ones (C, 1, H, W), dense
            layers (out, in). Batch counters (``num_batches_tracked``) are ignored. timm's names
            of MobileNetV2, EfficientNet-Lite and VGG are known too.
        module: The network; its parameters' paths are the published names with slashes.
        input_shape: Shape of one example; for the built-in networks only the channels matter.

    Returns:
        ``{"params": ..., "batch_stats": ...}``, float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or a tensor is missing, unexpected, of another
            shape, or not finite: the tensor is named.
    """
    expected = {
        leaf: (torch_name(leaf), struct.shape)
        for leaf, struct in flatten(abstract_variables(module, input_shape)).items()
    }
    tensors = known_names(
        _without_prefix(_read_published(path)), [name for name, _ in expected.values()]
    )
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    shapes = {
        name: tuple(shape[KERNEL_AXES[len(shape)].index(a)] for a in range(len(shape)))
        if leaf.endswith("/kernel")
        else shape
        for leaf, (name, shape) in expected.items()
    }
    check_tensors(tensors, shapes, path)
    return unflatten(
        {
            leaf: tensors[name].transpose(KERNEL_AXES[len(shape)])
            if leaf.endswith("/kernel")
            else tensors[name]
            for leaf, (name, shape) in expected.items()
        },
        jnp.float32,
    )


def torch_name(leaf: str) -> str:
    """Name of a variable in the published weights.

    >>> torch_name("params/layer1/0/bn1/scale"), torch_name("batch_stats/bn1/var")
    ('layer1.0.bn1.weight', 'bn1.running_var')
    """
    collection, *path, last = leaf.split("/")
    return ".".join([*path, TORCH_NAMES[collection, last]])


def abstract_variables(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, PyTree]:
    """Shapes and dtypes of a network's variables, from the shape of one example's input."""
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), example)  # type: ignore[arg-type]


def _read_published(path: pathlib.Path | str) -> dict[str, np.ndarray]:
    """Tensors of a state dict, in whichever format."""
    path = pathlib.Path(path)
    if path.suffix not in PICKLED:
        return read_tensors(path)[0]
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}.")
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} is read by PyTorch, which is not installed. Install torch, or save the "
            "state dict elsewhere with safetensors.torch.save_file and give that file."
        ) from error
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)  # nothing in it runs
    except Exception as error:  # of many kinds, by what the file is instead
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is not a readable PyTorch state dict: {first}") from error
    while isinstance(stored, Mapping) and (inner := [k for k in NESTED if k in stored]):
        stored = stored[inner[0]]
    if not isinstance(stored, Mapping) or not all(map(torch.is_tensor, stored.values())):
        raise ValueError(
            f"{path} holds {type(stored).__name__}; expected names to tensors. Save "
            "`model.state_dict()`."
        )
    return {
        name: (x.float() if x.is_floating_point() else x).numpy() for name, x in stored.items()
    }


def _without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without the prefix that all of them share."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _without_prefix({k.removeprefix(prefix): v for k, v in tensors.items()})
    return dict(tensors)
