"""Seconds of whole networks, measured in turns.

Micro-benchmarks of single layers do not add up to the network, and profilers slow it down; so
whole networks are timed. On a shared machine the load changes by the minute: every round times
every network once, in another order, each in a session that was opened for it. Other programs
only ever add time, even processor time (they take caches), so the least round counts.
"""

import dataclasses
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jmpq.journal import Journal
from jmpq.latency.runtimes import Call

Clock = Literal["cpu", "wall"]
Open = Callable[[int], Call]  # opens a network by its number
_WARM = 2  # calls that are not timed


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Timings:
    """Seconds of a call, the median of one round's calls, by network and round.

    Attributes:
        cpu_s: Processor time of the process.
        wall_s: Time on the clock.
    """

    cpu_s: Float[np.ndarray, "networks rounds"]
    wall_s: Float[np.ndarray, "networks rounds"]

    def rounds(self, clock: Clock) -> Float[np.ndarray, "networks rounds"]:
        """Seconds by network and round, by one of the two clocks."""
        return self.cpu_s if clock == "cpu" else self.wall_s

    def seconds(self, clock: Clock) -> Float[np.ndarray, " networks"]:
        """Seconds of every network: those of the round that was disturbed least."""
        return self.rounds(clock).min(axis=1)

    def repeatability(self, clock: Clock) -> float:
        """Mean relative difference of a measurement and another one of the same network.

        The two are `seconds` of every other round, half as many; NaN for one round.
        """
        rounds = self.rounds(clock)
        if rounds.shape[1] < 2:
            return float("nan")
        one, other = rounds[:, ::2].min(axis=1), rounds[:, 1::2].min(axis=1)
        return float(np.mean(2 * np.abs(one - other) / (one + other)))


def measure_networks(
    start: Open,
    count: int,
    *,
    rounds: int,
    seconds_per_round: float = 0.03,
    seed: int = 0,
    journal: Journal | None = None,
    keys: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Timings:
    """Time networks in turns.

    Args:
        start: Opens a network in its runtime; returns a call of it.
        count: Number of networks.
        rounds: Times that every network is opened and timed.
        seconds_per_round: Least time for the calls of one network in one round.
        seed: Seed of the order in every round.
        journal: Keeps what is measured.
        keys: Name of every network in the journal.
        progress: Told how many of how many are done.
    """
    found = np.zeros((2, count, rounds))
    rng = np.random.default_rng(seed)
    journal = Journal(None, None) if journal is None else journal
    for turn in range(rounds):
        for done, network in enumerate(rng.permutation(count).tolist()):
            key = f"{turn} {keys[network] if keys else network}"
            if (entry := journal.get(key)) is None:
                taken = time_call(start(network), seconds=seconds_per_round)
                journal.keep(key, list(taken))
            else:
                taken = entry.value
            found[:, network, turn] = taken
            progress(turn * count + done + 1, rounds * count)
    return Timings(cpu_s=found[0], wall_s=found[1])


def time_call(call: Call, *, seconds: float, least: int = 5) -> tuple[float, float]:
    """Processor time and wall time of a call, each the median of many.

    Args:
        call: Function that is timed, after two calls that are not.
        seconds: Least time of all calls.
        least: Least number of calls.
    """
    for _ in range(_WARM):
        call()
    cpu, wall = [], []
    end = time.perf_counter() + seconds
    while len(cpu) < least or time.perf_counter() < end:
        wall_began, cpu_began = time.perf_counter(), time.process_time()
        call()
        cpu.append(time.process_time() - cpu_began)
        wall.append(time.perf_counter() - wall_began)
    return statistics.median(cpu), statistics.median(wall)


def host() -> dict[str, Any]:
    """The machine that measures, and how busy it is."""
    name = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        models = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
        name = models[0] if models else name
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "processor": name,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count() or 0,
        "load": round(load, 2),
    }
