"""Tensors of PyTorch's files, read without PyTorch and without running the pickle in them."""

import dataclasses
import io
import math
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmpq.zoo.tensor_files import AGAIN

MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file from before PyTorch 1.6
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Where checkpoints of trainings keep the weights.
NESTED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")


def read_pickled(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors of a state dict by name, also of one inside a checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not one of PyTorch's files, or holds anything but tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}.")
    try:
        stored, read = _zipped(path) if zipfile.is_zipfile(path) else _legacy(path)
    except Exception as error:  # of many kinds, by what the file is instead
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{path} is not a readable PyTorch state dict: {first}. {AGAIN}"
        ) from error
    while isinstance(stored, Mapping) and (inner := [k for k in NESTED if k in stored]):
        stored = stored[inner[0]]
    if not isinstance(stored, Mapping) or not stored:
        raise ValueError(
            f"{path} holds {type(stored).__name__}; expected names to tensors. Save "
            "`model.state_dict()`."
        )
    for name, value in stored.items():
        if not isinstance(value, _Tensor):
            raise ValueError(
                f"{path} holds {type(value).__name__} under {name!r}; expected names to "
                "tensors, none quantized. Save `model.state_dict()` of the float network."
            )
    try:
        return {str(name): value.array(read) for name, value in stored.items()}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers that tensors share, not yet read."""

    kind: str
    key: str


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, read: Callable[[str], bytes]) -> np.ndarray:
        dtype = np.dtype(STORAGES[self.storage.kind])
        flat = np.frombuffer(read(self.storage.key), dtype)
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, dtype)
        if (
            min(self.offset, *self.shape, *self.strides, 0) < 0
            or self.offset + last >= flat.size
        ):
            raise ValueError(f"a tensor of shape {self.shape} reaches beyond its storage")
        steps = [s * dtype.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps).copy()


class _Unknown:
    """Stands for whatever else a checkpoint holds; takes everything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Unknown":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def nothing(self, *args: Any) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = nothing


class _Unpickler(pickle.Unpickler):
    """Knows tensors and ordered dicts; every other global is an `_Unknown`, never imported."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.kinds: dict[str, str] = {}  # of the storages that it met, by their keys

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *rest: tensor
        if module in ("torch", "torch.storage") and name in STORAGES:
            return name
        return type(f"{module}.{name}", (_Unknown,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, *_ = pid
        if kind != "storage" or storage not in STORAGES:
            raise pickle.UnpicklingError(f"it refers to a {kind} of {storage}")
        self.kinds[str(key)] = storage
        return _Storage(storage, str(key))


def _rebuild(
    storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *rest: Any
) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _zipped(path: pathlib.Path) -> tuple[Any, Callable[[str], bytes]]:
    """The object of a file since PyTorch 1.6: a zip archive."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    record = next((name for name in files if name.endswith("data.pkl")), None)
    if record is None:
        raise ValueError("it is a zip archive without data.pkl")
    root = record.removesuffix("data.pkl")
    if files.get(f"{root}byteorder", b"little") != b"little":
        raise ValueError("its numbers are big-endian")
    stored = _Unpickler(io.BytesIO(files[record])).load()
    return stored, lambda key: files[f"{root}data/{key}"]


def _legacy(path: pathlib.Path) -> tuple[Any, Callable[[str], bytes]]:
    """The object of an older file: pickles, then the storages one after the other."""
    with path.open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise ValueError("it begins like no PyTorch file")
        for _ in ("protocol", "system"):
            _Unpickler(file).load()
        reader = _Unpickler(file)
        stored = reader.load()
        blocks: dict[str, bytes] = {}
        for key in _Unpickler(file).load():
            count = int.from_bytes(file.read(8), "little")
            size = np.dtype(STORAGES[reader.kinds[str(key)]]).itemsize
            blocks[str(key)] = file.read(count * size)
    return stored, blocks.__getitem__
