"""Shared by solvers of one budget: the budget that can bind, and costs in whole units."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.exact_sum import exact_sum
from jmpq.problem.problem import Reduced
from jmpq.solvers.knapsack.relaxation_bounds import cheapest_costs

_CHUNK = 4096  # groups: the common divisor is mostly found among the first


def one_budget(reduced: Reduced, solver: str) -> Reduced:
    """The problem under the only budget that can bind, or under none.

    Budgets that even the dearest allocation meets are dropped.

    Args:
        reduced: The problem.
        solver: Name of the calling solver, for the message.

    Raises:
        ValueError: If several budgets can bind.
    """
    costs = reduced.costs
    if not reduced.allowed.all():
        costs = np.where(reduced.allowed, costs, -np.inf)
    dearest = costs.max(axis=2)
    binds = np.array([exact_sum(row) for row in dearest]) > reduced.limits
    names = tuple(name for name, bind in zip(reduced.names, binds, strict=True) if bind)
    if len(names) > 1:
        raise ValueError(
            f"{solver} takes one budget, got {len(names)} that can bind: {', '.join(names)}. "
            "Use the integer program (`Exact`) for several."
        )
    return dataclasses.replace(
        reduced, costs=reduced.costs[binds], limits=reduced.limits[binds], names=names
    )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class IntegerCosts:
    """One budget's costs above the cheapest of each group, in their greatest common unit.

    Attributes:
        unit: Greatest common unit, in the cost's own unit.
        least: Cost of the cheapest choice of each group.
        room: Budget above the cheapest allocation, in units.
        limit: Budget, lowered to the largest cost that whole units can reach.
    """

    unit: int
    least: Float[np.ndarray, " groups"]
    room: int
    limit: float

    def above(self, reduced: Reduced) -> Int[np.ndarray, "groups choices"]:
        """Costs above the group's cheapest, in units; 0 where not allowed."""
        return _above(reduced, self.least, slice(None)) // self.unit


def integer_costs(reduced: Reduced) -> IntegerCosts | None:
    """The costs of the only budget in whole units; None if they are not integers."""
    (table,), (limit,), (least,) = reduced.costs, reduced.limits, cheapest_costs(reduced)
    if (table != np.floor(table)).any() or float(table.max(axis=1).sum()) >= 2**53:
        return None
    unit = 0
    for first in range(0, len(table), _CHUNK):
        above = _above(reduced, least, slice(first, first + _CHUNK))
        if (unit := int(np.gcd(unit, np.gcd.reduce(above.ravel())))) == 1:
            break
    unit, start = max(unit, 1), exact_sum(least)
    room = math.floor((limit - start) / unit)
    return IntegerCosts(unit=unit, least=least, room=room, limit=start + unit * room)


def _above(
    reduced: Reduced, least: Float[np.ndarray, " groups"], rows: slice
) -> Int[np.ndarray, "rows choices"]:
    above = reduced.costs[0, rows] - least[rows, None]
    return np.where(reduced.allowed[rows], above, 0.0).astype(np.int64)
