"""Data parallelism by JAX's own sharding: examples spread over devices, all else on each.

The same code runs on one device, on several of one process and on those of several processes
(`join_processes`): a compiled function whose batch is `spread` over a mesh and whose
parameters are `replicate`d on it is partitioned by XLA, its sums over examples reduced by
collectives. Batches that do not divide by the devices take the grid of `mesh_for`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

EXAMPLES, COPIES = "examples", "copies"  # axes of a mesh


def device_mesh(count: int | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh along whose only axis examples are spread.

    Args:
        count: Use the first so many devices; all by default.
        devices: Devices to choose from; by default those of all processes.

    Raises:
        ValueError: If there are not that many, or a process would be left without one.
    """
    found = list(jax.devices() if devices is None else devices)
    count = len(found) if count is None else count
    if not 1 <= count <= len(found):
        raise ValueError(
            f"{count} devices asked for; there are {len(found)} "
            f"({found[0].device_kind}). Ask for 1 to {len(found)}."
        )
    if left := {d.process_index for d in found} - {d.process_index for d in found[:count]}:
        raise ValueError(
            f"{count} devices leave process {min(left)} without one. Use all "
            f"{len(found)}, or start fewer processes."
        )
    return Mesh(np.array(found[:count]), (EXAMPLES,))


def mesh_for(mesh: Mesh, examples: int) -> Mesh:
    """The same devices for batches of so many examples: a grid of shards and their copies.

    The number of shards, ``.shape[EXAMPLES]``, is the greatest that divides both the batch
    and the devices; the devices left over for a shard all do its work.
    """
    shards = math.gcd(mesh.size, examples)
    return Mesh(mesh.devices.reshape(shards, -1), (EXAMPLES, COPIES))


def spread(mesh: Mesh, batch: PyTree) -> PyTree:
    """A batch on the devices of a mesh, the leading axis of every leaf cut into shards.

    Every process gives the whole batch, and keeps the rows of its own devices.
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

    Args:
        coordinator: ``host:port`` of process 0. None: as the cluster's environment says
            (Slurm, Open MPI, Kubernetes, Cloud TPU).
        count: Number of processes; from the environment by default.
        index: Of this process, from 0; from the environment by default.

    Raises:
        ValueError: If only some of the three are given, or JAX finds no cluster.
    """
    given = (coordinator is not None, count is not None, index is not None)
    if any(given) and not all(given):
        raise ValueError(
            f"coordinator={coordinator}, {count} processes, index {index}: give all three, or "
            "none of them where Slurm, Open MPI, Kubernetes or Cloud TPU say it."
        )
    # For CPU devices; accelerators bring collectives of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, count, index)


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


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda rows: whole[rows])
