"""Baselines: uniform, random and reversed allocations, with the bound of the relaxation."""

import dataclasses
import math
import time

import numpy as np
from jaxtyping import Int

from jmpq.formats import labels
from jmpq.problem.problem import Problem
from jmpq.problem.solution import Infeasible, Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.knapsack.relaxation_bounds import lp_bound


def uniform(problem: Problem) -> Solution:
    """The best uniform allocation within the budgets, as uniform as the rules allow.

    Each candidate is tried in every layer. A layer that may not take it takes the next lower
    one (`Problem.uniform`). Ties go to the first candidate.

    Raises:
        Infeasible: If no uniform allocation meets the budgets.
    """
    started = time.perf_counter()
    reduced = problem.reduced(interactions=True)
    cheapest_allocation(problem, reduced)  # says so where nothing at all fits
    allocations = [problem.uniform(choice) for choice in problem.choices]
    values = [problem.evaluate(allocation) for allocation in allocations]
    fitting = [k for k, (_, costs) in enumerate(values) if not problem.violated(costs)]
    if not fitting:
        limits = ", ".join(f"{name}={limit:.10g}" for name, limit in problem.budgets.items())
        least = ", ".join(
            f"{name} {min(costs[name] for _, costs in values):.10g}" for name in problem.budgets
        )
        raise Infeasible(
            f"No uniform allocation of {labels(problem.choices)} meets {limits} (the least of "
            f"them: {least}). Raise the budgets, or search for a mixed one.",
            budgets=problem.budgets,
            ranges={name: problem.range(name) for name in problem.budgets},
        )
    best = min(fitting, key=lambda k: values[k][0])
    return solution_from_columns(
        problem,
        allocations[best],
        bound=-math.inf if problem.interactions is not None else lp_bound(reduced)[0],
        solver="uniform",
        wall_s=time.perf_counter() - started,
    )


def random_search(problem: Problem, *, seed: int) -> Solution:
    """Upgrade layers in random order from the cheapest allocation until nothing fits.

    Losses are ignored: every dearer choice of a layer counts as better. Otherwise the filter
    of dominated choices would use the losses.
    """
    started = time.perf_counter()
    reduced = problem.reduced(interactions=True)
    cheapest_allocation(problem, reduced)
    price = np.zeros_like(problem.losses)
    for name, table in problem.costs.items():
        table = np.where(problem.allowed, table, 0.0)
        # What no budget limits only decides between choices of equal price.
        weight = 1.0 if name in problem.budgets else 1e-6
        price = price + weight * table / max(table.max(), 1.0)
    losses = -np.sqrt(price)  # the root keeps every choice on the frontier that is walked
    blind = dataclasses.replace(problem, losses=losses, interactions=None)
    solution = Greedy(criterion="random", seed=seed)(blind)
    return solution_from_columns(
        problem,
        solution.columns,
        bound=-math.inf if problem.interactions is not None else lp_bound(reduced)[0],
        solver="random",
        wall_s=time.perf_counter() - started,
    )


def reversed_search(problem: Problem) -> Solution:
    """The greedy search with its criterion reversed: the least loss saved per cost first."""
    return Greedy(criterion="reversed")(problem)


def draw_allocations(problem: Problem, num: int, *, seed: int) -> Int[np.ndarray, "num layers"]:
    """Random joint allocations under the rules, budgets ignored.

    Every group of tied layers takes each of its allowed choices with equal probability.
    """
    allowed = np.isfinite(problem.reduced(interactions=True).losses)
    draws = np.random.default_rng(seed).random((num, *allowed.shape))
    return np.where(allowed, draws, -1.0).argmax(axis=2)[:, problem.groups]
