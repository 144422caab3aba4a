"""Solvers of problems with several budgets: how near in how much time.

`SeveralBudgets` with and without the integer program, at a few time limits, both forms of the
greedy search; and how long it takes to prove given gaps, beside cvxpy with HiGHS on the
program as the textbook states it (HIGHS_plain of `bench.solvers`).

Seconds are of the processor, so that what else the machine does counts for nobody. HiGHS ends
by the clock on the wall; where that comes first, it has had less than its limit.

Run:     python -m experiments.bench.several_budgets.measure --data-dir DIR   (10 min, one core)
Smoke:   python -m experiments.bench.several_budgets.measure --smoke     (seconds, no data)
Writes:  experiments/results/bench_several_budgets.json after every row; run again, it goes on
Claims:  experiments/claims/solving/bench_solvers.py
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import tyro

from experiments.bench.several_budgets.instances import scaled
from experiments.bench.solvers import plain_highs
from experiments.common.arguments import RESULTS
from experiments.common.provenance import machine, made_by, versions
from experiments.mpq_lib.public import public
from jmpq.files import write_json
from jmpq.problem import Problem
from jmpq.solvers import Greedy, SeveralBudgets, lp_bound


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        scaled: Layers, choices, budgets and seed of each problem of `instances.scaled`.
        large: The same, for the search with the longest limit alone.
        time_limits_s: Limits of the search with the integer program.
        search_s: Limit of the search alone.
        gaps: Gaps to prove, as `Solution.gap` counts them.
        gap_s: Limit of the time for that.
        gap_groups: Least number of groups for which gaps are proven.
    """

    scaled: tuple[tuple[int, int, int, int], ...] = (
        (100, 12, 4, 0),
        (100, 12, 4, 1),
        (200, 12, 3, 0),
        (1000, 12, 4, 0),
        (1000, 12, 4, 1),
    )
    large: tuple[tuple[int, int, int, int], ...] = ((100_000, 8, 3, 0),)
    time_limits_s: tuple[float, ...] = (5.0, 30.0)
    search_s: float = 1.0
    gaps: tuple[float, ...] = (1e-3, 3e-4)
    gap_s: float = 30.0
    gap_groups: int = 100


SMOKE = Config(
    scaled=((20, 8, 2, 0),), large=(), time_limits_s=(5.0,), gap_s=5.0, gap_groups=20
)


def problems(
    config: Config, data_dir: pathlib.Path | None
) -> Iterator[tuple[str, Callable[[], Problem], float | None, bool]]:
    """Name, problem, best known loss, and whether gaps are proven."""
    for given in public(data_dir, ("mmkp", "hiremath_hill")) if data_dir else ():
        tried = len(given.problem.layers) >= config.gap_groups
        assert given.known is not None
        yield given.name, lambda given=given: given.problem, given.known.loss, tried
    for key in (*config.scaled, *config.large):
        yield _name(key), lambda key=key: scaled(*key), None, key in config.scaled


def _name(key: tuple[int, int, int, int]) -> str:
    return "scaled {} x {} x {}, seed {}".format(*key)


def timed(solve: Callable[[Problem], Any], problem: Problem) -> dict[str, Any]:
    """One solve: what came out, and its seconds by the clock and of the processor."""
    started, processor = time.perf_counter(), time.process_time()
    with mock.patch.object(time, "perf_counter", time.process_time):  # the solvers' limits
        solution = solve(problem)
    seconds = {
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - processor,
    }
    if isinstance(solution, dict):
        return {**solution, **seconds}
    keys = ("loss", "bound", "gap", "status")
    return {**{key: getattr(solution, key) for key in keys}, **seconds}


def rows(
    config: Config, data_dir: pathlib.Path | None, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One row a solve; those in `done` are not repeated."""
    seen = {(row["problem"], row["solver"]) for row in done}
    solvers: dict[str, Callable[[Problem], Any]] = {
        "greedy": Greedy(),
        "greedy/dual_prices": Greedy(weights="dual_prices"),
        "search": SeveralBudgets(time_limit_s=config.search_s, integer_program=False),
        **{
            f"several_budgets, {limit:g} s": SeveralBudgets(time_limit_s=limit)
            for limit in config.time_limits_s
        },
    }
    for name, make, best, proves in problems(config, data_dir):
        problem = None
        large = name in map(_name, config.large)
        chosen = list(solvers)[-1:] if large else solvers
        for solver in (*chosen, *(to_gap(config) if proves else ())):
            if (name, solver) in seen:
                continue
            problem = make() if problem is None else problem
            solve = solvers[solver] if solver in solvers else to_gap(config)[solver]
            yield {
                "problem": name,
                "shape": [*problem.losses.shape, len(problem.budgets)],
                "solver": solver,
                "best_known": best,
                **timed(solve, problem),
            }


def to_gap(config: Config) -> dict[str, Callable[[Problem], Any]]:
    """Both solvers, to each gap."""

    def ours(problem: Problem, gap: float) -> Any:
        # Its gap is relative to the loss above the least of every layer.
        bound, least = lp_bound(problem.reduced())[0], problem.losses.min(axis=1).sum()
        relative = gap * max(abs(bound), abs(least)) / (bound - least)
        return SeveralBudgets(time_limit_s=config.gap_s, relative_gap=relative)(problem)

    return {
        name.format(100 * gap): functools.partial(solve, gap=gap)
        for gap in config.gaps
        for name, solve in (
            ("several_budgets to {:g} %", ours),
            ("HIGHS_plain to {:g} %", lambda p, gap: plain_highs(p, config.gap_s, gap)),
        )
    }


def run(
    config: Config, data_dir: pathlib.Path | None, output: pathlib.Path | None = None
) -> dict[str, Any]:
    """The whole bench; where `output` exists with the same configuration, it goes on."""
    result: dict[str, Any] = {
        "experiment": "bench_several_budgets",
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        **made_by("experiments.bench.several_budgets.measure"),
        "machine": machine(),
        "versions": versions("numpy", "cvxpy", "highspy"),
        "rows": [],
    }
    if output is not None and output.is_file():
        old = json.loads(output.read_text())
        if all(old.get(key) == result[key] for key in ("config", "source_sha256", "versions")):
            result["rows"] = old["rows"]
    small = scaled(5, 8, 2, 0)  # imports are not timed
    for warm in (SeveralBudgets(), Greedy(), lambda problem: plain_highs(problem, 5.0)):
        warm(small)
    for row in rows(config, data_dir, list(result["rows"])):
        result["rows"].append(row)
        if output is not None:
            write_json(output, result)
            print(json.dumps(row))
    result["load_at_end"] = machine()["load"]
    return result


def main(
    smoke: bool = False,
    data_dir: pathlib.Path | None = None,
    output: pathlib.Path = RESULTS / "bench_several_budgets.json",
) -> None:
    """Run the bench.

    Args:
        smoke: The same on a tiny configuration, without the public problems.
        data_dir: Folder with `solvers/`; without it the public problems are left out.
        output: JSON file of the result.
    """
    config = SMOKE if smoke else Config()
    write_json(output, run(config, None if smoke else data_dir, output))
    print(f"Wrote {output}")


if __name__ == "__main__":
    tyro.cli(main)
