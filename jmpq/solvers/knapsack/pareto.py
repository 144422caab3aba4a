"""The convex hull of all trade-offs between the loss and one cost, by one sort."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.kinds import check_kinds
from jmpq.problem.problem import Problem, Reduced
from jmpq.solvers.knapsack.frontier import convex_frontiers
from jmpq.solvers.knapsack.frontier_steps import upgrades


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Hull:
    """Allocations on the lower convex hull of (cost, loss), by rising cost.

    Neighbours differ in the choice of one group. Every point is optimal for its own cost as a
    budget: no mixture of allocations is both cheaper and better.

    Attributes:
        name: Name of the cost.
        costs: Total cost of every point, constants included, in the cost's unit.
        losses: Total loss of every point, nats per example.
        first: Column of every group at the first point.
        steps: Pair (group, column) that leads from each point to the next.
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
        """Allocation at a point, counted from 0."""
        return Allocation.from_columns(self.layers, self.choices, self.columns(point))

    def columns(self, point: int) -> Int[np.ndarray, " layers"]:
        """Column of every layer at a point, counted from 0."""
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


@check_kinds
def pareto_hull(problem: Problem, name: str) -> Hull:
    """The convex hull of all trade-offs between the loss and one cost; budgets are ignored.

    Every group's frontier starts at its cheapest choice. The steps along all frontiers, sorted
    by loss saved per cost, are the edges of the hull.

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
    # Along a frontier the ratio falls, so the sort keeps the steps of a group in their order;
    # `priority` holds it where rounding does not. Taken from the best ratio down, the edges of
    # all groups make a convex chain: the hull of the sum of sets is the sum of their hulls.
    with np.errstate(over="ignore"):
        priority = steps.priority(saved / extra)
    order = np.argsort(-priority, kind="stable")
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


def _one_cost(problem: Problem, name: str) -> Reduced:
    """The problem over groups with one cost and no budget that binds."""
    if name not in problem.costs:
        raise ValueError(
            f"There is no cost {name!r}: expected one of {', '.join(problem.costs) or 'none'}."
        )
    most = problem.range(name)[1]
    one = dataclasses.replace(problem, budgets={name: most}, asked={})
    return one.reduced()
