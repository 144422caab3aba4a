"""The work that all sides of the curvature benchmark share, and how it is timed."""

import dataclasses
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from jmpq.files import write_json

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What every side computes on: the same images, weights and perturbations.

    Attributes:
        config: Fields of the benchmark's configuration.
        images: Normalised network input, NHWC.
        labels: One per image.
        kernels: Names of the quantized kernels in the published weights, in order.
        deltas: Q_b(w) − w of every kernel, axes as in JAX (HWIO, (in, out)).
        weights: File of the published format.
    """

    config: dict[str, Any]
    images: Float[np.ndarray, "images height width channels"]
    labels: Int[np.ndarray, " images"]
    kernels: list[str]
    deltas: list[Float[np.ndarray, "bits ..."]]
    weights: pathlib.Path

    def save(self, folder: pathlib.Path) -> None:
        """Write everything but the weights."""
        write_json(folder / "work.json", {"config": self.config, "kernels": self.kernels})
        deltas: dict[str, Any] = {f"delta{i}": delta for i, delta in enumerate(self.deltas)}
        np.savez(folder / "work.npz", images=self.images, labels=self.labels, **deltas)

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Work":
        """Read what `save` wrote."""
        told = json.loads((folder / "work.json").read_text())
        with np.load(folder / "work.npz") as arrays:
            return cls(
                **told,
                images=arrays["images"],
                labels=arrays["labels"],
                deltas=[arrays[f"delta{i}"] for i in range(len(told["kernels"]))],
                weights=folder / "weights.safetensors",
            )

    def batches(self, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(images, labels), `size` at a time."""
        starts = range(0, len(self.labels), size)
        return [(self.images[i : i + size], self.labels[i : i + size]) for i in starts]


def timed(function: Callable[[], Value], repeats: int) -> tuple[Value, dict[str, Any]]:
    """The value, the first call's time (compilation included) and `repeats` further ones.

    Args:
        function: Blocks until its result is there.
        repeats: Calls after the first; with none, the first is all there is.
    """
    value, first = _call(function)
    calls = [first]
    for _ in range(repeats):
        value, found = _call(function)
        calls.append(found)
    wall, cpu = zip(*(calls[1:] or calls), strict=True)
    return value, {"first_s": first[0], "seconds": list(wall), "cpu_seconds": list(cpu)}


def timed_all(
    functions: Iterable[Callable[[], Value]], *, alike: bool
) -> tuple[list[Value], dict[str, Any]]:
    """The values of many calls that are one piece of work, the time of all and of each.

    Args:
        functions: The calls.
        alike: They cost the same: the whole is then the median times their number, which a
            pause of the machine does not spoil; else their sum.
    """
    values, calls = zip(*(_call(function) for function in functions), strict=True)
    times = zip(*calls, strict=True)
    wall, cpu = (len(x) * float(np.median(x)) if alike else sum(x) for x in times)
    each = [found[0] for found in calls]
    return list(values), {"seconds": [wall], "cpu_seconds": [cpu], "seconds_each": each}


def _call(function: Callable[[], Value]) -> tuple[Value, tuple[float, float]]:
    start, start_cpu = time.perf_counter(), time.process_time()
    value = function()
    return value, (time.perf_counter() - start, time.process_time() - start_cpu)


def peak_rss_bytes() -> int:
    """Greatest resident memory of this process so far.

    On Linux from /proc: what `getrusage` says begins with the memory of the parent.
    """
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def pin(threads: int) -> None:
    """Let this process use so many cores; call before JAX or PyTorch is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
