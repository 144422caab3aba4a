"""Allocations near an allocation: single changes, pairs of changes, random kicks.

An *option* is a (group, choice) pair with number ``group·choices + choice``. A *move* changes
one group or two. Moves keep every budget.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.problem import Reduced
from jmpq.solvers.knapsack.feasibility import combined_costs
from jmpq.solvers.quadratic.priced_walk import Columns


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Moves between the allocations of one problem.

    Attributes:
        reduced: The problem over groups.
        max_options: Number of options that are combined to pairs: the most promising ones, by
            change of the objective plus price of their costs.
    """

    reduced: Reduced
    max_options: int = 400

    @functools.cached_property
    def price(self) -> Float[np.ndarray, "groups choices"]:
        """Weighted sum of all costs, +inf where not allowed."""
        return combined_costs(self.reduced)

    def cost_changes(self, columns: Columns) -> Float[np.ndarray, "budgets groups choices"]:
        """Change of the costs by every single change."""
        rows = np.arange(len(columns))
        return self.reduced.costs - self.reduced.costs[:, rows, columns][:, :, None]

    def left(self, columns: Columns) -> Float[np.ndarray, " budgets"]:
        """Unused part of the budgets."""
        return self.reduced.limits - self.reduced.used(columns)

    def single_changes(self, columns: Columns) -> Bool[np.ndarray, "groups choices"]:
        """Single changes that are allowed and keep every budget."""
        left = self.left(columns)[:, None, None]
        return self.changes(columns) & (self.cost_changes(columns) <= left).all(axis=0)

    def changes(self, columns: Columns) -> Bool[np.ndarray, "groups choices"]:
        """Single changes that are allowed, budgets ignored."""
        allowed = np.isfinite(self.reduced.losses)
        allowed[np.arange(len(columns)), columns] = False
        return allowed

    def promising(
        self, columns: Columns, change: Float[np.ndarray, "groups choices"]
    ) -> Int[np.ndarray, " options"]:
        """Options worth trying in pairs: all of them, or those of least priced change.

        Args:
            columns: Current allocation.
            change: Change of the objective by each single change.
        """
        groups = len(change)
        options = np.flatnonzero(self.changes(columns))
        if len(options) <= self.max_options:
            return options
        rows = np.arange(groups)
        price = self.price - self.price[rows, columns][:, None]
        spent = np.ptp(np.where(np.isfinite(self.price), self.price, 0.0), axis=1).sum()
        worth = np.abs(np.where(np.isfinite(change), change, 0.0)).sum() / max(spent, 1e-300)
        priced = (change + worth * price).ravel()[options]
        kept = np.argpartition(priced, self.max_options)[: self.max_options]
        return np.sort(options[kept])

    def pairs(
        self, columns: Columns, options: Int[np.ndarray, " options"]
    ) -> Bool[np.ndarray, "options options"]:
        """Pairs of changes in two groups that keep every budget, each once."""
        groups, choices = self.reduced.losses.shape
        of = options // choices
        fits = of[:, None] < of[None, :]  # options ascend: the upper triangle
        changes = self.cost_changes(columns).reshape(-1, groups * choices)[:, options]
        for row, left in zip(changes, self.left(columns), strict=True):
            fits &= row[:, None] + row[None, :] <= left
        return fits

    def apply(self, columns: Columns, move: tuple[int, ...]) -> Columns:
        """The allocation after a move: one option, or two of different groups."""
        after = columns.copy()
        for option in move:
            group, column = divmod(option, self.reduced.losses.shape[1])
            after[group] = column
        return after

    def kick(
        self, columns: Columns, cheapest: Columns, changes: int, rng: np.random.Generator
    ) -> Columns:
        """Give some groups a random choice, then downgrade random groups until it fits."""
        after = columns.copy()
        groups = rng.permutation(len(columns))
        for group in groups[:changes]:
            after[group] = rng.choice(np.flatnonzero(np.isfinite(self.reduced.losses[group])))
        for group in rng.permutation(len(columns)):
            if self.reduced.fits(after):
                break
            after[group] = cheapest[group]
        return after
