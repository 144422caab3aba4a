"""Lower bounds on the loss that need no integer program.

Every bound here is a value of the Lagrangian: for any multipliers λ ≥ 0,

    loss(c) ≥ Σ_i min_j (losses[i, j] + λ·costs[:, i, j]) − λ·limits  for every c in budget,

because λ·(costs − limits) ≤ 0 there. Where λ comes from decides how tight it is, never
whether it holds.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.exact_sum import exact_sum
from jmpq.problem.problem import Reduced
from jmpq.solvers.knapsack.frontier import convex_frontiers
from jmpq.solvers.knapsack.frontier_steps import Steps, longest_prefix, upgrades
from jmpq.solvers.knapsack.lagrangian_dual import Multipliers, dual_multipliers

_CHUNK = 4096  # groups


def priced_losses(
    reduced: Reduced, multipliers: Multipliers
) -> tuple[Float[np.ndarray, "groups choices"], float]:
    """Loss plus price of each choice, and the price of the budgets.

    Costs count from the cheapest choice of their group (the same program, less rounding).
    """
    least = cheapest_costs(reduced)
    prices = np.tensordot(multipliers, reduced.costs - least[:, :, None], axes=1)
    return reduced.losses + prices, _budget_price(reduced, multipliers, least)


def _budget_price(
    reduced: Reduced, multipliers: Multipliers, least: Float[np.ndarray, "budgets groups"]
) -> float:
    slack = [limit - exact_sum(row) for limit, row in zip(reduced.limits, least, strict=True)]
    return math.fsum(multipliers * np.array(slack))


def cheapest_costs(reduced: Reduced) -> Float[np.ndarray, "budgets groups"]:
    """The least that each group can cost, budget by budget."""
    if reduced.allowed.all():  # no copy of a table that may be large
        return reduced.costs.min(axis=2)
    return np.where(reduced.allowed, reduced.costs, np.inf).min(axis=2)


def lagrangian_bound(reduced: Reduced, multipliers: Multipliers) -> float:
    """The Lagrangian at `multipliers`, less what rounding may have added.

    Raises:
        ValueError: If a multiplier is negative or not finite: the bound would not hold.
    """
    if not (np.isfinite(multipliers).all() and (multipliers >= 0).all()):
        raise ValueError(f"Multipliers must be finite and not negative, got {multipliers}.")
    if not multipliers.any():
        return exact_sum(reduced.losses.min(axis=1))
    least = cheapest_costs(reduced)
    values = np.empty(len(reduced.losses))
    for first in range(0, len(values), _CHUNK):  # a chunk stays in the processor's cache
        rows = slice(first, first + _CHUNK)
        above = reduced.costs[:, rows] - least[:, rows, None]
        priced = reduced.losses[rows] + np.tensordot(multipliers, above, axes=1)
        values[rows] = priced.min(axis=1)
    budget_price = _budget_price(reduced, multipliers, least)
    magnitude = float(np.abs(values).sum()) + abs(budget_price)
    rounding = (32 + 4 * len(multipliers)) * np.finfo(np.float64).eps  # NumPy sums in pairs
    return float(values.sum()) - budget_price - rounding * magnitude


def lp_bound(reduced: Reduced) -> tuple[float, Multipliers]:
    """The bound of the linear relaxation, and multipliers that prove it.

    With one budget λ is the loss saved per cost of the break item (Dyer 1984, Zemel 1984);
    with several the dual values of the linear program (`lagrangian_dual`), or those of one
    budget alone where they happen to prove more.

    Returns:
        The best of these bounds and its multipliers [budgets]; at least the bound of λ = 0,
        the least loss of every group.
    """
    candidates = []
    for k, (name, cost, limit) in enumerate(
        zip(reduced.names, reduced.costs, reduced.limits, strict=True)
    ):
        single = dataclasses.replace(
            reduced, costs=cost[None], limits=np.array([limit]), names=(name,)
        )
        frontiers = convex_frontiers(reduced.losses, cost)
        steps = upgrades(single, frontiers, frontiers[:, 0])
        slope = linear_relaxation(single, frontiers[:, 0], steps).slope
        candidates.append(np.where(np.arange(len(reduced.limits)) == k, slope, 0.0))
    if len(candidates) > 1:
        candidates.append(dual_multipliers(reduced))
    return best_bound(reduced, candidates)


def best_bound(
    reduced: Reduced, candidates: Sequence[Multipliers]
) -> tuple[float, Multipliers]:
    """The best Lagrangian bound of these multipliers and of none, and the ones that give it."""
    none = np.zeros(len(reduced.limits))
    tried = [none, *(c for c in candidates if c.any() and np.isfinite(c).all())]
    bounds = [lagrangian_bound(reduced, multipliers) for multipliers in tried]
    best = int(np.argmax(bounds))
    return bounds[best], tried[best]


class BreakSolution(NamedTuple):
    """Where one budget breaks when steps are taken by the loss that they save per cost.

    Attributes:
        slope: Loss saved per cost of the step that breaks the budget; 0 where all steps fit.
        columns: Of every group, after the steps before it.
        priority: Loss saved per cost of every step, never rising within a group.
        taken: The steps before the break.
    """

    slope: float
    columns: Int[np.ndarray, " groups"]
    priority: Float[np.ndarray, " steps"]
    taken: Bool[np.ndarray, " steps"]


def linear_relaxation(
    reduced: Reduced, start: Int[np.ndarray, " groups"], steps: Steps
) -> BreakSolution:
    """The break of one budget: the last whole choices before it is filled.

    Args:
        reduced: A problem with one budget.
        start: The cheapest choices.
        steps: From them on along the convex frontiers.

    References:
        Dyer (1984), Zemel (1984): the linear multiple-choice knapsack in linear time.
    """
    with np.errstate(over="ignore", divide="ignore"):
        priority = steps.priority(steps.saved(reduced.losses) / steps.change[0])
    taken = longest_prefix(priority, steps.change, reduced.limits - reduced.used(start))
    columns = start.copy()
    columns[steps.group[taken]] = steps.after[taken]  # the last step of a group stays
    return BreakSolution(float(priority[~taken].max(initial=0.0)), columns, priority, taken)
