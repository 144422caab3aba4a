"""Solving: allocations for any budget, with bounds, from sensitivities alone."""

import dataclasses
import datetime
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jmpq.files import versions
from jmpq.problem import Plan, PlannedAllocation, Problem, Solution, additive_cost, write_plan
from jmpq.problem.budgets import parse_budgets
from jmpq.problem.plan import planned_allocation, planned_budgets, read_plan
from jmpq.problem.rules import describe, rules_to_json
from jmpq.run.folder import FRONT, LATENCY_TABLE, PLAN, SENSITIVITY, RunFolder
from jmpq.run.lock import writes
from jmpq.run.options import Comparison, Inverse, Solve
from jmpq.run.planning.comparisons import baselines, other_budgets, without_budgets
from jmpq.run.planning.inverse import least_cost_allocations, write_front
from jmpq.run.planning.predictions import with_predictions
from jmpq.run.planning.problems import (
    all_rules,
    chosen_tables,
    default_budgets,
    run_costs,
    run_problem,
)
from jmpq.run.planning.searches import composed_search
from jmpq.run.progress import QUIET, Reporter
from jmpq.sensitivity.table import Sensitivity
from jmpq.solvers import make_solver
from jmpq.solvers.automatic import CROSS_LAYER

# Solvers that take cross-layer terms; the others solve without them.
ADDED = ("refine", "race", "floor", "given")  # who makes the allocations that steps add
Search = Callable[[Problem], Solution]


@writes
def solve(
    folder: str | os.PathLike[str],
    options: Solve = Solve(),
    *,
    comparison: Comparison = Comparison(),
    inverse: Inverse = Inverse(),
    reporter: Reporter = QUIET,
) -> Plan:
    """Find an allocation for every metric and solver; write ``plan.json``.

    Every allocation of the plan carries its predictions by all metrics, and by the logit
    changes where ``superposed.npz`` has them.

    Args:
        folder: The run folder, with ``layers.json`` and ``sensitivity.npz``.
        options: Budgets, rules, metrics and solvers.
        comparison: Allocations that the solutions are compared with.
        inverse: The least cost for a loss.
        reporter: Listens.

    Raises:
        ValueError: If options do not fit the network, or artifacts do not belong together.
        Infeasible: If no allocation meets the budgets; it says which conflict.
        FileNotFoundError: If a step is missing; it says which.
    """
    run = RunFolder(folder, plan=options.name)
    layers = run.layers
    tables = chosen_tables(run, options)
    _ = run.superposed, run.latency  # refused early
    metric, lead = next(iter(tables.items()))
    additive_cost(inverse.minimize)  # refused early
    asked_costs = (*(b.name for b in parse_budgets(options.budget)), inverse.minimize)
    if "latency_s" in asked_costs and run.latency_table is None:
        raise FileNotFoundError(
            f"A budget on latency_s needs {run.file(LATENCY_TABLE)}: run `jmpq latency "
            f"{run.path}` first, or write it with any other tool (layer,choice,seconds)."
        )
    if "kv_bytes" in asked_costs and all(x.kind != "cache" for x in layers.layers):
        raise ValueError(
            "A budget on kv_bytes needs rows of keys and values in the layer table: run `jmpq "
            f"layers {run.path}` with --kv-cache, then the steps after it."
        )
    rules = all_rules(run, options, lead.choices)
    for line in describe(rules, layers.names, lead.choices):
        reporter.say(f"rule: {line}")
    budgets = options.budget or default_budgets(lead.choices)
    crossed = not set(CROSS_LAYER).isdisjoint(options.solvers)
    whole = {
        name: run_problem(
            run,
            table,
            rules=rules,
            budgets=budgets,
            interactions=crossed and table.has_interactions,
        )
        for name, table in tables.items()
    }
    problems = {name: each.separable() for name, each in whole.items()}
    problem = problems[metric]
    _report_budgets(problem, reporter)
    asked = _as_json(options, comparison, inverse)
    earlier = None if options.replace else _earlier(run, asked)

    def counted(name: str | None, predicted: float | None) -> Problem | None:
        """The problem that an added allocation is counted by; None if it has none by now."""
        if name in problems or predicted is None:
            return problems.get(name or "", problem)
        if (table := run.sensitivities.tables.get(name or "")) is None:
            return None
        if options.first_order:
            table = dataclasses.replace(table, use_first=True)
        return run_problem(run, table, rules=rules, budgets=budgets)

    added = () if earlier is None else _added(run, earlier, problem, lead)
    kept = [_counted_again(each, counted(each.metric, each.predicted_loss)) for each in added]
    search = None
    if options.search_evaluations > 0 and "composed" in tables:
        search = composed_search(run, options, reporter)
    drafts: list[PlannedAllocation] = []
    with reporter.bar("Solving", "solutions") as progress:
        total = _number_of_solutions(whole, options, comparison, inverse, search)
        for draft in itertools.chain(
            _solutions(whole, options, reporter),
            _searched(search, problems),
            _compared(run, whole[metric], metric, options, comparison, search),
            least_cost_allocations(
                problems, inverse, time_limit_s=options.time_limit_s, reporter=reporter
            ),
        ):
            drafts.append(draft)
            done = sum(each.role in ("solution", "sweep") for each in drafts)
            progress(done, max(done, total))
        progress(total, total)  # budgets that conflict in the sweep have no solution
    for each, again in zip(added, kept, strict=True):
        if again is None:
            reporter.say(f"{each.name} is over its budgets by now, or of a metric left out.")
        else:
            drafts.append(again)
    plan = Plan(
        jmpq=versions()["jmpq"],
        versions=versions("cvxpy", "highspy"),
        seed=options.seed,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        weights_sha256=layers.weights_sha256,
        sensitivity_sha256=run.sha256(SENSITIVITY),
        quantizers=dict(lead.provenance["quantizers"]),
        layers=problem.layers,
        choices=problem.choices,
        rules=tuple(rules_to_json(rules)),
        budgets=planned_budgets(problem),
        unquantized=dict(problem.constants),
        allocations=with_predictions(run, drafts, tables),
        excluded=tuple(name for name in layers.names if name not in problem.layers),
        options=asked,
        latency_sha256=run.latency_sha256,
    )
    write_plan(run.file(PLAN), plan)
    reporter.say(f"Wrote {run.file(PLAN)}")
    if inverse.front:
        points = write_front(run.file(FRONT), problem, inverse.minimize)
        reporter.say(f"Wrote {run.file(FRONT)}: {points} points")
    return plan


def _as_json(options: Solve, comparison: Comparison, inverse: Inverse) -> dict[str, Any]:
    """All options that decide what a plan holds."""
    record = {k: v for each in (options, comparison, inverse) for k, v in vars(each).items()}
    decide = {k: v for k, v in record.items() if k not in ("name", "replace", "front")}
    return json.loads(json.dumps(decide))


def _earlier(run: RunFolder, asked: Mapping[str, Any]) -> Plan | None:
    """The plan that is solved again; None where there is none.

    Raises:
        ValueError: If it cannot be used, or was solved with other options, which are named.
    """
    path = run.file(PLAN)
    if not path.is_file():
        return None
    plan = read_plan(path)
    if differing := [k for k in asked if plan.options.get(k) != asked[k]]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in differing)
        raise ValueError(
            f"{path} was solved with other options ({names}). Keep it and add a plan beside "
            "it with --name NAME, or write over it with --replace."
        )
    return plan


def _added(
    run: RunFolder, earlier: Plan, problem: Problem, lead: Sensitivity
) -> tuple[PlannedAllocation, ...]:
    """What refine, race, floor and evaluate have added to the plan that is solved again.

    Raises:
        ValueError: If it does not fit any more: other quantizers, layers or choices.
    """
    added = tuple(a for a in earlier.allocations if a.asked in ADDED)
    fits = (
        earlier.weights_sha256 == run.layers.weights_sha256
        and earlier.quantizers == lead.provenance["quantizers"]
        and set(earlier.layers) == set(problem.layers)
        and set(earlier.choices) <= set(problem.choices)
    )
    if added and not fits:
        raise ValueError(
            f"{run.file(PLAN)} holds {', '.join(a.name for a in added)}, made with other "
            "sensitivities. Keep it and add a plan beside it with --name NAME, or write over "
            "it with --replace."
        )
    return added


def _counted_again(
    planned: PlannedAllocation, problem: Problem | None
) -> PlannedAllocation | None:
    """An allocation of an earlier plan by the present costs and losses; None if it is over its
    budgets, or nothing is known of its metric.
    """  # noqa: D205
    if problem is None:
        return None
    loss, costs = problem.evaluate(planned.allocation)
    if any(costs.get(name, 0.0) > limit for name, limit in planned.budgets.items()):
        return None
    return dataclasses.replace(
        planned,
        costs=costs,
        predicted_loss=None if planned.predicted_loss is None else loss,
        objective_value=costs.get(planned.objective or "", planned.objective_value),
    )


def _number_of_solutions(
    problems: Mapping[str, Problem],
    options: Solve,
    comparison: Comparison,
    inverse: Inverse,
    search: Search | None,
) -> int:
    """Solutions that the step finds at most: what takes its time."""
    solvers = set(options.solvers)
    crossed = sum(each.interactions is not None for each in problems.values())
    quadratic = len(solvers.intersection(CROSS_LAYER))
    count = (len(solvers) - quadratic) * len(problems) + quadratic * crossed
    count += search is not None
    if comparison.comparison == "full":
        lead = next(iter(problems))
        searched = search is not None and lead == "composed"
        missing = quadratic if problems[lead].interactions is None else 0
        count += comparison.sweep * (len(solvers) - missing + searched)
    return count + (0 if inverse.loss_ceiling is None else len(problems))


def _solutions(
    problems: Mapping[str, Problem], options: Solve, reporter: Reporter
) -> Iterator[PlannedAllocation]:
    """By every metric and solver; a quadratic solver by the metrics with cross-layer terms.

    Raises:
        ValueError: If a quadratic solver is asked for and no metric has cross-layer terms.
    """
    without = [name for name, each in problems.items() if each.interactions is None]
    if quadratic := [solver for solver in options.solvers if solver in CROSS_LAYER]:
        if len(without) == len(problems):
            raise ValueError(
                f"Solver {quadratic[0]!r} needs a metric with cross-layer terms; "
                f"{', '.join(without)} has none. Compute gauss_newton, hessian or another "
                "that has them, or leave the solver out."
            )
        for name in without:
            reporter.say(f"{', '.join(quadratic)}: {name} has no cross-layer terms, left out")
    for metric, problem in problems.items():
        for solver, by in _asked(problem, metric, options):
            solution = _solved(problem, solver, options)
            yield planned_allocation(
                f"{solver}/{by}", "solution", problem, solution, metric=by, asked=solver
            )


def _asked(problem: Problem, metric: str, options: Solve) -> Iterator[tuple[str, str]]:
    """The solvers that take a problem, each with the name of what it minimises."""
    for solver in dict.fromkeys(options.solvers):
        if solver not in CROSS_LAYER:
            yield solver, metric
        elif problem.interactions is not None:
            yield solver, f"{metric}_full"


def _solved(problem: Problem, solver: str, options: Solve) -> Solution:
    if solver not in CROSS_LAYER:
        problem = problem.separable()
    return make_solver(problem, solver, time_limit_s=options.time_limit_s)(problem)


def _searched(
    search: Search | None, problems: Mapping[str, Problem]
) -> Iterator[PlannedAllocation]:
    """The search on whole allocations, within the budgets."""
    if search is not None:
        solution = search(problem := problems["composed"])
        by = solution.objective
        yield planned_allocation(
            f"search/{by}", "solution", problem, solution, metric=by, asked="search"
        )


def _compared(
    run: RunFolder,
    problem: Problem,
    metric: str,
    options: Solve,
    comparison: Comparison,
    search: Search | None,
) -> Iterator[PlannedAllocation]:
    """What the solutions are compared with."""
    if comparison.comparison == "none":
        return
    plain = problem.separable()
    yield from baselines(plain, metric, comparison, options.seed)
    if comparison.comparison == "baselines":
        return
    solvers: dict[tuple[str, str], Search] = {
        (name, by): lambda here, name=name: _solved(here, name, options)
        for name, by in _asked(problem, metric, options)
    }
    if search is not None and metric == "composed":
        solvers["search", metric] = search
    yield from other_budgets(problem, comparison, solvers)
    costs_of = functools.partial(run_costs, run)
    yield from without_budgets(plain, comparison, options.seed, costs_of)


def _report_budgets(problem: Problem, reporter: Reporter) -> None:
    for name, limit in problem.limits.items():
        asked = problem.asked.get(name, "")
        reporter.say(f"budget: {name} <= {limit:g} (asked {asked}; {problem.room(name)})")
