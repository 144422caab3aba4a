"""Filters of choices: undominated ones, and those on the convex frontier.

Both filters work on all groups at once. The second is MPQCO's Proposition 1. A choice that is
not allowed (loss +inf) passes neither.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.problem import Reduced

_CHUNK = 4096  # groups at a time: bounds the memory of the pairwise comparison


def undominated(reduced: Reduced) -> Bool[np.ndarray, "groups choices"]:
    """Choices that no other choice of the group equals or beats in loss and every cost.

    Of identical choices the first column is kept, so an optimal allocation always remains.
    """
    return np.concatenate(
        [
            _undominated(reduced.losses[i : i + _CHUNK], reduced.costs[:, i : i + _CHUNK])
            for i in range(0, len(reduced.losses), _CHUNK)
        ]
    )


def _undominated(
    losses: Float[np.ndarray, "groups choices"],
    costs: Float[np.ndarray, "budgets groups choices"],
) -> Bool[np.ndarray, "groups choices"]:
    values = np.concatenate([losses[None], costs])  # [1 + budgets, groups, choices]
    better, other = values[:, :, :, None], values[:, :, None, :]  # does column j beat column k?
    covers = (better <= other).all(axis=0) & np.isfinite(losses)[:, :, None]
    same = (better == other).all(axis=0)
    columns = np.arange(losses.shape[1])
    first = columns[:, None] < columns[None, :]
    return np.isfinite(losses) & ~(covers & (~same | first)).any(axis=1)


def convex_frontiers(
    losses: Float[np.ndarray, "groups choices"], cost: Float[np.ndarray, "groups choices"]
) -> Int[np.ndarray, "groups vertices"]:
    """Columns on each group's lower convex hull of (cost, loss), by rising cost.

    The other choices are dominated or LP-dominated: a mixture of two frontier choices costs no
    more and loses no more (Chen, Wang, Cheng 2021, Proposition 1; Sinha and Zoltners 1979).
    Along a frontier the loss falls, and the loss saved per cost falls strictly.

    Returns:
        One row per group, from the cheapest choice (ties: least loss, then first column) to
        the choice of least loss (ties: cheapest); padded with -1.

    >>> losses, cost = np.array([[9.0, 6.0, 1.0, 1.0]]), np.array([[1.0, 2.0, 3.0, 4.0]])
    >>> convex_frontiers(losses, cost).tolist()  # 6 is above the line from 9 to 1
    [[0, 2]]
    """
    chunks = [
        _hulls(losses[i : i + _CHUNK], cost[i : i + _CHUNK])
        for i in range(0, len(losses), _CHUNK)
    ]
    width = max(int((chunk >= 0).any(axis=1).sum()) for chunk in chunks)
    return np.concatenate([chunk[:width].T for chunk in chunks])


def _hulls(
    losses: Float[np.ndarray, "groups choices"], cost: Float[np.ndarray, "groups choices"]
) -> Int[np.ndarray, "choices groups"]:
    """Columns on the hulls, one group per column, by removal of points above neighbours."""
    cost = np.where(np.isfinite(losses), cost, np.inf)
    # By rising cost, and loss, and column: mostly the tables are in this order already.
    if (cost[:, 1:] > cost[:, :-1]).all():
        table = np.repeat(np.arange(losses.shape[1])[:, None], len(losses), axis=1)
        loss, price = losses.T.copy(), cost.T.copy()  # changed below
    else:
        table = np.lexsort((losses, cost), axis=1).T.copy()
        loss, price = (x.T[table, np.arange(len(losses))] for x in (losses, cost))
    # What saves no loss against all that is as cheap is dominated.
    falls = np.isfinite(loss)
    falls[1:] &= loss[1:] < np.minimum.accumulate(loss)[:-1]
    _keep(falls, table, loss, price)
    # A choice that is not below the line between two others is on no hull, whichever others
    # go with it: so all of a round go at once. A group where none goes is convex, since every
    # choice is below its neighbours; only the others are looked at again.
    changed = np.arange(len(losses))
    while len(changed):
        points = table[:, changed], loss[:, changed], price[:, changed]
        stays = _below_neighbours(*points)
        some = ~stays.all(axis=0)
        changed = changed[some]
        points = tuple(x[:, some] for x in points)
        _keep(stays[:, some], *points)
        table[:, changed], loss[:, changed], price[:, changed] = points
    return table


def _below_neighbours(
    table: Int[np.ndarray, "choices groups"],
    loss: Float[np.ndarray, "choices groups"],
    price: Float[np.ndarray, "choices groups"],
) -> Bool[np.ndarray, "choices groups"]:
    """Whether the loss saved per cost falls at a choice; the ends of a group always pass."""
    stays = np.ones(table.shape, dtype=bool)
    saved, added = loss[:-1] - loss[1:], price[1:] - price[:-1]
    stays[1:-1] = (saved[:-1] * added[1:] > saved[1:] * added[:-1]) | (table[2:] < 0)
    return stays


def _keep(
    stays: Bool[np.ndarray, "choices groups"],
    table: Int[np.ndarray, "choices groups"],
    *values: Float[np.ndarray, "choices groups"],
) -> None:
    """Move the choices that stay to the front of their group; pad with -1 and zeros."""
    if stays.all():
        return
    place, (row, group) = np.cumsum(stays, axis=0) - 1, np.nonzero(stays)
    for array, rest in ((table, -1), *((value, 0.0) for value in values)):
        moved = np.full_like(array, rest)
        moved[place[row, group], group] = array[row, group]
        array[:] = moved
