"""What an allocation adds to the Lagrangian bound: reduced costs, and priced slack.

For any prices λ ≥ 0 and any allocation c,

    loss(c) = L(λ) + Σ_i above[i, c_i] + λ·(limits − costs(c)),

L the Lagrangian and `above` the priced loss of an option above the least of its group. Within
the budgets no term is negative. So an allocation is near the bound exactly if its options have
small reduced costs and it leaves little of the budgets that have a price.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.problem import Reduced
from jmpq.solvers.knapsack.relaxation_bounds import Multipliers, priced_losses

_BINDS = 1e-6  # price of what a budget's table spans, as a part of all budgets'

Columns = Int[np.ndarray, " groups"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ReducedCosts:
    """A problem at given prices of its budgets.

    Attributes:
        reduced: The problem.
        prices: Multipliers of the budgets, best those of the linear relaxation.
        above: Reduced cost of every option: 0 for the best of each group, +inf where not
            allowed.
    """

    reduced: Reduced
    prices: Multipliers
    above: Float[np.ndarray, "groups choices"]

    @classmethod
    def of(cls, reduced: Reduced, prices: Multipliers) -> "ReducedCosts":
        """The reduced costs at `prices`."""
        priced, _ = priced_losses(reduced, prices)
        return cls(
            reduced=reduced,
            prices=prices,
            above=priced - priced.min(axis=1, keepdims=True),
        )

    @functools.cached_property
    def spread(self) -> Float[np.ndarray, " budgets"]:
        """What the whole table of each budget spans."""
        return np.ptp(self.reduced.costs, axis=2).sum(axis=1)

    @functools.cached_property
    def binding(self) -> Int[np.ndarray, " binding"]:
        """The budgets that have a price, and not only by rounding."""
        worth = self.prices * self.spread
        return np.flatnonzero(worth > _BINDS * worth.sum())

    @functools.cached_property
    def penalties(self) -> Multipliers:
        """The prices, none of them far below the mean: also a budget without a price binds.

        They are compared in units of what the whole table of a budget spans.
        """
        spread = np.where(self.spread > 0, self.spread, 1.0)
        mean = float((self.prices * spread).mean()) if len(spread) else 0.0
        return np.maximum(self.prices, (mean if mean > 0 else 1.0) / spread)

    def slack(self, columns: Columns) -> Float[np.ndarray, " budgets"]:
        """What an allocation leaves of the budgets; negative where it exceeds them."""
        return self.reduced.limits - self.reduced.used(columns)

    def gap(self, columns: Columns) -> float:
        """Loss above the Lagrangian of an allocation within the budgets, up to rounding."""
        above = self.above[np.arange(len(columns)), columns]
        return float(above.sum() + self.prices @ self.slack(columns))

    def cheapest_to_change(self, columns: Columns, most: int) -> Int[np.ndarray, " some"]:
        """Up to `most` groups that move the budgets' use at the least reduced cost, in order.

        What an option moves is its priced change of use, and more than the gap of `columns`
        is more than needed. Options whose reduced cost exceeds the gap cannot improve on it.
        """
        rows = np.arange(len(columns))
        gap = float(self.above[rows, columns].sum() + self.penalties @ abs(self.slack(columns)))
        moved = np.zeros(self.above.shape)
        for price, table in zip(self.prices, self.reduced.costs, strict=True):
            moved += price * np.abs(table - table[rows, columns][:, None])
        able = (self.above < gap) & (moved > 0)
        able[rows, columns] = False
        rate = np.full(moved.shape, np.inf)
        rate[able] = self.above[able] / np.minimum(moved[able], gap)
        least = rate.min(axis=1)
        count = min(most, int(np.isfinite(least).sum()))
        return np.argsort(least, kind="stable")[:count]
