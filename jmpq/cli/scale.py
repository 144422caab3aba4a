"""Devices, processes and memory of a step."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where a step computes; the result is the same up to rounding."""

    devices: int | None = None
    """Devices (of each process) over which the examples of a batch are spread. A CPU appears
    as that many. One by default; with --distributed all there are."""
    distributed: bool = False
    """This is one of several processes that compute together, all started with the same
    command on the same run folder; process 0 alone writes and prints."""
    coordinator: str | None = None
    """host:port of process 0; else JAX_COORDINATOR_ADDRESS, or what Slurm, Open MPI,
    Kubernetes or Cloud TPU say."""
    processes: int | None = None
    """Number of processes; else JAX_NUM_PROCESSES, or what the cluster says."""
    process_index: int | None = None
    """Which of them this is, from 0; else JAX_PROCESS_ID, or what the cluster says."""
    memory: str | None = None
    """Most that a pass may take on one device, as 4GB (10^9), 4GiB (2^30) or bytes: batches
    are cut into parts that fit, by what XLA says of the compiled pass. No limit by default."""

    def mesh(self) -> "Mesh | None":
        """Join the other processes, and the devices to spread over; before any use of JAX.

        Raises:
            ValueError: If options are missing or do not fit the machine.
        """
        from jmpq.devices import device_mesh, join_processes, split_cpu

        told = {
            "--coordinator": self.coordinator,
            "--processes": self.processes,
            "--process-index": self.process_index,
        }
        needless = [name for name, value in told.items() if value is not None]
        if needless and not self.distributed:
            raise ValueError(f"{needless[0]} is for several processes: add --distributed.")
        if self.devices is not None:
            split_cpu(self.devices)
        if self.distributed:
            join_processes(self.coordinator, self.processes, self.process_index)
        elif self.devices is None:
            return None
        return device_mesh(self.devices)

    def memory_bytes(self) -> int | None:
        """The limit of memory.

        >>> Scale(memory="4GB").memory_bytes(), Scale(memory="0.5MiB").memory_bytes()
        (4000000000, 524288)

        Raises:
            ValueError: If it cannot be read.
        """
        from jmpq.problem.budgets import parse_budget

        if self.memory is None:
            return None
        try:
            limit = parse_budget(f"memory_bytes={self.memory}")
        except ValueError:
            limit = None
        if limit is None or limit.kind != "absolute" or limit.value < 1:
            raise ValueError(
                f"memory={self.memory!r}: expected bytes, as 4GB (10^9), 4GiB (2^30) or "
                "4000000000."
            )
        return int(limit.value)
