"""Data parallelism by JAX's own sharding: examples spread over devices, all else on each.

The same code runs on one device, on several of one process and on those of several processes
(`join_processes`): a compiled function whose batch is `spread` over a mesh and whose
parameters are `replicate`d on it is partitioned by XLA, its sums over examples reduced by
collectives. Batches that do not divide by the devices take the grid of `mesh_for`.
"""

import contextlib
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jmpq.journal import Journal

EXAMPLES, COPIES = "examples", "copies"  # axes of a mesh


def device_mesh(count: int | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh along whose only axis examples are spread.

    Args:
        count: Use the first so many devices of every process; all by default.
        devices: Devices to choose from; by default those of all processes.

    Raises:
        ValueError: If a process does not have that many.
    """
    found: dict[int, list[Any]] = {}
    for device in jax.devices() if devices is None else devices:
        found.setdefault(device.process_index, []).append(device)
    least = min(len(own) for own in found.values())
    if count is not None and not 1 <= count <= least:
        where = "" if len(found) == 1 else " in every process"
        raise ValueError(
            f"{count} devices asked for; there are {least}{where} "
            f"({found[min(found)][0].device_kind}). Ask for 1 to {least}."
        )
    chosen = [device for own in found.values() for device in own[:count]]
    return Mesh(np.array(chosen), (EXAMPLES,))


def split_cpu(count: int) -> None:
    """Let the CPU appear as `count` devices; before any other use of JAX, or without effect.

    For tests of what runs on several devices, and for hosts whose operations leave processors
    idle: each operation then stays on one thread of its device, as several devices that
    share all threads would wait for each other. Accelerators are not touched.

    Raises:
        ValueError: If it is not at least one.
    """
    if count < 1:
        raise ValueError(f"{count} devices asked for: give at least 1.")
    with contextlib.suppress(RuntimeError):  # JAX has its devices already
        jax.config.update("jax_num_cpu_devices", count)
        if count > 1:
            flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_multi_thread_eigen=false"]
            os.environ["XLA_FLAGS"] = " ".join(flags).strip()


def mesh_for(mesh: Mesh, examples: int) -> Mesh:
    """The same devices for batches of so many examples: a grid of shards and their copies.

    The number of shards, ``.shape[EXAMPLES]``, is the greatest that divides both the batch
    and the devices; the devices left over for a shard all do its work.
    """
    shards = math.gcd(mesh.size, examples)
    return Mesh(mesh.devices.reshape(shards, -1), (EXAMPLES, COPIES))


def spread(mesh: Mesh, batch: PyTree) -> PyTree:
    """A batch on the devices of a mesh, the leading axis of every leaf cut into shards.

    Every process gives the whole batch, and keeps the rows of its own devices. Shapes
    (`jax.ShapeDtypeStruct`) are told the places that arrays would get.
    """
    return jax.tree.map(
        lambda x: _place(x, NamedSharding(mesh, PartitionSpec(EXAMPLES))), batch
    )


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """A tree of arrays, whole on every device of a mesh."""
    return jax.tree.map(lambda x: _place(x, NamedSharding(mesh, PartitionSpec())), tree)


def to_host(array: Any) -> np.ndarray:
    """The whole of an array on the host of every process, wherever its parts are."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if not array.is_fully_replicated:
            array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def join_processes(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Make this process one of several that compute together; before any other use of JAX.

    What is not given comes from the environment: ``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, or all three from the cluster's own (Slurm,
    Open MPI, Kubernetes, Cloud TPU).

    Args:
        coordinator: ``host:port`` of process 0.
        count: Number of processes.
        index: Index of this process, from 0.

    Raises:
        ValueError: If only some of the three are known, they do not fit, or there is no
            cluster.
        RuntimeError: If JAX is in use already.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _from_environment("JAX_NUM_PROCESSES") if count is None else count
    index = _from_environment("JAX_PROCESS_ID") if index is None else index
    known = (coordinator is not None, count is not None, index is not None)
    if any(known) and not all(known):
        raise ValueError(
            f"coordinator={coordinator}, {count} processes, index {index}: give all three, or "
            "none of them where Slurm, Open MPI, Kubernetes or Cloud TPU say it."
        )
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"coordinator={coordinator!r}: expected host:port of process 0.")
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"Process {index} of {count}: expected an index from 0 to count - 1.")
    # For CPU devices; accelerators bring collectives of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, count, index)
    except ValueError as error:
        raise ValueError(
            f"No cluster was found ({str(error).rstrip('.')}). Give coordinator, number of "
            "processes and index, or start under Slurm, Open MPI, Kubernetes or Cloud TPU."
        ) from error


def _from_environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"{name}={text!r} in the environment: expected a whole number.")
    return None if text is None else int(text)


def is_main_process() -> bool:
    """Whether this is process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def same_everywhere(data: bytes | None) -> bytes | None:
    """What process 0 gives, for all processes."""
    if jax.process_count() == 1:
        return data
    size = -1 if data is None else len(data)
    size = int(multihost_utils.broadcast_one_to_all(np.array(size)))
    if size < 0:
        return None
    buffer = np.zeros(size, np.uint8)
    if data is not None and is_main_process():
        buffer = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()


def shared_journal(path: pathlib.Path | None, of: Any) -> Journal:
    """The journal of work that all processes do: process 0 reads and writes it for all."""
    return Journal(path if is_main_process() else None, of, share=same_everywhere)


def _place(x: Any, sharding: NamedSharding) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda rows: whole[rows])
