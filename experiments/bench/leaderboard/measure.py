"""The leaderboard: every solver on MPQ-Lib, how near the best known value after how long.

jmpq's solvers, HiGHS by itself and through cvxpy, SCIP, CBC, NSGA-II and a Pareto front by
dynamic programming (`rivals`), each from scratch at every time limit, one thread. The best
known value of a problem is the least that anybody knows: its source, or any run here.

Seconds are of the processor, so that what else the machine does counts for nobody. HiGHS by
cvxpy ends by the clock on the wall; where that comes first, it has had less than its limit.

Run:     python -m experiments.bench.leaderboard.measure --data-dir DIR     (35 min of one core)
Smoke:   python -m experiments.bench.leaderboard.measure --smoke    (seconds, no data)
Needs:   pyscipopt and pulp (group `bench-solvers`) and pymoo (extra `bench`); without one its
         solver is left out
Writes:  experiments/results/leaderboard.json after every row; run again, it goes on
Claims:  experiments/claims/solving/leaderboard.py
"""

import dataclasses
import json
import pathlib
import resource
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import tyro

from experiments.bench.leaderboard.rivals import rivals
from experiments.common.arguments import RESULTS, data_folder
from experiments.common.provenance import machine, made_by, versions
from experiments.mpq_lib.networks import networks
from experiments.mpq_lib.public import public
from jmpq.files import write_json
from jmpq.problem import Infeasible, Instance

BY_THE_WALL = ("HiGHS by cvxpy", "HiGHS, linearized")  # solvers that know no other clock
QPLIB = tuple(
    f"QPLIB_{number}"
    for number in (3587, 3709, 3750, 3751, 3815, 3865, 3931, 3980, 6487, 6647, 6757, 6799, 7127)
)
PACKAGES = ("numpy", "cvxpy", "highspy", "pyscipopt", "pulp", "pymoo")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    The selection: of every kind and origin in MPQ-Lib at least one problem that is closed at
    once and one that is not, and all quadratic ones of QPLIB. `long` are problems that not
    everybody closes in the shorter limits.

    Attributes:
        names: Problems of MPQ-Lib.
        limits_s: Time limits of every solver on all of them.
        long: Problems with one more, longer limit.
        long_s: Long time limit, seconds.
        long_solvers: Solvers that get it.
    """

    names: tuple[str, ...] = (
        *("resnet20_table_20x12x1_0", "resnet20_table_20x12x2_0", "resnet20_table_1000x12x4_0"),
        *("resnet20_25_full", "resnet44_50_full", "I06", "I13", *QPLIB),
    )
    limits_s: tuple[float, ...] = (1.0, 10.0)
    long: tuple[str, ...] = QPLIB
    long_s: float = 60.0
    long_solvers: tuple[str, ...] = ("jmpq",)


SMOKE = Config(
    names=("resnet20_table_20x12x1_0", "resnet20_table_20x12x2_0", "resnet20_25_full"),
    limits_s=(4.0,),  # of the processor; what proves needs half of it
    long=(),
)


def run(
    config: Config, data_dir: pathlib.Path | None, output: pathlib.Path | None = None
) -> dict[str, Any]:
    """All rows; where `output` exists with the same configuration, it goes on."""
    result: dict[str, Any] = {
        "experiment": "leaderboard",
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "machine": machine(),
        "versions": versions(*PACKAGES),
        "problems": [],
        "rows": [],
    }
    old = None
    if output is not None and output.is_file():
        old = json.loads(output.read_text())
        if any(old.get(key) != result[key] for key in ("config", "versions")):
            old = None
    result |= made_by("experiments.bench.leaderboard.measure", old=old)
    result["rows"] = [] if old is None else old["rows"]
    for instance in instances(config, data_dir):
        result["problems"].append(about(instance))
        for row in rows(config, instance, result["rows"]):
            result["rows"].append(row)
            if output is not None:
                write_json(output, result)
                print(json.dumps(row), flush=True)
    result["load_at_end"] = machine()["load"]
    return result


def instances(config: Config, data_dir: pathlib.Path | None) -> Iterator[Instance]:
    """The problems of the configuration; without a data folder, those of networks."""
    yield from networks(config.names)
    if data_dir is not None:
        yield from public(data_dir, names=config.names)


def about(instance: Instance) -> dict[str, Any]:
    """Sizes of a problem, and what its source knows of it."""
    problem, known = instance.problem, instance.known
    cross = problem.interactions
    return {
        "problem": instance.name,
        "groups": int(problem.groups.max()) + 1,
        "options": int(problem.allowed.sum()),
        "budgets": len(problem.budgets),
        "pairs": 0 if cross is None else int((cross != 0).sum()) // 2,
        "best_known": None if known is None else known.loss,
        "source": None if known is None else known.source,
        "optimal": known is not None and known.optimal,
    }


def rows(
    config: Config, instance: Instance, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One row a solver and limit; those in `done` are not repeated, nor those that ended."""
    seen = {(row["problem"], row["solver"], row["limit_s"]): row for row in done}
    for name, rival in rivals(instance.problem).items():
        long = instance.name in config.long and name in config.long_solvers
        ended = False
        for limit in (*config.limits_s, *([config.long_s] if long else [])):
            row = seen.get((instance.name, name, limit))
            if row is None and not ended:
                row = {"problem": instance.name, "solver": name, "limit_s": limit}
                row |= timed(rival, instance, limit)
                yield row
            # Who is done long before its limit is not asked again with a longer one.
            clock = "wall_s" if name in BY_THE_WALL else "cpu_s"
            ended = ended or (row is not None and row[clock] < 0.5 * limit)


def timed(rival: Any, instance: Instance, limit: float) -> dict[str, Any]:
    """One run: what came out, and its seconds by the clock and of the processor."""
    from threadpoolctl import threadpool_limits

    started, processor = time.perf_counter(), processor_s()
    clock = mock.patch.object(time, "perf_counter", time.process_time)  # the solvers' limits
    with threadpool_limits(1), clock:
        try:
            found = dataclasses.asdict(rival(instance.problem, limit))
        except Infeasible as error:
            found = {"loss": None, "bound": None, "remark": str(error)[:80]}
    return {
        **found,
        "wall_s": time.perf_counter() - started,
        "cpu_s": processor_s() - processor,
    }


def processor_s() -> float:
    """Processor time of this process and of those that it started and that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main(
    smoke: bool = False,
    data_dir: pathlib.Path | None = None,
    output: pathlib.Path = RESULTS / "leaderboard.json",
) -> None:
    """Run the leaderboard.

    Args:
        smoke: The same on a tiny configuration, without the public problems.
        data_dir: Folder with `solvers/`.
        output: JSON file of the result.
    """
    config = SMOKE if smoke else Config()
    write_json(output, run(config, data_folder(data_dir, smoke), output))
    print(f"Wrote {output}")


if __name__ == "__main__":
    tyro.cli(main)
