"""The gap of an allocation to the Lagrangian bound: reduced costs plus priced slack.

For any prices λ ≥ 0 and any allocation c,

    loss(c) = L(λ) + Σ_i above[i, c_i] + λ·(limits − costs(c)),

where L is the Lagrangian and `above` is an option's priced loss minus the least of its group.
Within the budgets no term is negative. An allocation is therefore near the bound if and only if
its options have small reduced costs and it leaves little of the priced budgets.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.problem import Reduced
from jmpq.solvers.knapsack.relaxation_bounds import Multipliers, priced_losses

_BINDS = 1e-6  # least price of a budget that binds, times its spread, relative to all budgets

Columns = Int[np.ndarray, " groups"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ReducedCosts:
    """A problem at given prices of its budgets.

    Attributes:
        reduced: The problem.
        prices: Multipliers of the budgets, ideally the linear relaxation's.
        above: Reduced cost of every option: 0 for the best option of each group, +inf where
            not allowed.
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
        """Range of each cost, summed over the groups."""
        return np.ptp(self.reduced.costs, axis=2).sum(axis=1)

    @functools.cached_property
    def binding(self) -> Int[np.ndarray, " binding"]:
        """Budgets whose price is not just rounding."""
        worth = self.prices * self.spread
        return np.flatnonzero(worth > _BINDS * worth.sum())

    @functools.cached_property
    def penalties(self) -> Multipliers:
        """The prices, raised where far below the mean, to penalise every exceeded budget.

        Prices are compared in units of the cost's `spread`.
        """
        spread = np.where(self.spread > 0, self.spread, 1.0)
        mean = float((self.prices * spread).mean()) if len(spread) else 0.0
        return np.maximum(self.prices, (mean if mean > 0 else 1.0) / spread)

    def slack(self, columns: Columns) -> Float[np.ndarray, " budgets"]:
        """Unused part of the budgets; negative where the allocation exceeds them."""
        return self.reduced.limits - self.reduced.used(columns)

    def gap(self, columns: Columns) -> float:
        """Loss above the Lagrangian of an allocation within the budgets, up to rounding."""
        above = self.above[np.arange(len(columns)), columns]
        return float(above.sum() + self.prices @ self.slack(columns))

    def cheapest_to_change(self, columns: Columns, most: int) -> Int[np.ndarray, " some"]:
        """Up to `most` groups that change the budgets' use at least reduced cost, in order.

        The change of an option is its priced change of use, capped at the gap of `columns`.
        Options whose reduced cost exceeds the gap cannot improve on `columns`.
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
