"""StableHLO by `jax.export`: a program with packed codes inside, for every platform of JAX.

Running it needs JAX, but neither jmpq nor the network's code::

    content = bytearray(pathlib.Path("net.stablehlo").read_bytes())
    jax.export.deserialize(content).call(inputs)

JAX's bytes are followed by a trailer with metadata and a hash. With the hash `load_stablehlo`
detects a corrupt file, which JAX itself does not.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmpq.allocation import Allocation
from jmpq.export.packed import Packed
from jmpq.files import atomic_file, versions
from jmpq.network.tree_paths import leaf_paths

PLATFORMS = ("cpu", "cuda", "tpu")
KIND, VERSION = "jmpq/stablehlo", 1
MAGIC = b"jmpqhlo1"
END = struct.Struct(f"<Q{len(MAGIC)}s")  # bytes of the JSON before it, magic


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Program:
    """A quantized network as its StableHLO file holds it.

    Attributes:
        exported: Exported JAX program.
        allocation: Choice of every layer.
        metadata: Trailer of the file: inputs, platforms, versions.
    """

    exported: jax.export.Exported
    allocation: Allocation
    metadata: Mapping[str, Any]

    def logits(self, inputs: PyTree) -> Float[Array, "batch *output"]:
        """Logits of the quantized network.

        Raises:
            ValueError: If the inputs do not have the network's shapes and types.
        """
        arrays = jax.tree.map(jnp.asarray, inputs)
        if (got := _described(arrays)) != (want := self.metadata["inputs"]):
            raise ValueError(f"The program takes inputs {want}, got {got} (shape, type).")
        return self._compiled(arrays)

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self.exported.call)


def save_stablehlo(path: pathlib.Path | str, packed: Packed, batch: int | None = None) -> int:
    """Write a packed network as a program for CPU, CUDA and TPU, atomically.

    Args:
        path: File to write; its folder is created.
        packed: Network, as `load_packed` reads it; the program holds its packed codes.
        batch: Batch size; None for any batch size.

    Returns:
        Bytes of the packed network in the program.

    Raises:
        ValueError: If the network cannot be traced with a symbolic batch size.
        OSError: If the folder cannot be written.
    """
    size: Any = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype),
        packed.network.tap.inputs,
    )
    program = jax.export.export(jax.jit(packed.logits), platforms=PLATFORMS)
    try:
        content = bytes(program(shapes).serialize())
    except Exception as error:  # whatever the network's code raises on a size without a value
        if batch is not None:
            raise
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"The network cannot be traced with any number of examples ({first}): fix it with "
            "save_stablehlo(path, packed, batch=1)."
        ) from error
    record = {
        "kind": KIND,
        "version": VERSION,
        "allocation": packed.allocation.to_json(),
        "inputs": _described(packed.network.tap.inputs),
        "batch": batch,
        "platforms": PLATFORMS,
        "payload_bytes": packed.size_bytes,
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": versions("jax"),
    }
    text = json.dumps(record).encode()
    with atomic_file(pathlib.Path(path)) as file:
        file.write(content + text + END.pack(len(text), MAGIC))
    return packed.size_bytes


def load_stablehlo(path: pathlib.Path | str) -> Program:
    """Read a program: ``load_stablehlo(path).logits(inputs)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a program of jmpq, or is corrupt.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(
            f"{path} not found: give a file that `jmpq export --format stablehlo` wrote."
        )
    whole = pathlib.Path(path).read_bytes()
    length, magic = END.unpack(whole[-END.size :]) if len(whole) >= END.size else (0, b"")
    if magic != MAGIC or length + END.size > len(whole):
        raise ValueError(
            f"{path} is not a StableHLO program of jmpq, or cut off: its last bytes are not "
            "those that `jmpq export --format stablehlo` writes. Export again."
        )
    content, text = whole[: -END.size - length], whole[-END.size - length : -END.size]
    try:
        record = json.loads(text)
        spoilt = record["sha256"] != hashlib.sha256(content).hexdigest()
    except (ValueError, KeyError):
        spoilt, record = True, {}
    if spoilt or record.get("kind") != KIND:
        raise ValueError(
            f"{path} is spoilt: its program is not the one that was written. Export again."
        )
    return Program(
        exported=jax.export.deserialize(bytearray(content)),
        allocation=Allocation.from_json(record["allocation"]),
        metadata=record,
    )


def _described(inputs: PyTree) -> dict[str, Any]:
    """Shape of one example and type of every input, by path."""
    pairs = zip(leaf_paths(inputs), jax.tree.leaves(inputs), strict=True)
    return {path: [list(x.shape[1:]), str(np.dtype(x.dtype))] for path, x in pairs}
