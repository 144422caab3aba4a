"""The devices and the memory that a step computes with."""

import re

from jax.sharding import Mesh

from jmpq.devices import device_mesh, join_processes, split_cpu
from jmpq.run.options import Compute

_BYTES = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kKMGT]?)(i?)(B?)")
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def join_devices(compute: Compute) -> Mesh | None:
    """Join the other processes, and the devices to spread over; before any use of JAX.

    Raises:
        ValueError: If options are missing or do not fit the machine.
    """
    told = {
        "--coordinator": compute.coordinator,
        "--processes": compute.processes,
        "--process-index": compute.process_index,
    }
    needless = [name for name, value in told.items() if value is not None]
    if needless and not compute.distributed:
        raise ValueError(f"{needless[0]} is for several processes: add --distributed.")
    if compute.devices is not None:
        split_cpu(compute.devices)
    if compute.distributed:
        join_processes(compute.coordinator, compute.processes, compute.process_index)
    elif compute.devices is None:
        return None
    return device_mesh(compute.devices)


def parse_bytes(text: str) -> int:
    """A number of bytes: ``4GB`` (10^9), ``4GiB`` (2^30), or a plain number.

    >>> parse_bytes("much")
    Traceback (most recent call last):
    ValueError: memory='much': expected bytes, as 4GB (10^9), 4GiB (2^30) or 4000000000.
    >>> parse_bytes("4GB"), parse_bytes("0.5MiB")
    (4000000000, 524288)

    Raises:
        ValueError: If it cannot be read, or is less than a byte.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is not None:
        number, prefix, binary, _ = match.groups()
        count = float(number) * (1024 if binary else 1000) ** _POWERS[prefix]
        if count >= 1:
            return int(count)
    raise ValueError(
        f"memory={text!r}: expected bytes, as 4GB (10^9), 4GiB (2^30) or 4000000000."
    )
