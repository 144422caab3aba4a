"""Tabu search over moves that keep every budget, for any objective.

References:
    Glover, Laguna (1997), Tabu search.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from jmpq.solvers.measured.neighbourhood import Neighbourhood
from jmpq.solvers.quadratic.priced_walk import Columns, below


@runtime_checkable
class Walker(Protocol):
    """An allocation that a walk changes, with its objective."""

    columns: Columns

    @property
    def value(self) -> float:
        """Objective of the current allocation."""
        ...

    def best_move(
        self, near: Neighbourhood, banned: Bool[np.ndarray, " options"], below: float
    ) -> tuple[int, ...] | None:
        """The best move without banned options, or one that leads below a value; or None."""
        ...

    def change(self, option: int) -> None:
        """Give a group another choice."""
        ...


def tabu_search(
    near: Neighbourhood,
    walker: Callable[[Columns], Walker],
    columns: Columns,
    cheapest: Columns,
    *,
    restarts: int,
    patience: int,
    tenure: int,
    seed: int,
    stop: Callable[[], bool],
) -> tuple[Columns, float]:
    """The best allocation of several walks, and its value.

    The first walk starts from `columns`. Each later walk starts from a kick of the best
    allocation so far: a few groups take random choices.

    Args:
        near: Moves and budgets.
        walker: Function that starts a walk at an allocation.
        columns: First allocation, within the budgets.
        cheapest: Cheapest allocation, to which kicks fall back.
        restarts: Number of walks after the first.
        patience: Steps without a better allocation before a walk ends.
        tenure: Steps for which a group may not return to a choice.
        seed: Seed of the kicks.
        stop: Function that ends the search when it returns True; called before every move.
    """
    rng = np.random.default_rng(seed)
    best, least = columns, walker(columns).value
    for _ in range(restarts + 1):
        reached, value = _walk(near, walker(columns), least, patience, tenure, stop)
        if below(value, least):
            best, least = reached, value
        if stop():
            break
        size = int(rng.integers(2, max(3, len(best) // 3) + 1))
        columns = near.kick(best, cheapest, size, rng)
    return best, least


def _walk(
    near: Neighbourhood,
    walker: Walker,
    least: float,
    patience: int,
    tenure: int,
    stop: Callable[[], bool],
) -> tuple[Columns, float]:
    """The best allocation of one walk; a banned move is allowed if it leads below `least`."""
    best, lowest = walker.columns.copy(), walker.value
    choices = near.reduced.losses.shape[1]
    banned, idle = np.zeros(near.reduced.losses.size, dtype=np.int64), 0
    # The best move is taken even where it makes things worse. That the next moves do not undo
    # it, which would be a circle, is what the ban on the options left behind is for; `banned`
    # holds the step until which each of them may not come back.
    for step in range(1, 1 + 100 * patience):
        move = walker.best_move(near, banned > step, min(least, lowest))
        if move is None or stop():
            break
        for option in move:
            group = option // choices
            banned[group * choices + walker.columns[group]] = step + tenure
            walker.change(option)
        idle += 1
        # Moves hold the budgets up to rounding; `fits` adds their costs up exactly.
        if below(walker.value, lowest) and near.reduced.fits(walker.columns):
            best, lowest, idle = walker.columns.copy(), walker.value, 0
        if idle >= patience:
            break
    return best, lowest
