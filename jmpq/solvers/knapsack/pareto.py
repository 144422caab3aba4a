"""All trade-offs of loss against one cost: the convex hull by one sort, or the exact front."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.problem.problem import Problem, Reduced
from jmpq.solvers.knapsack.frontier import convex_frontiers
from jmpq.solvers.knapsack.frontier_steps import upgrades


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Hull:
    """Allocations on the lower convex hull of (cost, loss), by rising cost.

    Between two neighbours one group changes its choice. Every point is optimal for its own
    cost as a budget: no mixture of allocations is cheaper and better.

    Attributes:
        name: The cost.
        costs: Total cost of every point, constants included.
        losses: Total loss of every point.
        first: Column of every group at the first point.
        steps: (group, column) that leads from each point to the next.
        groups: Group of every layer.
        layers: Layers of the problem.
        choices: Candidates of the problem.
    """

    name: str
    costs: Float[np.ndarray, " points"]
    losses: Float[np.ndarray, " points"]
    first: Int[np.ndarray, " groups"]
    steps: Int[np.ndarray, "_ 2"]
    groups: Int[np.ndarray, " layers"]
    layers: tuple[str, ...]
    choices: tuple[Choice, ...]

    def allocation(self, point: int) -> Allocation:
        """The allocation at one point, counted from 0."""
        return Allocation.from_columns(self.layers, self.choices, self.columns(point))

    def columns(self, point: int) -> Int[np.ndarray, " layers"]:
        """The column of every layer at one point, counted from 0."""
        if not 0 <= point < len(self.costs):
            raise ValueError(f"The hull has points 0 to {len(self.costs) - 1}, not {point}.")
        columns = self.first.copy()
        for group, column in self.steps[:point]:
            columns[group] = column
        return columns[self.groups]

    def within(self, limit: float) -> int:
        """The last point of cost at most `limit`.

        Raises:
            ValueError: If the first point costs more.
        """
        if limit < self.costs[0]:
            raise ValueError(
                f"No point of the hull costs at most {limit:.10g}: the cheapest costs "
                f"{self.costs[0]:.10g} {self.name}."
            )
        return int(np.searchsorted(self.costs, limit, side="right")) - 1


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Front:
    """Every allocation that no other equals or beats in both cost and loss, by rising cost.

    Of equal ones the front holds one.

    Attributes:
        name: The cost.
        costs: Total cost of every point, constants included.
        losses: Total loss of every point.
        taken: For every group, its column at each point of the partial front up to it.
        parents: For every group, the point of the partial front before it.
        groups: Group of every layer.
        layers: Layers of the problem.
        choices: Candidates of the problem.
    """

    name: str
    costs: Float[np.ndarray, " points"]
    losses: Float[np.ndarray, " points"]
    taken: tuple[Int[np.ndarray, " _"], ...]
    parents: tuple[Int[np.ndarray, " _"], ...]
    groups: Int[np.ndarray, " layers"]
    layers: tuple[str, ...]
    choices: tuple[Choice, ...]

    def allocation(self, point: int) -> Allocation:
        """The allocation at one point, counted from 0."""
        return Allocation.from_columns(self.layers, self.choices, self.columns(point))

    def columns(self, point: int) -> Int[np.ndarray, " layers"]:
        """The column of every layer at one point, counted from 0."""
        if not 0 <= point < len(self.costs):
            raise ValueError(f"The front has points 0 to {len(self.costs) - 1}, not {point}.")
        columns = np.zeros(len(self.taken), dtype=np.int64)
        for group in reversed(range(len(self.taken))):
            columns[group] = self.taken[group][point]
            point = int(self.parents[group][point])
        return columns[self.groups]


def pareto_hull(problem: Problem, name: str) -> Hull:
    """The convex hull of all trade-offs of loss against one cost; budgets are ignored.

    Every group's frontier starts at its cheapest choice; the steps along all frontiers,
    sorted by loss saved per cost, are the edges of the hull of their sum.

    Raises:
        ValueError: If the problem has no such cost, or has cross-layer terms.
    """
    reduced = _one_cost(problem, name)
    losses, cost = reduced.losses, reduced.costs[0]
    frontiers = convex_frontiers(losses, cost)
    first = frontiers[:, 0]
    steps = upgrades(reduced, frontiers, first)
    group, column = steps.group, steps.after
    extra, saved = steps.change[0], steps.saved(losses)
    order = np.lexsort((np.arange(len(group)), -saved / extra))
    rows = np.arange(len(losses))
    start = math.fsum([problem.constants.get(name, 0.0), *cost[rows, first]])
    return Hull(
        name=name,
        costs=start + np.concatenate([[0.0], np.cumsum(extra[order])]),
        losses=math.fsum(losses[rows, first])
        - np.concatenate([[0.0], np.cumsum(saved[order])]),
        first=first,
        steps=np.stack([group[order], column[order]], axis=1),
        groups=problem.groups,
        layers=problem.layers,
        choices=problem.choices,
    )


def pareto_front(problem: Problem, name: str, *, max_points: int = 2_000_000) -> Front:
    """The exact front of loss against one cost, by merging groups with dominance.

    A group's choices are added to every point of the front of the groups before it, and what
    another point equals or beats in both is left out (Nemhauser and Ullmann 1969); a dynamic
    program over the costs that occur, integer or not. Partial allocations that break the
    budget on this cost are left out too; other budgets are ignored.

    Raises:
        ValueError: If the problem has no such cost or has cross-layer terms, the budget on it
            cannot be met, or a partial front has more than `max_points` points.
    """
    reduced = _one_cost(problem, name)
    cost = reduced.costs[0]
    least = np.where(np.isfinite(reduced.losses), cost, np.inf).min(axis=1)
    rest = np.append(np.cumsum(least[::-1])[::-1][1:], 0.0)  # of the groups that follow
    limit = math.inf
    if name in problem.budgets:
        limit = problem.budgets[name] + problem.rounding(name)
    limit -= problem.constants.get(name, 0.0)
    costs, losses = np.zeros(1), np.zeros(1)
    taken, parents = [], []
    for group in range(len(cost)):
        options = np.flatnonzero(np.isfinite(reduced.losses[group]))
        total = (costs + cost[group, options][:, None]).ravel()
        loss = (losses + reduced.losses[group, options][:, None]).ravel()
        inside = np.flatnonzero(total + rest[group] <= limit)
        order = inside[np.lexsort((loss[inside], total[inside]))]
        if not len(order):
            raise ValueError(
                f"Budget {name}={problem.budgets[name]:.10g} cannot be met: the least is "
                f"{problem.range(name)[0]:.10g}. Raise it or leave it out."
            )
        falling = np.minimum.accumulate(loss[order])
        better = np.append(True, falling[1:] < falling[:-1])
        order = order[better]
        if len(order) > max_points:
            raise ValueError(
                f"The front of {name} has {len(order)} points after {group + 1} of "
                f"{len(cost)} groups, more than max_points={max_points}. Give a budget, round "
                "the costs to coarser units, or use pareto_hull."
            )
        taken.append(options[order // len(costs)])
        parents.append(order % len(costs))
        costs, losses = total[order], loss[order]
    return Front(
        name=name,
        costs=costs + problem.constants.get(name, 0.0),
        losses=losses,
        taken=tuple(taken),
        parents=tuple(parents),
        groups=problem.groups,
        layers=problem.layers,
        choices=problem.choices,
    )


def _one_cost(problem: Problem, name: str) -> Reduced:
    """The problem over groups with one cost and no budget that binds."""
    if name not in problem.costs:
        raise ValueError(
            f"There is no cost {name!r}: expected one of {', '.join(problem.costs) or 'none'}."
        )
    most = problem.range(name)[1]
    one = dataclasses.replace(problem, budgets={name: most}, asked={})
    return one.reduced()
