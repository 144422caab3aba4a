"""What solvers of one budget share: the budget that binds, and costs in whole units."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.problem import Reduced, exact_sum

_CHUNK = 1 << 16  # numbers: their common divisor is mostly found among the first


def one_budget(reduced: Reduced, solver: str) -> Reduced:
    """The problem under the only budget that can bind, or under none.

    Budgets that even the dearest allocation meets are left out.

    Args:
        reduced: The problem.
        solver: Who asks, for the message.

    Raises:
        ValueError: If several budgets can bind.
    """
    allowed = np.isfinite(reduced.losses)
    dearest = np.where(allowed, reduced.costs, -np.inf).max(axis=2)
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
        above: In units; 0 where not allowed.
        room: Units that the budget leaves above the cheapest allocation.
        limit: The limit, lowered to what whole units can come to.
    """

    above: Int[np.ndarray, "groups choices"]
    room: int
    limit: float


def integer_costs(reduced: Reduced) -> IntegerCosts | None:
    """The costs of the only budget in whole units, or None where they are not integers."""
    (table,), (limit,) = reduced.costs, reduced.limits
    if (table != np.floor(table)).any() or float(table.max(axis=1).sum()) >= 2**53:
        return None
    allowed = np.isfinite(reduced.losses)
    least: Float[np.ndarray, " groups"] = np.where(allowed, table, np.inf).min(axis=1)
    above = np.where(allowed, table - least[:, None], 0.0).astype(np.int64)
    unit, flat = 0, above.ravel()
    for i in range(0, len(flat), _CHUNK):
        if (unit := int(np.gcd(unit, np.gcd.reduce(flat[i : i + _CHUNK])))) == 1:
            break
    unit, start = max(unit, 1), exact_sum(least)
    room = math.floor((limit - start) / unit)
    return IntegerCosts(
        above=above // unit if unit > 1 else above, room=room, limit=start + unit * room
    )
