"""PyTorch's two file formats, written without PyTorch."""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np

STORAGES = {"<f4": "FloatStorage", "<f8": "DoubleStorage", "<i8": "LongStorage"}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Tensor:
    """What the pickle of a tensor says: its storage, and the view of it."""

    def __init__(self, array):
        base = array if array.base is None else array.base
        self.flat = np.ascontiguousarray(base).ravel()
        self.array = array
        self.offset = 0

    def arguments(self, storage):
        strides = tuple(s // self.array.itemsize for s in self.array.strides)
        return storage, self.offset, self.array.shape, strides, False, OrderedDict()


def dumped(stored, storages, *, old=False):
    """The pickle of an object with tensors; their numbers go to `storages`."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*args): ...

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    kinds = {}
    for name in STORAGES.values():
        kinds[name] = type(name, (), {"__module__": "torch"})
        setattr(torch, name, kinds[name])

    class Storage:
        def __init__(self, flat):
            self.flat = flat

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            key = str(len(storages))
            storages[key] = value.flat
            kind = kinds[STORAGES[value.flat.dtype.str]]
            return ("storage", kind, key, "cpu", value.flat.size, *([None] * old))

        def reducer_override(self, value):
            if isinstance(value, Tensor):
                return _rebuild_tensor_v2, value.arguments(Storage(value.flat))
            return NotImplemented

    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    file = io.BytesIO()
    try:
        Pickler(file, protocol=2).dump(stored)
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    return file.getvalue()


def save(path, stored):
    """As torch.save since 1.6."""
    storages = {}
    data = dumped(stored, storages)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, flat in storages.items():
            archive.writestr(f"archive/data/{key}", flat.tobytes())
    return path


def save_legacy(path, stored):
    """As torch.save before 1.6."""
    storages = {}
    data = dumped(stored, storages, old=True)
    parts = [pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, {"little_endian": True})]
    parts += [data, pickle.dumps(list(storages), 2)]
    for flat in storages.values():
        parts += [flat.size.to_bytes(8, "little"), flat.tobytes()]
    path.write_bytes(b"".join(parts))
    return path
