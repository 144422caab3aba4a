"""Allocations that solutions are compared with: baselines, other budgets, no budgets at all."""

from collections.abc import Callable, Iterator, Mapping

from jmpq.allocation import Allocation
from jmpq.formats import UNQUANTIZED
from jmpq.problem import Infeasible, PlannedAllocation, Problem, Solution, with_budgets
from jmpq.problem.plan import planned_allocation
from jmpq.run.options import Comparison
from jmpq.solvers import draw_allocations, random_search, reversed_search

Solvers = Mapping[tuple[str, str], Callable[[Problem], Solution]]


def baselines(
    problem: Problem, metric: str, options: Comparison, seed: int
) -> Iterator[PlannedAllocation]:
    """Uniform, reversed and random allocations."""
    for choice in problem.choices:
        columns = problem.uniform(choice)
        loss, costs = problem.evaluate(columns)
        yield PlannedAllocation(
            name=f"uniform/{choice.label}",
            role="baseline",
            allocation=problem.allocation(columns),
            costs=costs,
            metric=metric,
            asked="uniform",
            predicted_loss=loss,
            budgets=problem.limits,
        )
    solution = reversed_search(problem)
    yield planned_allocation(
        "reversed", "baseline", problem, solution, metric=metric, asked="reversed"
    )
    for i in range(options.random):
        yield planned_allocation(
            f"random/{i}",
            "baseline",
            problem,
            random_search(problem, seed=seed + i),
            metric=metric,
            asked="random",
            seed=seed + i,
        )


def other_budgets(
    problem: Problem, options: Comparison, solvers: Solvers
) -> Iterator[PlannedAllocation]:
    """Solutions between the cheapest and the dearest allocation.

    Budgets that conflict there are left out; budgets on peaks stay as they are.

    Args:
        problem: The problem, with its cross-layer terms where a solver takes them.
        options: Number of budgets and other options.
        solvers: Solvers by the name that was asked for and the metric that they minimise.
    """
    for i in range(1, options.sweep + 1 if problem.budgets else 1):
        percent = f"{100 * i / (options.sweep + 1):.4g}%"
        peaks = [f"{name}={limit:.17g}" for name, limit in problem.ceilings.items()]
        additive = [f"{name}={percent}" for name in problem.budgets]
        here = with_budgets(problem, [*additive, *peaks])
        for (name, metric), solver in solvers.items():
            try:
                solution = solver(here)
            except Infeasible:
                continue
            by = metric if solution.objective == "loss" else solution.objective
            yield planned_allocation(
                f"sweep/{name}/{percent}", "sweep", here, solution, metric=by, asked=name
            )


def without_budgets(
    problem: Problem,
    options: Comparison,
    seed: int,
    costs_of: Callable[[Allocation], Mapping[str, float]],
) -> Iterator[PlannedAllocation]:
    """Random joint allocations, and every choice of every single layer.

    Args:
        problem: The problem.
        options: Number of allocations and other options.
        seed: Seed of the random allocations.
        costs_of: Costs of any allocation of the network; its other layers are unquantized,
            which need not be a candidate.
    """
    for i, columns in enumerate(draw_allocations(problem, options.joint, seed=seed)):
        yield PlannedAllocation(
            name=f"joint/{i}",
            role="random",
            allocation=problem.allocation(columns),
            costs=problem.evaluate(columns)[1],
            seed=seed,
        )
    unquantized = dict.fromkeys(problem.layers, UNQUANTIZED)
    every = "kv_bytes" not in problem.costs  # keys and values have choices of their own
    for layer, row in zip(problem.layers, problem.allowed, strict=True):
        for choice, allowed in zip(problem.choices, row, strict=True):
            if not (options.singles and (every or allowed)):
                continue
            alone = Allocation(unquantized | {layer: choice})
            costs = costs_of(alone)
            yield PlannedAllocation(
                name=f"single/{layer}/{choice.label}",
                role="single",
                allocation=alone,
                costs={name: costs[name] for name in problem.costs if name in costs},
            )
