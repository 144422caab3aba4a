"""Any weight file, or a folder with one, to names and arrays in PyTorch's form."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jmpq.zoo.published.pickles import read_pickled
from jmpq.zoo.published.vit_names import from_big_vision, is_big_vision
from jmpq.zoo.tensor_files import AGAIN, PICKLED, flatten, read_tensors

INDEX = ".index.json"
# Files of a folder, the first that is there is read.
IN_FOLDERS = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "flax_model.msgpack",
)
ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
# (collection, leaf) of linen -> last part of PyTorch's name; others keep theirs.
TORCH_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "embedding"): "weight",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# Axes of ours in PyTorch's tensor, by rank: OIHW -> HWIO, (out, in) -> (in, out).
KERNEL_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}


def read_published(path: pathlib.Path | str) -> dict[str, np.ndarray]:
    """Tensors of a file or folder by PyTorch's names, kernels with outputs first.

    Raises:
        FileNotFoundError: If there is no such file, or a shard is missing.
        ValueError: If it cannot be read.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if any((path / name).exists() for name in ORBAX):
            return _torch_form(_read_orbax(path), path)
        there = [path / name for name in IN_FOLDERS if (path / name).is_file()]
        there = there or sorted(path.glob("*.safetensors"))
        if not there or (there[0].name not in IN_FOLDERS and len(there) > 1):
            raise FileNotFoundError(
                f"There are no weights in {path}: expected {', '.join(IN_FOLDERS)}, a single "
                "safetensors file or a checkpoint of orbax."
            )
        path = there[0]
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}.")
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix in PICKLED:
        return read_pickled(path)
    if path.suffix == ".npz":
        return _torch_form(_readable(_read_npz, path, ".npz file of arrays"), path)
    if path.suffix == ".msgpack":
        return _torch_form(_readable(_read_msgpack, path, "tree of flax.serialization"), path)
    return read_tensors(path)[0]


def torch_name(leaf: str) -> str:
    """PyTorch's name of a variable.

    >>> torch_name("params/layer1/0/bn1/scale"), torch_name("batch_stats/bn1/var")
    ('layer1.0.bn1.weight', 'bn1.running_var')
    """
    collection, *path, last = leaf.split("/")
    return ".".join([*path, TORCH_LEAVES.get((collection, last), last)])


def torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a variable in PyTorch's form."""
    return tuple(shape[axis] for axis in _to_torch(leaf, len(shape)))


def from_torch(leaf: str, tensor: np.ndarray) -> np.ndarray:
    """A variable from PyTorch's form: kernels with outputs last."""
    return tensor.transpose(np.argsort(_to_torch(leaf, tensor.ndim)))


def _to_torch(leaf: str, rank: int) -> list[int]:
    if leaf.rpartition("/")[2] != "kernel" or rank not in KERNEL_AXES:
        return list(range(rank))
    return np.argsort(KERNEL_AXES[rank]).tolist()


def _torch_form(tree: Mapping[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters and statistics of a Flax tree; what else a training keeps is left out."""
    flat = dict(tree)
    while flat and any(name.startswith("params/params/") for name in flat):
        flat = {
            k.removeprefix("params/"): v for k, v in flat.items() if k.startswith("params/")
        }
    if any(name.startswith("params/") for name in flat):
        flat = {k: v for k, v in flat.items() if k.startswith(("params/", "batch_stats/"))}
    else:
        flat = {f"params/{name}": array for name, array in flat.items()}
    if not flat:
        raise ValueError(f"{path} holds no arrays; expected the parameters of a network.")
    if is_big_vision(flat):
        return from_big_vision(flat)
    return {
        torch_name(leaf): array.transpose(_to_torch(leaf, array.ndim))
        for leaf, array in flat.items()
    }


def _read_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        shards: dict[str, str] = json.loads(index.read_text())["weight_map"]
        names = sorted(set(shards.values()))
        if any(pathlib.Path(name).name != name for name in names):
            raise ValueError("it names files in other folders")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards: {error}.") from error
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(
            f"{index} names {len(names)} files; not there: {', '.join(missing)}. Put all of "
            "them beside it."
        )
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        tensors |= read_published(index.parent / name)
    if absent := sorted(set(shards) - set(tensors)):
        raise ValueError(f"{index} names tensors that its files lack: {', '.join(absent[:4])}.")
    return tensors


def _readable(
    read: Callable[[pathlib.Path], dict[str, np.ndarray]], path: pathlib.Path, what: str
) -> dict[str, np.ndarray]:
    try:
        return read(path)
    except Exception as error:  # of many kinds, by what the file is instead
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(f"{path} is not a readable {what}: {first}. {AGAIN}") from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_msgpack(path: pathlib.Path) -> dict[str, np.ndarray]:
    from flax import serialization

    return _arrays(serialization.msgpack_restore(path.read_bytes()))


def _read_orbax(path: pathlib.Path) -> dict[str, np.ndarray]:
    import jax
    import orbax.checkpoint as ocp

    def read(path: pathlib.Path) -> dict[str, np.ndarray]:
        inner = path / "default"  # where a manager of checkpoints keeps its one item
        place = (inner if inner.is_dir() else path).absolute()
        reader = ocp.PyTreeCheckpointer()
        stored = reader.metadata(place).item_metadata
        if stored is None:
            raise ValueError("it has no metadata of its arrays")
        wanted = jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), stored.tree)
        return _arrays(reader.restore(place, restore_args=wanted))

    return _readable(read, path, "checkpoint of orbax")


def _arrays(tree: Any) -> dict[str, np.ndarray]:
    """Leaves of a tree that are arrays, by their '/'-joined keys."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"it holds {type(tree).__name__}, not names to arrays")
    flat = flatten({str(key): value for key, value in tree.items()})
    return {name: np.asarray(leaf) for name, leaf in flat.items() if hasattr(leaf, "shape")}
