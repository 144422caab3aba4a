"""Lower bounds on the loss that need no integer program.

Every bound here is a value of the Lagrangian: for any multipliers λ ≥ 0,

    loss(c) ≥ Σ_i min_j (losses[i, j] + λ·costs[:, i, j]) − λ·limits  for every c in budget,

because λ·(costs − limits) ≤ 0 there. The choice of λ decides how tight the bound is, not
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

    Costs are counted from the group's cheapest choice, which reduces rounding.
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
    """Least cost of each group, per budget."""
    if reduced.allowed.all():  # no copy of a table that may be large
        return reduced.costs.min(axis=2)
    return np.where(reduced.allowed, reduced.costs, np.inf).min(axis=2)


def lagrangian_bound(reduced: Reduced, multipliers: Multipliers) -> float:
    """The Lagrangian at `multipliers`, minus the largest possible rounding error.

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

    With one budget λ is the loss saved per cost of the break item (Dyer 1984, Zemel 1984). With
    several, λ is the dual solution of the linear program (`lagrangian_dual`), or that of one
    budget alone if its bound is higher.

    Returns:
        Best of these bounds, nats per example, and its multipliers [budgets]. It is at least
        the bound of λ = 0, the sum of the groups' least losses.
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
    """The best Lagrangian bound of `candidates` and of zero, with its multipliers."""
    none = np.zeros(len(reduced.limits))
    tried = [none, *(c for c in candidates if c.any() and np.isfinite(c).all())]
    bounds = [lagrangian_bound(reduced, multipliers) for multipliers in tried]
    best = int(np.argmax(bounds))
    return bounds[best], tried[best]


class BreakSolution(NamedTuple):
    """Break of one budget when steps are taken by falling loss saved per cost.

    Attributes:
        slope: Loss saved per cost of the step that breaks the budget; 0 if all steps fit.
        columns: Column of every group after the steps before the break.
        priority: Loss saved per cost of every step, never rising within a group.
        taken: Steps before the break.
    """

    slope: float
    columns: Int[np.ndarray, " groups"]
    priority: Float[np.ndarray, " steps"]
    taken: Bool[np.ndarray, " steps"]


def linear_relaxation(
    reduced: Reduced, start: Int[np.ndarray, " groups"], steps: Steps
) -> BreakSolution:
    """The break solution of one budget: the last whole choices before it is filled.

    Args:
        reduced: Problem with one budget.
        start: Column of every group's cheapest choice.
        steps: Steps from these columns along the convex frontiers.

    References:
        Dyer (1984), Zemel (1984): the linear multiple-choice knapsack in linear time.
    """
    with np.errstate(over="ignore", divide="ignore"):
        priority = steps.priority(steps.saved(reduced.losses) / steps.change[0])
    taken = longest_prefix(priority, steps.change, reduced.limits - reduced.used(start))
    columns = start.copy()
    columns[steps.group[taken]] = steps.after[taken]  # the last step of a group stays
    return BreakSolution(float(priority[~taken].max(initial=0.0)), columns, priority, taken)
