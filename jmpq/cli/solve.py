"""`jmpq solve`: allocations for any budget, with bounds; needs neither data nor JAX."""

import dataclasses
import datetime
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jmpq.cli.inverse import least_cost_allocations, write_front
from jmpq.cli.run_folder import FRONT, LAYERS, PLAN, SENSITIVITY, read_layers, versions
from jmpq.network.layers import TieKind

if TYPE_CHECKING:
    from jmpq.formats import Choice
    from jmpq.problem import PlannedAllocation, Problem, Rule, Solution, SolveTime
    from jmpq.problem.plan import Role
    from jmpq.sensitivity.table import Sensitivity

SolverName = Literal["exact", "greedy", "local_search", "branch_and_bound"]
QUADRATIC = ("local_search", "branch_and_bound")  # solve under the cross-layer terms


@dataclasses.dataclass(frozen=True)
class Solve:
    """Write RUN/plan.json: an allocation of bits per metric and solver, its proven bound,
    and the baselines it is compared with.
    """  # noqa: D205

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run, with layers.json and sensitivity.npz."""
    budget: tuple[str, ...] = ()
    """NAME=VALUE with NAME size_bytes (bytes), average_bits (bits per searched weight) or
    bops (bit operations per example), and VALUE a number with unit (120kB, 0.27MB, 1.2G), a
    ratio to the float network (0.13x), a fraction between the cheapest and the dearest
    allocation (40%), or the cost of a uniform allocation (W4A4). By default size_bytes and,
    with quantized activations, bops of uniform 4-bit (or the nearest candidate)."""
    metrics: tuple[str, ...] = ()
    """Metrics to solve with, the first leading; all of the sensitivity file by default."""
    solvers: tuple[SolverName, ...] = ("exact", "greedy")
    """exact: the optimum, proven (see --solver); greedy: the paper's Algorithm 1. With the
    cross-layer terms, for metrics that have them: local_search, a tabu search;
    branch_and_bound, the same with a proof of how far from optimal it can be. Their
    allocations go by the metric NAME_full; sweep and solve times leave them out."""
    solver: str = "auto"
    """What finds the exact optimum. auto: the core solver for one budget, HiGHS through cvxpy
    for several; core, dynamic_programming, or any mixed-integer solver that cvxpy finds
    installed: HIGHS, SCIP (pip install 'jmpq[scip]'), GUROBI, ..."""
    rule: tuple[str, ...] = ()
    """'pin PATTERN=W8A8', 'allow PATTERN=W4,W8A8', 'exclude PATTERN', 'tie PATTERN PATTERN';
    patterns are regular expressions that match a whole layer name; the first match wins."""
    tie: tuple[TieKind, ...] = ()
    """Ready-made ties, found in the network's graph: downsample, the projection of a shortcut
    with the first convolution beside it (HAWQ-V3); depthwise, with the layer after it;
    residual, layers whose outputs are added; shared_input, layers that read the same value.
    Layers that are pinned or excluded stay apart."""
    first_last_bits: int = 8
    """Bits that the first and last layer are pinned to, after the rules above; 0 for none."""
    first_order: bool = False
    """Add the first-order term to every metric that has one."""
    random: int = 10
    """Random baselines within the budget, one per seed."""
    joint: int = 60
    """Random joint allocations, budgets ignored, to compare prediction and measurement."""
    singles: bool = True
    """List every choice of every single layer, to compare prediction and measurement."""
    sweep: int = 8
    """Further budgets between the cheapest and the dearest allocation."""
    scaling: tuple[int, ...] = (1, 4, 16, 64)
    """Solve times on the layer table repeated so many times, losses scattered."""
    time_limit_s: float = 60.0
    """Seconds per exact solve; then the best allocation so far, with its bound."""
    search_evaluations: int = 5000
    """Allocations that the search on composed logits may predict, at every budget; it starts
    at the exact optimum of metric composed. 0 for no search, which alone needs JAX."""
    loss_ceiling: float | None = None
    """Also find the cheapest allocation whose predicted loss increase is at most this (nats
    per example), for every metric and without the budgets."""
    minimize: str = "size_bytes"
    """The cost, named as in --budget, that --loss-ceiling minimises, and that --front draws
    the loss against."""
    front: bool = False
    """Write RUN/front.csv: every allocation on the convex hull of loss and cost, by the
    leading metric."""
    seed: int = 0
    """Of all random allocations."""

    def __call__(self) -> None:
        from jmpq.files import file_sha256
        from jmpq.network.layers import layers_from_json
        from jmpq.problem import (
            Overhead,
            Plan,
            additive_cost,
            build_problem,
            describe,
            parse_rule,
            planned_budgets,
            rules_to_json,
            with_budgets,
            write_plan,
        )
        from jmpq.quantizers.spec import KernelSpec, read_spec
        from jmpq.sensitivity.table import load_sensitivities

        additive_cost(self.minimize)
        record = read_layers(self.run)
        layers = layers_from_json(record["layers"])
        names = [layer.name for layer in layers]
        found = self._chosen(load_sensitivities(self.run / SENSITIVITY))
        lead = next(iter(found.values()))
        if lead.provenance.get("weights_sha256") != record["weights_sha256"]:
            raise ValueError(
                f"{self.run / SENSITIVITY} belongs to other weights than layers.json: run "
                f"`jmpq sensitivity {self.run}` again."
            )
        spec = read_spec(KernelSpec, lead.provenance["quantizers"]["weights"])
        rules: tuple[Rule, ...] = tuple(parse_rule(text) for text in self.rule)
        if self.first_last_bits:
            rules = (*rules, *self._first_and_last(names, lead.choices))
        rules = (*rules, *self._ready_made(record, rules, names, lead.choices))
        for line in describe(rules, names, lead.choices):
            print(f"rule: {line}")
        budgets = self.budget or default_budgets(lead.choices)
        problems = {
            name: build_problem(
                layers,
                table,
                overhead=Overhead.of(layers, spec),
                rules=rules,
                budgets=budgets,
                unquantized_parameters=record["other_parameters"],
                interactions=not set(QUADRATIC).isdisjoint(self.solvers)
                and table.has_interactions,
            )
            for name, table in found.items()
        }
        solutions = self._solutions(problems, found)
        problems = {name: each.separable() for name, each in problems.items()}
        problem = problems[lead.metric]
        for name, limit in problem.budgets.items():
            least, most = problem.range(name)
            asked = problem.asked.get(name, "")
            print(
                f"budget: {name} <= {limit:g} (asked {asked}; {least:g} to {most:g} possible)"
            )
        search = self._search(found)
        allocations = [
            *solutions,
            *self._searched(search, problems, found),
            *self._baselines(problem, found, lead.metric),
            *self._sweep(problem, found, lead.metric, search),
            *self._unbudgeted(problem, found),
            *self._least_cost(problems, found),
        ]
        plan = Plan(
            jmpq=versions()["jmpq"],
            versions=versions("cvxpy", "highspy"),
            seed=self.seed,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            weights_sha256=record["weights_sha256"],
            sensitivity_sha256=file_sha256(self.run / SENSITIVITY),
            quantizers=dict(lead.provenance["quantizers"]),
            layers=problem.layers,
            choices=problem.choices,
            rules=tuple(rules_to_json(rules)),
            budgets=planned_budgets(problem),
            unquantized=dict(problem.constants),
            allocations=tuple(allocations),
            excluded=tuple(name for name in names if name not in problem.layers),
            solve_times=tuple(self._solve_times(with_budgets(problem, {}))),
        )
        write_plan(self.run / PLAN, plan)
        _print_solutions(plan.allocations)
        print(f"Wrote {self.run / PLAN}")
        if self.front:
            points = write_front(self.run / FRONT, problem, self.minimize)
            print(f"Wrote {self.run / FRONT}: {points} points")

    def _chosen(self, found: Mapping[str, "Sensitivity"]) -> dict[str, "Sensitivity"]:
        names = self.metrics or tuple(found)
        if unknown := [name for name in names if name not in found]:
            raise ValueError(
                f"Metric {unknown[0]!r} is not in {self.run / SENSITIVITY}, which has "
                f"{', '.join(found)}. Compute it with `jmpq sensitivity`."
            )
        use = {name: found[name] for name in names}
        if self.first_order:
            use = {k: dataclasses.replace(v, use_first=True) for k, v in use.items()}
        return use

    def _first_and_last(
        self, names: Sequence[str], choices: Sequence["Choice"]
    ) -> tuple["Rule", ...]:
        from jmpq.formats import labels
        from jmpq.problem import Pin, first_and_last

        rules = first_and_last(names, choices, bits=self.first_last_bits)
        if not all(isinstance(rule, Pin) and rule.choice in choices for rule in rules):
            raise ValueError(
                f"The first and last layer are to have {self.first_last_bits} bits, which is "
                f"none of {labels(choices)}. Choose with --first-last-bits, 0 to search these "
                "layers too."
            )
        return rules

    def _ready_made(
        self,
        record: Mapping[str, Any],
        rules: "Sequence[Rule]",
        names: Sequence[str],
        choices: Sequence["Choice"],
    ) -> "Iterator[Rule]":
        """The ties asked for, of layers that no pin and no exclusion decides.

        Raises:
            ValueError: If the layer table does not know them, or there is none of a kind.
        """
        from jmpq.problem import Exclude, Pin, Tie, apply_rules

        ruling = apply_rules(rules, names, choices)
        apart = {
            name
            for rule, row in zip(rules, ruling.rows, strict=True)
            if isinstance(rule, Pin | Exclude)
            for name in row
        }
        for kind in dict.fromkeys(self.tie):
            if kind not in record.get("ties", {}):
                raise ValueError(
                    f"{self.run / LAYERS} has no ties: run `jmpq layers {self.run}` again."
                )
            free = [[n for n in group if n not in apart] for group in record["ties"][kind]]
            if not any(len(group) > 1 for group in free):
                known = [k for k, groups in record["ties"].items() if groups]
                raise ValueError(
                    f"There is nothing to tie by {kind!r} in this network, pinned and excluded "
                    f"layers apart; it has {', '.join(known) or 'no ready-made ties'}."
                )
            for group in free:
                if len(group) > 1:
                    yield Tie(tuple(map(re.escape, group)))

    @property
    def _separable_solvers(self) -> list[SolverName]:
        """Those of the sweep and of the solve times: without cross-layer terms."""
        return [solver for solver in self.solvers if solver not in QUADRATIC]

    def _solve(self, problem: "Problem", solver: SolverName) -> "Solution":
        from jmpq.solvers import Greedy, exact_solver

        if solver in QUADRATIC:
            return exact_solver(problem, solver, time_limit_s=self.time_limit_s)(problem)
        problem = problem.separable()
        if solver == "greedy":
            return Greedy()(problem)
        return exact_solver(problem, self.solver, time_limit_s=self.time_limit_s)(problem)

    def _solutions(
        self, problems: Mapping[str, "Problem"], found: Mapping[str, "Sensitivity"]
    ) -> Iterator["PlannedAllocation"]:
        """By every metric and solver; a quadratic solver by the metrics with cross terms.

        Raises:
            ValueError: If a quadratic solver is asked for and no metric has cross terms.
        """
        without = [name for name, each in problems.items() if each.interactions is None]
        if quadratic := [solver for solver in self.solvers if solver in QUADRATIC]:
            if len(without) == len(problems):
                raise ValueError(
                    f"Solver {quadratic[0]!r} needs a metric with cross-layer terms; "
                    f"{', '.join(without)} has none. Compute gauss_newton, hessian or another "
                    "that has them, or leave the solver out."
                )
            for name in without:
                print(f"{', '.join(quadratic)}: {name} has no cross-layer terms, left out")
        for metric, problem in problems.items():
            for solver in self.solvers:
                if solver in QUADRATIC and problem.interactions is None:
                    continue
                solution = self._solve(problem, solver)
                by = f"{metric}_full" if solver in QUADRATIC else metric
                name = f"{solver}/{by}"
                yield _planned(name, "solution", problem, solution, found, by, solver)

    def _search(
        self, found: Mapping[str, "Sensitivity"]
    ) -> "Callable[[Problem], Solution] | None":
        """The search on composed logits, where there are such."""
        if self.search_evaluations < 1 or "composed" not in found:
            return None
        from jmpq.cli.search import composed_search

        return composed_search(
            self.run,
            found["composed"],
            max_evaluations=self.search_evaluations,
            time_limit_s=self.time_limit_s,
            seed=self.seed,
        )

    def _searched(
        self,
        search: "Callable[[Problem], Solution] | None",
        problems: Mapping[str, "Problem"],
        found: Mapping[str, "Sensitivity"],
    ) -> Iterator["PlannedAllocation"]:
        if search is not None:
            solution = search(problem := problems["composed"])
            metric = solution.objective
            name = f"search/{metric}"
            yield _planned(name, "solution", problem, solution, found, metric, "search")

    def _baselines(
        self, problem: "Problem", found: Mapping[str, "Sensitivity"], metric: str
    ) -> Iterator["PlannedAllocation"]:
        from jmpq.problem import PlannedAllocation
        from jmpq.solvers import random_search, reversed_search

        for choice in problem.choices:
            columns = problem.uniform(choice)
            bits = problem.bits(columns)
            loss, costs = problem.evaluate(columns)
            yield PlannedAllocation(
                name=f"uniform/{choice.label}",
                role="baseline",
                bits=bits,
                costs=costs,
                metric=metric,
                solver="uniform",
                predicted_loss=loss,
                budgets=dict(problem.budgets),
                predictions=predictions(found, bits),
            )
        solution = reversed_search(problem)
        yield _planned("reversed", "baseline", problem, solution, found, metric, "reversed")
        for i in range(self.random):
            seed, name = self.seed + i, f"random/{i}"
            solution = random_search(problem, seed=seed)
            yield _planned(
                name, "baseline", problem, solution, found, metric, "random", seed=seed
            )

    def _sweep(
        self,
        problem: "Problem",
        found: Mapping[str, "Sensitivity"],
        metric: str,
        search: "Callable[[Problem], Solution] | None",
    ) -> Iterator["PlannedAllocation"]:
        from jmpq.problem import Infeasible, with_budgets

        for i in range(1, self.sweep + 1):
            percent = 100 * i / (self.sweep + 1)
            here = with_budgets(problem, [f"{name}={percent:.4g}%" for name in problem.budgets])
            for solver in self._separable_solvers:
                try:
                    solution = self._solve(here, solver)
                except Infeasible:  # here the budgets conflict: there is nothing to show
                    continue
                name = f"sweep/{solver}/{percent:.4g}%"
                yield _planned(name, "sweep", here, solution, found, metric, solver)
            if search is not None and metric == "composed":
                try:
                    solution = search(here)
                except Infeasible:
                    continue
                name, by = f"sweep/search/{percent:.4g}%", solution.objective
                yield _planned(name, "sweep", here, solution, found, by, "search")

    def _unbudgeted(
        self, problem: "Problem", found: Mapping[str, "Sensitivity"]
    ) -> Iterator["PlannedAllocation"]:
        from jmpq.formats import FLOAT_BITS, Choice
        from jmpq.problem import PlannedAllocation
        from jmpq.solvers import draw_allocations

        for i, columns in enumerate(draw_allocations(problem, self.joint, seed=self.seed)):
            bits = problem.bits(columns)
            yield PlannedAllocation(
                name=f"joint/{i}",
                role="random",
                bits=bits,
                costs=problem.evaluate(columns)[1],
                seed=self.seed,
                predictions=predictions(found, bits),
            )
        for layer in problem.layers if self.singles else ():
            for choice in problem.choices:
                bits = dict.fromkeys(problem.layers, Choice(FLOAT_BITS)) | {layer: choice}
                yield PlannedAllocation(
                    name=f"single/{layer}/{choice.label}",
                    role="single",
                    bits=bits,
                    costs={},
                    predictions=predictions(found, {layer: choice}),
                )

    def _least_cost(
        self, problems: Mapping[str, "Problem"], found: Mapping[str, "Sensitivity"]
    ) -> Iterator["PlannedAllocation"]:
        if self.loss_ceiling is None:
            return
        for planned in least_cost_allocations(
            problems, self.minimize, self.loss_ceiling, time_limit_s=self.time_limit_s
        ):
            yield dataclasses.replace(planned, predictions=predictions(found, planned.bits))

    def _solve_times(self, problem: "Problem") -> Iterator["SolveTime"]:
        """Solve times on the layer table repeated, losses scattered by a log-normal factor,
        at 40 % of the way from the cheapest to the dearest size.
        """  # noqa: D205
        import numpy as np

        from jmpq.problem import SolveTime, problem_of, with_budgets

        rng = np.random.default_rng(self.seed)
        for times in self.scaling:
            losses = np.tile(problem.losses, (times, 1))
            losses = losses * np.exp(0.5 * rng.standard_normal((len(losses), 1)))
            costs = {"size_bytes": np.tile(problem.costs["size_bytes"], (times, 1))}
            allowed = np.tile(problem.allowed, (times, 1))
            large = problem_of(losses, costs, {}, choices=problem.choices, allowed=allowed)
            large = with_budgets(large, ["size_bytes=40%"])
            for solver in self._separable_solvers:
                solution = self._solve(large, solver)
                yield SolveTime(
                    layers=len(losses),
                    choices=len(problem.choices),
                    solver=solver,
                    wall_s=solution.wall_s,
                    gap=solution.gap,
                )


def default_budgets(choices: Sequence["Choice"]) -> tuple[str, ...]:
    """Size and, with quantized activations, bit operations of the candidate next to W4A4."""
    nearest = min(choices, key=lambda c: (abs(c.w_bits - 4), abs(c.a_bits - 4)))
    costs = ("size_bytes",) if all(c.a_bits == 32 for c in choices) else ("size_bytes", "bops")
    return tuple(f"{cost}={nearest.label}" for cost in costs)


def predictions(
    found: Mapping[str, "Sensitivity"], bits: Mapping[str, "Choice"]
) -> dict[str, float]:
    """Loss increase of an allocation by every metric; with cross terms under ``NAME_full``."""
    out = {}
    for name, table in found.items():
        at = [table.layers.index(layer) for layer in bits]
        columns = [table.choices.index(choice) for choice in bits.values()]
        out[name] = float(table.losses[at, columns].sum())
        if table.has_interactions:
            made = table.members[at, columns].sum(axis=0)
            first = float(made @ table.first) if table.use_first else 0.0
            out[f"{name}_full"] = first + 0.5 * float(made @ table.second @ made)
    return out


def _planned(
    name: str,
    role: "Role",
    problem: "Problem",
    solution: "Solution",
    found: Mapping[str, "Sensitivity"],
    metric: str,
    solver: str,
    *,
    seed: int | None = None,
) -> "PlannedAllocation":
    """A solution as the plan keeps it, with what every metric predicts of it."""
    from jmpq.problem import planned_allocation

    return planned_allocation(
        name,
        role,
        problem,
        solution,
        metric=metric,
        predictions=predictions(found, problem.bits(solution.choice)),
        solver=solver,
        seed=seed,
    )


def _print_solutions(allocations: Sequence["PlannedAllocation"]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from jmpq.problem import COSTS

    shown = [
        a
        for a in allocations
        if a.role in ("solution", "baseline") and not a.name.startswith("random/")
    ]
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("allocation", no_wrap=True)
    for title in ("status", "predicted", "gap"):
        table.add_column(title, no_wrap=True, justify="right")
    divisors = {}
    for name in shown[0].costs if shown else ():
        divisors[name], unit = COSTS[name].scale(max(a.costs[name] for a in shown))
        title = COSTS[name].title + (f"\n({unit})" if unit else "")
        table.add_column(title, justify="right")
    for a in shown:
        found = ["-" if x is None else f"{x:.3g}" for x in (a.predicted_loss, a.gap)]
        costs = [f"{a.costs[name] / divisor:.3g}" for name, divisor in divisors.items()]
        table.add_row(a.name, a.status or "-", *found, *costs)
    console = Console()
    console.width = max(console.width, 90)
    console.print(table)
