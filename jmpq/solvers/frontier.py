"""Which choices matter: the undominated ones, and those on the convex frontier.

Both filters work on groups; MPQCO's Proposition 1 is the second. Disallowed choices (loss
+inf) are neither.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.problem import Reduced

_CHUNK = 4096  # groups at a time: bounds the memory of the pairwise comparison


def undominated(reduced: Reduced) -> Bool[np.ndarray, "groups choices"]:
    """Choices that no other choice of the group equals or beats in loss and every cost.

    Of identical choices the first column stays, so some optimal allocation always survives.
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


def convex_frontier(
    losses: Float[np.ndarray, " choices"],
    cost: Float[np.ndarray, " choices"],
    keep: Bool[np.ndarray, " choices"],
) -> Int[np.ndarray, " frontier"]:
    """Columns on the lower convex hull of (cost, loss), by rising cost and falling loss.

    The rest is LP-dominated: a mixture of two frontier choices is as cheap and no worse
    (Chen, Wang, Cheng 2021, Proposition 1; Sinha and Zoltners 1979). Along the frontier
    the loss saved per cost falls strictly.

    >>> losses, cost = np.array([9.0, 6.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])
    >>> convex_frontier(losses, cost, np.ones(4, dtype=bool)).tolist()  # 6 is above the line
    [0, 2]
    """
    candidates = np.flatnonzero(keep)
    hull: list[int] = []
    for column in candidates[np.lexsort((losses[candidates], cost[candidates]))]:
        if hull and losses[column] >= losses[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            saved_before = (losses[a] - losses[b]) * (cost[column] - cost[b])
            saved_after = (losses[b] - losses[column]) * (cost[b] - cost[a])
            if saved_before > saved_after:
                break
            hull.pop()
        hull.append(int(column))
    return np.array(hull, dtype=np.int64)
