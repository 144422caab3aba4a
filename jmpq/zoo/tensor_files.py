"""Named tensors and nested variables as safetensors files, checked where they are read."""

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from jmpq.files import atomic_file
from jmpq.network.tree_paths import leaf_paths

SCHEMA, VERSION = "jmpq/weights", 1
FIELDS = {"architecture": str, "metadata": dict}  # of the header
PICKLED = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")  # PyTorch's own files
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")  # as Hugging Face numbers files
FOREIGN = (*PICKLED, ".npz", ".msgpack", ".json")  # of others than jmpq, for certain
AGAIN = "It may be cut off, or of another kind than its name says: get the file again."
ADVICE = "Choose the architecture and the number of classes of the file."


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


def load_tensors(path: pathlib.Path | str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_tensors` wrote: arrays by name, and the header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not one of ours, or not finite.
    """
    tensors, raw = read_tensors(path)
    header = _own_header(raw, path)
    if header.get("schema") != SCHEMA or header.get("version") != VERSION:
        raise ValueError(
            f"{path} was not written by this version of jmpq (schema "
            f"{header.get('schema')!r}, version {header.get('version')!r}; expected "
            f"{SCHEMA!r}, {VERSION}). Published weights are read by `load_published`."
        )
    if not all(isinstance(header.get(key), kind) for key, kind in FIELDS.items()):
        raise ValueError(
            f"{path} is spoilt: {', '.join(FIELDS)} of its header are missing. Get "
            "the file again."
        )
    _check_finite(tensors, path)
    return tensors, header


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
        architecture: Name of the network, checked again by `load_variables`.
        metadata: JSON values to keep beside (training, accuracy, ...).

    Raises:
        ValueError: If a key has a '/' or a tensor is not finite.
        OSError: If the folder cannot be written.
    """
    tensors = {name: np.asarray(leaf, order="C") for name, leaf in flatten(variables).items()}
    save_tensors(path, tensors, architecture=architecture, metadata=metadata)


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
    check_real(tensors, path)
    if architecture not in (None, header["architecture"]):
        raise ValueError(
            f"{path} has weights of {header['architecture']!r}, not of {architecture!r}. "
            "Choose the architecture of the file, or train this one."
        )
    return unflatten(tensors), header


def header_of(path: pathlib.Path | str) -> dict[str, Any]:
    """Header that `save_tensors` wrote beside the tensors; empty if jmpq did not write it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    path = pathlib.Path(path)
    if path.is_dir() or path.suffix in FOREIGN:
        return {}
    return _own_header(read_tensors(path)[1], path)


def _own_header(raw: Mapping[str, str], path: pathlib.Path | str) -> dict[str, Any]:
    """What jmpq wrote beside the tensors; empty where it did not write them."""
    try:
        header = json.loads(raw.get("jmpq", "{}"))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is spoilt: its header is not JSON. Get the file again.")
    return header


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


def read_tensors(path: pathlib.Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors of a safetensors file by name, and its metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    if not (path := pathlib.Path(path)).is_file():
        raise FileNotFoundError(f"There is no weights file {path}.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file: {error}. {AGAIN}"
        ) from error


def shard_advice(path: pathlib.Path | str) -> str:
    """What to do where a file, by its name, is one of several that hold a network's weights."""
    if not (found := SHARD.search(pathlib.Path(path).name)):
        return ""
    return (
        f"The file is number {int(found[1])} of {int(found[2])}: give their folder, or their "
        "index. "
    )


def check_tensors(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    path: pathlib.Path | str,
    advice: str = ADVICE,
) -> None:
    """Raise `ValueError` where tensors are missing, unexpected, mis-shaped or not finite."""
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
            f"file). Tensors {said}. {shard_advice(path)}{advice}"
        )
    check_real(tensors, path)
    _check_finite(tensors, path)


def check_real(tensors: Mapping[str, np.ndarray], path: pathlib.Path | str) -> None:
    """Raise `ValueError` where a tensor is of whole numbers, as codes without their scales."""
    whole = {name: array.dtype for name, array in tensors.items() if array.dtype.kind in "iub"}
    if whole:
        named = [f"{name} ({dtype})" for name, dtype in whole.items()]
        raise ValueError(
            f"{path} has tensors of whole numbers, not of weights: {_some(named)}. Give the "
            "float weights that they were made from."
        )


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


def flatten(tree: Mapping[str, PyTree], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by their '/'-joined keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if "/" in key:
            raise ValueError(f"The name {prefix + key!r} has a '/' of its own: rename it.")
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, np.ndarray], dtype: Any = None) -> dict[str, PyTree]:
    """Nested dicts of JAX arrays; inverse of `flatten`."""
    tree: dict[str, PyTree] = {}
    for name, array in flat.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(array, dtype)
    return tree
