"""The inner loop of the core solver, compiled. Needs numba."""

import inspect

import numba
import numpy as np


def _extend(excess, loss, cost_steps, loss_steps, least_slope, most_slope, incumbent, capacity):
    """What `core_states.extend` does, for many states.

    The sorted copies of the states, one a choice, are merged by rising cost.
    """
    choices, states = len(cost_steps), len(excess)
    heads = np.zeros(choices, dtype=np.int64)
    size = min(choices * states, capacity)
    new_excess = np.empty(size)
    new_loss = np.empty(size)
    parent = np.empty(size, dtype=np.int32)
    columns = np.empty(size, dtype=np.int16)
    count = 0
    least = np.inf
    while True:
        best = -1
        best_excess = best_loss = np.inf
        for j in range(choices):
            if heads[j] < states:
                e = excess[heads[j]] + cost_steps[j]
                if e < best_excess or (
                    e == best_excess and loss[heads[j]] + loss_steps[j] < best_loss
                ):
                    best, best_excess, best_loss = j, e, loss[heads[j]] + loss_steps[j]
        if best < 0:
            break
        row = heads[best]
        heads[best] += 1
        if best_loss >= least:
            continue
        least = best_loss
        price = best_excess * (least_slope if best_excess <= 0 else most_slope)
        rounding = 2e-15 * (abs(best_loss) + abs(price)) if price < np.inf else 0.0
        if best_loss + price - rounding >= incumbent:
            continue
        if count == size:
            return new_excess, new_loss, parent, columns, False
        new_excess[count], new_loss[count] = best_excess, best_loss
        parent[count], columns[count] = row, best
        count += 1
    # copies, so that the room for the worst case is given back
    return (
        new_excess[:count].copy(),
        new_loss[:count].copy(),
        parent[:count].copy(),
        columns[:count].copy(),
        True,
    )


# Compiled with the import, or read from the disk: it is kept beside this file for the next
# process. Unwrapped: a type checker's wrapper, as in the tests, is no code to compile.
_STATES = "float64[::1], float64[::1]"
extend = numba.njit(
    f"Tuple(({_STATES}, int32[::1], int16[::1], boolean))"
    f"({_STATES}, {_STATES}, float64, float64, float64, int64)",
    cache=True,
)(inspect.unwrap(_extend))
