"""Quadratic allocations: how far from optimal is the local search, and which bound tells?

Cross-layer Gauss-Newton matrices of ResNet-20, -32 and -44 on CIFAR-10 (`iqp_matrices`), and
random ones, positive semi-definite (moves u in 3n dimensions, halved by every choice: half
their Gram matrix) and indefinite (a symmetric normal matrix), under a budget of size. Each is
searched, bounded by every bound on its own, then given to branch and bound on the
semi-definite bound and, up to `linearized_up_to` layers, to its rival, the linearized program
in HiGHS.

Seconds are of the processor, so that what else the machine does counts for nobody. HiGHS stops
by the clock on the wall, and gets a limit that is `wall_factor` times as long.

Run:     python -m experiments.bench.iqp            (up to 10 min of one core; no data needed)
Smoke:   python -m experiments.bench.iqp --smoke    (seconds)
Writes:  experiments/results/bench_iqp.json
Claims:  experiments/claims/solving/bench_solvers.py
"""

import dataclasses
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, TypeVar
from unittest import mock

import tyro

from experiments.common.arguments import RESULTS
from experiments.common.provenance import made_by
from jmpq.problem import Overhead, Problem, build_problem, problem_of, with_budgets
from jmpq.solvers import Solver

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        networks: Network and budget, "NAME@SIZE" (size as `jmpq.parse_budget` reads it).
        random: (kind, layers, choices, seeds) of random instances.
        budget: Size budget of the random instances.
        time_limit_s: Processor seconds of each exact solver, the local search included.
        bound_limit_s: Processor seconds of each bound on its own.
        wall_factor: Elapsed seconds that HiGHS gets for each second of these limits.
        linearized_up_to: Layers up to which the linearized program is run.
    """

    networks: tuple[str, ...] = (
        "resnet20@25%",
        "resnet20@50%",
        "resnet32@50%",
        "resnet44@50%",
    )
    random: tuple[tuple[str, int, int, tuple[int, ...]], ...] = (
        ("psd", 20, 3, (0, 1, 2)),
        ("indefinite", 20, 3, (0, 1, 2)),
        ("psd", 40, 4, (0,)),
        ("indefinite", 40, 4, (0,)),
        ("psd", 60, 5, (0,)),
        ("indefinite", 60, 5, (0,)),
    )
    budget: str = "40%"
    time_limit_s: float = 60.0
    bound_limit_s: float = 10.0
    wall_factor: float = 4.0
    linearized_up_to: int = 20


SMOKE = Config(
    networks=("resnet20@0%",),
    random=(("psd", 5, 3, (0,)), ("indefinite", 5, 3, (0, 1))),
    time_limit_s=10.0,
    bound_limit_s=1.0,
)


def network_problem(name: str, budget: str) -> Problem:
    """The allocation problem of a committed cross-layer matrix."""
    from jmpq.network.layers import layers_from_json
    from jmpq.quantizers.spec import KernelSpec, read_spec
    from jmpq.sensitivity.table import load_arrays, load_sensitivities

    path = RESULTS / f"iqp_{name}.npz"
    (found,) = load_sensitivities(path).values()
    arrays = load_arrays(path)
    layers = layers_from_json(json.loads(str(arrays["layers_json"])))
    spec = read_spec(KernelSpec, found.provenance["quantizers"]["weights"])
    return build_problem(
        layers,
        found,
        overhead=Overhead.of(layers, spec),
        budgets=[f"size_bytes={budget}"],
        unquantized_parameters=int(arrays["other_parameters"]),
        interactions=True,
    )


def random_problem(kind: str, layers: int, choices: int, seed: int, budget: str) -> Problem:
    """A random instance; sizes are log-normal, choices have 1, 2, ... bits."""
    import numpy as np

    rng = np.random.default_rng(seed)
    size = layers * choices
    if kind == "psd":
        scale = 2.0 ** -np.arange(choices) * rng.lognormal(0, 0.5, (layers, 1))
        moves = rng.normal(size=(size, 3 * layers)) * scale.reshape(-1, 1)
        matrix = moves @ moves.T
    else:
        matrix = rng.normal(size=(size, size))
        matrix = matrix + matrix.T
    cross = matrix.reshape(layers, choices, layers, choices).copy()
    cross[np.arange(layers), :, np.arange(layers)] = 0.0
    costs = np.round(1000 * rng.lognormal(0, 1, (layers, 1))) * np.arange(1, choices + 1)
    problem = problem_of(
        0.5 * np.diag(matrix).reshape(layers, choices),
        {"size_bytes": costs},
        {},
        interactions=0.5 * (cross + cross.transpose(2, 3, 0, 1)),
    )
    return with_budgets(problem, [f"size_bytes={budget}"])


def instances(config: Config) -> Iterator[tuple[dict[str, Any], Problem]]:
    """Every instance with what it is called."""
    for name in config.networks:
        network, _, budget = name.partition("@")
        about = {"name": name, "kind": "network", "seed": None}
        yield about, network_problem(network, budget)
    for kind, layers, choices, seeds in config.random:
        for seed in seeds:
            about = {"name": f"{kind} {layers}x{choices}", "kind": kind, "seed": seed}
            yield about, random_problem(kind, layers, choices, seed, config.budget)


def measure(problem: Problem, config: Config) -> dict[str, Any]:
    """Losses, bounds and seconds of one instance."""
    from experiments.quadratic.iqp_rivals import Linearized, convex_bound, linearized_bound
    from jmpq.solvers import BranchAndBound, LocalSearch
    from jmpq.solvers.quadratic.row_bound import row_bound
    from jmpq.solvers.quadratic.semidefinite import semidefinite_bound

    reduced, limit = problem.reduced(interactions=True), config.bound_limit_s
    local, took = _timed(lambda: LocalSearch(bound=False)(problem))
    bounds: dict[str, Callable[[], float]] = {
        "row": lambda: row_bound(reduced),
        "convex": lambda: convex_bound(reduced),
        "linearized": lambda: linearized_bound(
            reduced, time_limit_s=config.wall_factor * limit
        ),
        "semidefinite": lambda: semidefinite_bound(
            reduced, upper=local.loss, time_limit_s=limit
        ),
    }
    found = {}
    for name, bound in bounds.items():
        value, seconds = _timed(bound)
        found[name] = {"bound": value, **seconds}
    row: dict[str, Any] = {
        "layers": len(problem.layers),
        "choices": len(problem.choices),
        "local_search": {"loss": local.loss, **took},
        "bounds": found,
        "branch_and_bound": _solved(BranchAndBound(time_limit_s=config.time_limit_s), problem),
    }
    if len(problem.layers) <= config.linearized_up_to:
        patient = Linearized(time_limit_s=config.wall_factor * config.time_limit_s)
        row["linearized"] = _solved(patient, problem)
    solved = [row[k] for k in ("branch_and_bound", "linearized") if k in row]
    row["best_loss"] = min(local.loss, *(s["loss"] for s in solved))
    proven = [s["bound"] for s in solved] + [b["bound"] for b in found.values()]
    row["best_bound"] = max(proven)
    row["local_gap"] = max(local.loss - row["best_bound"], 0.0) / abs(local.loss)
    return row


def _solved(solve: Solver, problem: Problem) -> dict[str, Any]:
    found, seconds = _timed(lambda: solve(problem))
    return {"loss": found.loss, "bound": found.bound, "status": found.status, **seconds}


def _timed(call: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What a call returns, and its seconds: elapsed, and of the processor alone."""
    wall, cpu = time.perf_counter(), time.process_time()
    with mock.patch.object(time, "perf_counter", time.process_time):  # the solvers' limits
        result = call()
    return result, {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }


def run(config: Config) -> dict[str, Any]:
    """All instances."""
    from threadpoolctl import threadpool_limits

    rows, load = [], os.getloadavg()
    for about, problem in instances(config):
        with threadpool_limits(1):  # small matrices, and so that timings mean something
            rows.append({**about, **measure(problem, config)})
        exact = rows[-1]["branch_and_bound"]
        print(
            f"{about['name']} {about['seed']}: {rows[-1]['local_gap']:.2e}, {exact}", flush=True
        )
    packages = ("numpy", "scipy", "cvxpy", "highspy", "clarabel")
    return {
        "experiment": "bench_iqp",
        "config": dataclasses.asdict(config),
        **made_by("experiments.bench.iqp"),
        "versions": {name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "device": f"{platform.machine()} CPU, one thread of {os.cpu_count()} cores",
        "load_at_start": list(load),
        "load_at_end": list(os.getloadavg()),
        "instances": rows,
    }


def main(smoke: bool = False, output: pathlib.Path = RESULTS / "bench_iqp.json") -> None:
    """Run the benchmark.

    Args:
        smoke: The same on tiny instances.
        output: JSON file of the result.
    """
    from jmpq.files import write_json

    write_json(output, run(SMOKE if smoke else Config()))
    print(f"Wrote {output}")


if __name__ == "__main__":
    tyro.cli(main)
