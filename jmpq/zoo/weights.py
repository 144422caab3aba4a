"""Weights on disk: published PyTorch weights of any built-in network, and our own variables."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from jmpq.files import atomic_file
from jmpq.network.tree_paths import leaf_paths
from jmpq.zoo.bert import Bert
from jmpq.zoo.timm_names import torchvision_names

SCHEMA, VERSION = "jmpq/weights", 1

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
PICKLED = (".pth", ".pt", ".th")
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
            of MobileNetV2 and VGG are known too.
        module: The network; its parameters' paths are the published names with slashes.
        input_shape: Of one example. Of the built-in networks only the channels matter.

    Returns:
        ``{"params": ..., "batch_stats": ...}``, float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or a tensor is missing, unexpected, of another
            shape, or not finite: the tensor is named.
    """
    tensors = torchvision_names(_without_prefix(_read_published(path)))
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    expected = {
        leaf: (torch_name(leaf), struct.shape)
        for leaf, struct in _flatten(abstract_variables(module, input_shape)).items()
    }
    shapes = {
        name: tuple(shape[KERNEL_AXES[len(shape)].index(a)] for a in range(len(shape)))
        if leaf.endswith("/kernel")
        else shape
        for leaf, (name, shape) in expected.items()
    }
    _check_tensors(tensors, shapes, path)
    return _unflatten(
        {
            leaf: tensors[name].transpose(KERNEL_AXES[len(shape)])
            if leaf.endswith("/kernel")
            else tensors[name]
            for leaf, (name, shape) in expected.items()
        },
        jnp.float32,
    )


def load_weights(
    path: pathlib.Path | str, module: nn.Module, *, architecture: str
) -> dict[str, PyTree]:
    """Variables of a network from a file of ours or from published PyTorch weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `load_variables`, `load_published` and, of BERT, `load_bert`.
    """
    if header_of(path):
        return load_variables(path, architecture=architecture)[0]
    if isinstance(module, Bert):
        from jmpq.zoo.weights_bert import load_bert  # which reads and checks by this module

        return load_bert(path, module)
    return load_published(path, module)


def header_of(path: pathlib.Path | str) -> dict[str, Any]:
    """What `save_tensors` wrote beside the tensors; empty where the file is not of ours.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    path = pathlib.Path(path)
    if path.is_dir() or path.suffix in (*PICKLED, ".bin"):
        return {}
    return json.loads(_read(path)[1].get("jmpq", "{}"))


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


def save_variables(
    path: pathlib.Path | str,
    variables: Mapping[str, PyTree],
    *,
    architecture: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write nested dicts of arrays as safetensors, whole or not at all.

    Args:
        path: File to write; its folder is made.
        variables: Nested dicts with string keys; the tensors' names are the '/'-joined keys.
        architecture: What the weights belong to, checked again by `load_variables`.
        metadata: JSON values to keep beside (training, accuracy, ...).

    Raises:
        ValueError: If a key has a '/' or a tensor is not finite.
        OSError: If the folder cannot be written.
    """
    tensors = {name: np.asarray(leaf, order="C") for name, leaf in _flatten(variables).items()}
    save_tensors(path, tensors, architecture=architecture, metadata=metadata)


def save_tensors(
    path: pathlib.Path | str,
    tensors: Mapping[str, np.ndarray],
    *,
    architecture: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write named arrays as `save_variables` does.

    Raises:
        ValueError: If a tensor is not finite.
        OSError: If the folder cannot be written.
    """
    _check_finite(tensors, path)
    header = {
        "schema": SCHEMA,
        "version": VERSION,
        "architecture": architecture,
        "metadata": dict(metadata or {}),
    }
    data = safetensors.numpy.save(dict(tensors), {"jmpq": json.dumps(header, allow_nan=False)})
    with atomic_file(pathlib.Path(path)) as file:
        file.write(data)


def load_variables(
    path: pathlib.Path | str, *, architecture: str | None = None
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """Read what `save_variables` wrote.

    Args:
        path: File to read.
        architecture: If given, what the file must say it belongs to.

    Returns:
        The nested dicts of arrays, and the header: ``architecture``, ``metadata``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not one of ours, of another architecture, or not finite.
    """
    tensors, header = load_tensors(path)
    if architecture not in (None, header["architecture"]):
        raise ValueError(
            f"{path} has weights of {header['architecture']!r}, not of {architecture!r}. "
            "Choose the architecture of the file, or train this one."
        )
    return _unflatten(tensors), header


def load_tensors(path: pathlib.Path | str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_tensors` wrote: arrays by name, and the header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not one of ours, or not finite.
    """
    tensors, raw = _read(path)
    header = json.loads(raw.get("jmpq", "{}"))
    if header.get("schema") != SCHEMA or header.get("version") != VERSION:
        raise ValueError(
            f"{path} was not written by this version of jmpq (schema "
            f"{header.get('schema')!r}, version {header.get('version')!r}; expected "
            f"{SCHEMA!r}, {VERSION}). Published weights are read by `load_published`."
        )
    _check_finite(tensors, path)
    return tensors, header


def weights_sha256(tree: PyTree) -> str:
    """Hash of any pytree of arrays: paths, dtypes, shapes and bytes of its leaves.

    The same on every machine and JAX version; independent of the order of dict keys.
    """
    digest = hashlib.sha256()
    named = zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)
    for name, leaf in sorted(named, key=lambda item: item[0]):
        array = np.asarray(leaf)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: pathlib.Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if not (path := pathlib.Path(path)).is_file():
        raise FileNotFoundError(f"There is no weights file {path}. Give a .safetensors file.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}.") from error


def _read_published(path: pathlib.Path | str) -> dict[str, np.ndarray]:
    """Tensors of a state dict, in whichever format."""
    path = pathlib.Path(path)
    if path.suffix not in PICKLED:
        return _read(path)[0]
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
        found = torch.load(path, map_location="cpu", weights_only=True)  # nothing in it runs
    except Exception as error:  # of many kinds, by what the file is instead
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is not a readable PyTorch state dict: {first}") from error
    while isinstance(found, Mapping) and (inner := [k for k in NESTED if k in found]):
        found = found[inner[0]]
    if not isinstance(found, Mapping) or not all(map(torch.is_tensor, found.values())):
        raise ValueError(
            f"{path} holds {type(found).__name__}; expected names to tensors. Save "
            "`model.state_dict()`."
        )
    return {
        name: (x.float() if x.is_floating_point() else x).numpy() for name, x in found.items()
    }


def _without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without what all of them begin with."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _without_prefix({k.removeprefix(prefix): v for k, v in tensors.items()})
    return dict(tensors)


def _check_tensors(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    path: pathlib.Path | str,
    advice: str = "Choose the architecture and the number of classes of the file.",
) -> None:
    problems = {
        "missing": [name for name in shapes if name not in tensors],
        "unexpected": [name for name in tensors if name not in shapes],
        "of another shape": [
            f"{name} {tensors[name].shape} instead of {shape}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
        raise ValueError(
            f"{path} does not fit the network ({len(shapes)} tensors, {len(tensors)} in the "
            f"file). Tensors {said}. {advice}"
        )
    _check_finite(tensors, path)


def _check_finite(tensors: Mapping[str, np.ndarray], path: pathlib.Path | str) -> None:
    bad = {name: int(np.sum(~np.isfinite(array))) for name, array in tensors.items()}
    if any(bad.values()):
        counts = [f"{n} ({b} of {tensors[n].size} values)" for n, b in bad.items() if b]
        raise ValueError(
            f"NaN or infinite weights in {path}: {_some(counts)}. Get the file again or train "
            "with a smaller learning rate."
        )


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _flatten(tree: Mapping[str, PyTree], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if "/" in key:
            raise ValueError(f"The name {prefix + key!r} has a '/' of its own: rename it.")
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def _unflatten(flat: Mapping[str, np.ndarray], dtype: Any = None) -> dict[str, PyTree]:
    tree: dict[str, PyTree] = {}
    for name, array in flat.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(array, dtype)
    return tree
