"""Solvers of the one-budget problem: time against layers, gap against budget (F11, T4, T8).

The core solver, dynamic programming and the greedy search against integer programming: cvxpy
with HiGHS and SCIP after jmpq's reduction (`jmpq.solvers.Exact`), cvxpy with HiGHS on the
program as the textbook states it (HIGHS_plain), PuLP with CBC (what HAWQ-V3 uses), on
realistic tables (heavy-tailed losses that fall as 4^-bits, layer sizes of ResNet-20 repeated)
and on Pisinger's classes. All solvers get the same problem in the same process, one after the
other; imports, and the first call of each, are timed apart. The gap curves use the committed
Gauss-Newton losses of ResNet-20 (`iqp_matrices`) and the published tables of HAWQ-V3; where
choices differ in weight bits alone, continuous bits (water-filling) are beside them.

Run:     python -m experiments.bench.solvers --data-dir DIR    (about 10 min on one core)
Smoke:   python -m experiments.bench.solvers --smoke           (seconds, synthetic tables)
Needs:   the dependency group `bench-solvers` for SCIP and PuLP; without it they are left out
Writes:  experiments/results/bench_solvers.json after every row; run again, it goes on there
Claims:  experiments/claims/solving/bench_solvers.py
"""

import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tyro

from experiments.bench.iqp import network_problem
from experiments.common.arguments import RESULTS, data_folder
from experiments.common.provenance import machine, made_by, versions
from experiments.common.water_filling import fit_bit_model, water_filling
from jmpq.allocation import Allocation
from jmpq.files import write_json
from jmpq.formats import Choice
from jmpq.problem import Problem, problem_of, solution_from_columns, with_budgets
from jmpq.solvers import (
    CoreSearch,
    DynamicProgramming,
    Exact,
    Greedy,
    lp_bound,
    random_search,
    reversed_search,
)
from jmpq.solvers.knapsack.mixed_integer import dual_bound, options

PACKAGES = ("numpy", "cvxpy", "highspy", "pyscipopt", "pulp")
# Parameters of the 20 weight layers of ResNet-20 for CIFAR-10, first and last included.
RESNET20 = (432, *[2304] * 6, 4608, *[9216] * 5, 18432, *[36864] * 5, 640)
VARIANTS: dict[str, Callable[[Problem], Any]] = {
    "greedy": Greedy(),
    "greedy, stops": Greedy(fill=False),
    "downgrade": Greedy(start="downgrade"),
    "downgrade, stops": Greedy(start="downgrade", fill=False),
    "reversed": reversed_search,
    "random": lambda problem: random_search(problem, seed=0),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Instances of one kind and the solvers that are tried on them.

    Attributes:
        family: ``realistic`` or one of Pisinger's classes.
        layers: Number of layers.
        choices: Candidates a layer.
        solvers: Names of `solve_with`.
        seeds: Instances, one a seed.
        time_limit_s: For each solve, where the solver knows limits.
    """

    family: str
    layers: int
    choices: int
    solvers: tuple[str, ...]
    seeds: tuple[int, ...]
    time_limit_s: float


OURS, RIVALS = ("core", "greedy"), ("HIGHS_plain", "HIGHS", "SCIP", "CBC")
CLASSES = (
    "uncorrelated",
    "weakly_correlated",
    "strongly_correlated",
    "subset_sum",
    "zig_zag",
)
SMALL = tuple(
    Cell("realistic", n, 8, (*OURS, "dynamic_programming", *RIVALS), (0, 1, 2), limit)
    for n, limit in ((20, 10.0), (52, 10.0), (161, 10.0), (1000, 10.0))
)
LARGE = (
    Cell("realistic", 10_000, 8, (*OURS, *RIVALS), (0,), 20.0),
    Cell("realistic", 10_000, 8, OURS, (1, 2), 60.0),
    Cell("realistic", 1_000, 5, OURS, (0, 1, 2), 60.0),
    Cell("realistic", 1_000, 12, OURS, (0, 1, 2), 60.0),
    Cell("realistic", 100_000, 8, OURS, (0, 1, 2), 60.0),
    Cell("realistic", 1_000_000, 8, OURS, (0, 1), 60.0),
)
HARD = tuple(
    cell
    for family in CLASSES
    for cell in (
        Cell(
            family,
            100,
            8,
            (*OURS, "dynamic_programming", "HIGHS_plain", "HIGHS", "CBC"),
            (0,),
            4.0,
        ),
        Cell(family, 1_000, 8, OURS, (0, 1, 2), 20.0),
        Cell(family, 1_000, 8, ("dynamic_programming",), (0,), 20.0),
        Cell(family, 100_000, 8, OURS, (0,), 20.0),
    )
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        cells: Timed instances.
        budget_percent: Budget of the timed instances, between cheapest and dearest.
        curve_points: Budgets of every gap curve, from 2 to 98 %.
        curve_layers: Layers of the synthetic gap curves.
        curve_networks: Networks of `iqp_matrices` with a gap curve.
        startup: Time imports and the first calls in a process of its own.
    """

    cells: tuple[Cell, ...] = (*SMALL, *LARGE, *HARD)
    budget_percent: float = 40.0
    curve_points: int = 49
    curve_layers: tuple[int, ...] = (20, 161)
    curve_networks: tuple[str, ...] = ("resnet20",)
    startup: bool = True


SMOKE = Config(
    cells=(
        Cell("realistic", 6, 8, (*OURS, "dynamic_programming", *RIVALS), (0,), 5.0),
        Cell("subset_sum", 6, 3, (*OURS, "dynamic_programming"), (0,), 5.0),
    ),
    curve_points=3,
    curve_layers=(6,),
    startup=False,
)


def instance(family: str, layers: int, choices: int, seed: int, percent: float) -> Problem:
    """A problem with one budget on integer costs.

    Realistic: bits 2, 3, ...; sizes those of ResNet-20 over and over, scattered by 20 % so
    that no two layers are alike; a layer's losses fall as 4^-bits from a log-normal factor
    (sigma 2). Pisinger's classes (1995, section 6): R = 1000, profits as negative losses.
    """
    rng, shape = np.random.default_rng(seed), (layers, choices)
    if family == "realistic":
        bits = np.arange(2, choices + 2)
        sizes = np.resize(RESNET20, layers) * rng.uniform(0.8, 1.2, layers)
        costs = np.round(sizes)[:, None] * bits
        losses = rng.lognormal(0, 2, (layers, 1)) * 4.0**-bits * rng.uniform(0.5, 1.5, shape)
        return _problem(losses, costs, percent)
    costs = rng.integers(1, 1001, shape)
    match family:
        case "uncorrelated":
            profits = rng.integers(1, 1001, shape)
        case "weakly_correlated":
            profits = np.maximum(costs + rng.integers(-10, 11, shape), 1)
        case "strongly_correlated":
            costs = np.cumsum(rng.integers(1, 1000 // choices + 1, shape), axis=1)
            profits = costs + 10 * np.arange(1, choices + 1)
        case "subset_sum":
            profits = costs
        case "zig_zag":
            costs = np.sort(costs, axis=1)
            profits = np.sort(rng.integers(1, 1001, shape), axis=1)
        case _:
            raise ValueError(f"Unknown family {family!r}: realistic or one of {CLASSES}.")
    return _problem(-profits.astype(float), costs.astype(float), percent)


def _problem(losses: Any, costs: Any, percent: float) -> Problem:
    return with_budgets(problem_of(losses, {"cost": costs}, {}), [f"cost={percent}%"])


def solve_with(name: str, problem: Problem, time_limit_s: float) -> dict[str, Any]:
    """One timed solve: seconds of the whole call, what came out, and the proven gap."""
    started = time.perf_counter()
    if name == "CBC":
        found: dict[str, Any] = pulp_cbc(problem, time_limit_s)
    elif name == "HIGHS_plain":
        found = plain_highs(problem, time_limit_s)
    else:
        solvers: dict[str, Callable[[Problem], Any]] = {
            "core": CoreSearch(time_limit_s=time_limit_s),
            "greedy": Greedy(),
            "dynamic_programming": DynamicProgramming(memory_limit_bytes=4e8),
            "HIGHS": Exact(time_limit_s=time_limit_s),
            "SCIP": Exact(time_limit_s=time_limit_s, solver="SCIP"),
        }
        solution = solvers[name](problem)
        found = {
            "loss": solution.loss,
            "bound": solution.bound,
            "gap": solution.gap,
            "status": solution.status,
        }
    return {"wall_s": time.perf_counter() - started, **found}


def plain_highs(
    problem: Problem, time_limit_s: float, relative_gap: float = 0.0
) -> dict[str, Any]:
    """The integer program as the textbook states it, by cvxpy and HiGHS.

    One binary variable a choice, the tables as they are: no dominated choice left out, nothing
    scaled, no bound from elsewhere. Tolerances and time limit are those of `Exact`; the gap is
    relative to the objective.
    """
    import cvxpy

    take = cvxpy.Variable(problem.losses.shape, boolean=True)
    constraints: list[Any] = [
        cvxpy.sum(cvxpy.multiply(problem.costs[name], take))
        <= limit - problem.constants.get(name, 0.0)
        for name, limit in problem.budgets.items()
    ]
    constraints.append(cvxpy.sum(take, axis=1) == 1)
    if not problem.allowed.all():
        constraints.append(take <= problem.allowed.astype(float))
    program = cvxpy.Problem(
        cvxpy.Minimize(cvxpy.sum(cvxpy.multiply(problem.losses, take))), constraints
    )
    with warnings.catch_warnings():  # the status says it
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        program.solve(solver="HIGHS", **options("HIGHS", time_limit_s, relative_gap))
    nothing = {"loss": None, "bound": None, "gap": None, "back_end_status": program.status}
    if take.value is None:
        return {**nothing, "status": "no answer"}
    columns = take.value.argmax(axis=1)
    loss, costs = problem.evaluate(columns)
    if problem.violated(costs):
        return {**nothing, "status": "infeasible answer"}
    stats: Any = program.solver_stats.extra_stats if program.solver_stats else None
    bound = dual_bound("HIGHS", stats)
    solution = solution_from_columns(
        problem,
        columns,
        bound=-math.inf if bound is None else min(bound, loss),
        solver="HIGHS_plain",
        wall_s=0.0,  # the caller's
    )
    return {
        "loss": loss,
        "bound": solution.bound,
        "gap": solution.gap,
        "status": solution.status,
        "back_end_status": program.status,
    }


def pulp_cbc(problem: Problem, time_limit_s: float) -> dict[str, Any]:
    """The integer program as HAWQ-V3 states it, one binary variable a choice, by PuLP's CBC.

    PuLP hands on no bound. Its status is kept apart as text: it calls a point that a time
    limit left ``Optimal``, so no proof follows from it.
    """
    import pulp

    rows, columns = (range(length) for length in problem.losses.shape)
    program = pulp.LpProblem("allocation", pulp.LpMinimize)
    take = [[program.add_variable(f"x_{i}_{j}", cat="Binary") for j in columns] for i in rows]
    for i, j in np.argwhere(~problem.allowed).tolist():
        program += take[i][j] == 0
    program += pulp.lpSum(problem.losses[i, j] * take[i][j] for i in rows for j in columns)
    for name, limit in problem.budgets.items():
        cost = problem.costs[name]
        used = pulp.lpSum(cost[i, j] * take[i][j] for i in rows for j in columns)
        program += used <= limit - problem.constants.get(name, 0.0)
    for row in take:
        program += pulp.lpSum(row) == 1
    cbc = pulp.PULP_CBC_CMD.pulp_cbc_path  # the binary in PuLP's wheel
    program.solve(
        pulp.COIN_CMD(
            path=cbc,
            msg=False,
            timeLimit=time_limit_s,
            timeMode="cpu",
            gapRel=0.0,
            threads=1,
        )
    )
    values = np.array([[x.value() or 0.0 for x in row] for row in take])
    loss, costs = problem.evaluate(values.argmax(axis=1))
    return {
        "loss": None if problem.violated(costs) else loss,
        "bound": None,
        "gap": None,
        "status": "infeasible answer" if problem.violated(costs) else "no bound",
        "back_end_status": pulp.LpStatus[program.status],
    }


def available() -> dict[str, str | None]:
    """The solvers of this bench, and why one is missing."""
    missing: dict[str, str | None] = dict.fromkeys(
        (*OURS, "dynamic_programming", "HIGHS_plain", "HIGHS")
    )
    packages = {"SCIP": "pyscipopt", "CBC": "pulp"}
    found = versions(*packages.values())
    for name, package in packages.items():
        missing[name] = None if found[package] else f"{package} is not installed"
    return missing


def timed_rows(config: Config, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row a solve; those in `done` are not repeated."""
    keys = ("family", "layers", "choices", "seed", "solver")
    seen = {tuple(row[key] for key in keys) for row in done}
    missing = available()
    for cell in config.cells:
        for seed in cell.seeds:
            problem = None
            for solver in cell.solvers:
                key = (cell.family, cell.layers, cell.choices, seed, solver)
                if key in seen:
                    continue
                row = {**dict(zip(keys, key, strict=True)), "time_limit_s": cell.time_limit_s}
                if missing[solver]:
                    yield {**row, "left_out": missing[solver]}
                    continue
                if problem is None:
                    problem = instance(*key[:4], config.budget_percent)
                try:
                    yield {**row, **solve_with(solver, problem, cell.time_limit_s)}
                except ValueError as error:  # too much memory for dynamic programming
                    yield {**row, "left_out": str(error)}


def gap_curves(config: Config, data: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Every greedy variant, optimum, LP bound and continuous bits, budget by budget."""
    problems = {
        f"synthetic, {n} layers x 8": instance("realistic", n, 8, 0, 40.0)
        for n in config.curve_layers
    }
    for name in config.curve_networks:
        title = f"{name.replace('resnet', 'ResNet-')}, Gauss-Newton"
        problems[title] = network_problem(name, "50%").separable()
    for name in dict.fromkeys(i["constraint"] for i in data["instances"]) if data else ():
        problems[f"HAWQ-V3 ResNet-18, {name}"] = _hawq_v3(data or {}, name, 1e30)
    points = []
    percents = np.linspace(2.0, 98.0, config.curve_points)
    for (name, problem), percent in itertools.product(problems.items(), percents):
        (cost,) = problem.budgets
        here = with_budgets(problem, [f"{cost}={percent:.6g}%"])
        exact = CoreSearch()(here)
        points.append(
            {
                "problem": name,
                "percent": float(percent),
                "optimum": exact.loss,
                "status": exact.status,
                "lp_bound": lp_bound(here.reduced())[0],
                "water_filling": continuous_loss(here),
                "losses": {key: solve(here).loss for key, solve in VARIANTS.items()},
            }
        )
    return points


def continuous_loss(problem: Problem) -> float | None:
    """Loss of real-valued bits by the fitted model; None where activations have bits too."""
    if len({choice.a_bits for choice in problem.choices}) > 1:
        return None
    ((name, limit),) = problem.budgets.items()
    return water_filling(fit_bit_model(problem, name), limit).loss


def published_instances(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The nine published HAWQ-V3 instances of ResNet-18, every solver on each."""
    rows = []
    for published in data["instances"]:
        problem = _hawq_v3(data, published["constraint"], published["budget"])
        bits = [Choice(b, b) for b in published["published"]]
        allocation = Allocation(dict(zip(problem.layers, bits, strict=True)))
        exact = CoreSearch()(problem)
        rows.append(
            {
                "constraint": published["constraint"],
                "fraction": published["fraction"],
                "budget": published["budget"],
                "published": problem.evaluate(allocation)[0],
                "optimum": exact.loss,
                "status": exact.status,
                "same_allocation": allocation == exact.allocation,
                "lp_bound": lp_bound(problem.reduced())[0],
                "losses": {key: solve(problem).loss for key, solve in VARIANTS.items()},
                "wall_s": exact.wall_s,
            }
        )
    return rows


def _hawq_v3(data: dict[str, Any], constraint: str, budget: float) -> Problem:
    return problem_of(
        np.array(data["losses"]),
        {constraint: np.array(data["costs"][constraint])},
        {constraint: budget},
        layers=data["layers"],
        choices=[Choice(bits, bits) for bits in data["bits"]],
        ties=data["ties"],
    )


STARTUP = """
import json, time
clock = time.perf_counter
seconds, begin = {}, clock()


def lap(name):
    global begin
    seconds[name] = clock() - begin
    begin = clock()


import numpy
lap("import_numpy_s")
import jmpq.solvers, jmpq.problem
lap("import_solvers_s")
from experiments.bench.solvers import instance
small, large = (instance("realistic", n, 8, 0, 40.0) for n in (20, 1000))
begin = clock()
jmpq.solvers.CoreSearch()(small)
lap("first_small_call_s")
jmpq.solvers.CoreSearch()(small)
lap("second_small_call_s")
jmpq.solvers.CoreSearch()(large)
lap("first_large_call_s")
jmpq.solvers.CoreSearch()(large)
lap("second_large_call_s")
import cvxpy
lap("import_cvxpy_s")
print(json.dumps(seconds))
"""


def startup() -> dict[str, float]:
    """Seconds of imports and of the first calls in a process of its own."""
    command, root = [sys.executable, "-c", STARTUP], pathlib.Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def run(
    config: Config, data_dir: pathlib.Path | None, output: pathlib.Path | None = None
) -> dict[str, Any]:
    """The whole bench; where `output` exists with the same configuration, it goes on."""
    started = time.perf_counter()
    data = None
    if data_dir is not None:
        data = json.loads((data_dir / "hawq_v3_resnet18.json").read_text())
    result: dict[str, Any] = {
        "experiment": "bench_solvers",
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        **made_by("experiments.bench.solvers"),
        "machine": machine(),
        "versions": versions(*PACKAGES),
        "rows": [],
    }
    if output is not None and output.is_file():
        old = json.loads(output.read_text())
        same = ("config", "source_sha256", "versions")
        if all(old.get(key) == result[key] for key in same):
            result["rows"] = old["rows"]
    for solver, missing in available().items():
        if not missing:
            solve_with(solver, instance("realistic", 5, 3, 0, 40.0), 5.0)
    for row in timed_rows(config, result["rows"]):
        result["rows"].append(row)
        if output is not None:
            write_json(output, result)
            print(json.dumps(row))
    result["curves"] = gap_curves(config, data)
    result["published"] = published_instances(data) if data else []
    result["startup"] = startup() if config.startup else {}
    result["load_at_end"] = machine()["load"]
    result["wall_s"] = time.perf_counter() - started
    return result


def main(
    smoke: bool = False,
    data_dir: pathlib.Path | None = None,
    output: pathlib.Path = RESULTS / "bench_solvers.json",
) -> None:
    """Run the bench.

    Args:
        smoke: The same on a tiny configuration, without the published tables.
        data_dir: Folder with `hawq_v3_resnet18.json`.
        output: JSON file of the result.
    """
    if smoke:
        with contextlib.suppress(FileNotFoundError):
            output.unlink()
    config = SMOKE if smoke else Config()
    write_json(output, run(config, data_folder(data_dir, smoke), output))
    print(f"Wrote {output}")


if __name__ == "__main__":
    tyro.cli(main)
