"""The compiled frontiers of very many groups, one group after the other. Needs numba."""

import inspect

import numba
import numpy as np


def _hulls(losses, cost):
    """Columns on the lower convex hull of every group: `frontier.convex_frontiers`, compiled.

    The choices of a group are sorted by cost, then loss, then column; those that save no loss
    go, and then, round by round, all that are not below the line between their neighbours.
    These are the rounds of the vectorised code and its products, so the hulls are the same to
    the last bit.

    Returns:
        Columns, -1 behind the end, and the size of the largest hull.
    """
    groups, choices = losses.shape
    table = np.full((groups, choices), -1, dtype=np.int64)
    width = 0
    for group in range(groups):
        row, loss, price = table[group], losses[group], cost[group]
        count = 0
        for column in range(choices):
            if not np.isfinite(loss[column]):
                continue
            place = count
            while place > 0:
                other = row[place - 1]
                if price[other] < price[column]:
                    break
                if price[other] == price[column] and loss[other] <= loss[column]:
                    break
                row[place] = other
                place -= 1
            row[place] = column
            count += 1
        kept = min(count, 1)
        for k in range(1, count):
            if loss[row[k]] < loss[row[kept - 1]]:
                row[kept] = row[k]
                kept += 1
        row[kept:count] = -1
        count = kept + 1  # so that the first round takes place
        while kept < count:
            count, kept = kept, min(kept, 1)
            before = row[0]
            for k in range(1, count):
                here = row[k]
                if k + 1 < count:
                    after = row[k + 1]
                    saved, added = loss[before] - loss[here], price[here] - price[before]
                    next_saved, next_added = (
                        loss[here] - loss[after],
                        price[after] - price[here],
                    )
                    below = saved * next_added > next_saved * added
                else:
                    below = True
                if below:
                    row[kept] = here
                    kept += 1
                before = here
            row[kept:count] = -1
        width = max(width, kept)
    return table, width


hulls = numba.njit(
    "Tuple((int64[:, ::1], int64))(float64[:, ::1], float64[:, ::1])", cache=True
)(inspect.unwrap(_hulls))
