"""Steps along the convex frontiers of all groups, and how many of them fit the budgets."""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.problem import Reduced

_SORTED = 1 << 11  # so few steps are sorted; of more, only those about the break


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Steps:
    """Changes of one group each, in the order of the groups and of their frontiers.

    Attributes:
        group: Group whose choice changes.
        before: Column before the step.
        after: Column after the step.
        change: Change of every cost, in the cost's unit.
    """

    group: Int[np.ndarray, " steps"]
    before: Int[np.ndarray, " steps"]
    after: Int[np.ndarray, " steps"]
    change: Float[np.ndarray, "budgets steps"]

    def saved(self, table: Float[np.ndarray, "groups choices"]) -> Float[np.ndarray, " steps"]:
        """Decrease of the sum of a table by each step."""
        return _at(table, self.group, self.before) - _at(table, self.group, self.after)

    def priority(self, order: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
        """`order`, lowered so that no step precedes an earlier step of its group."""
        order = order.copy()
        joined = self.group[1:] == self.group[:-1]
        while len(late := np.flatnonzero(joined & (order[1:] > order[:-1]))):
            order[late + 1] = order[late]
        return order


def upgrades(
    reduced: Reduced,
    frontiers: Int[np.ndarray, "groups vertices"],
    start: Int[np.ndarray, " groups"],
) -> Steps:
    """Steps from `start` to the next frontier choice of less loss, then along the frontiers."""
    better = frontiers >= 0
    if np.array_equal(start, frontiers[:, 0]):
        better[:, 0] = False
    else:
        rows = np.arange(len(start))
        losses = reduced.losses[rows[:, None], frontiers]
        better &= losses < reduced.losses[rows, start][:, None]
    counts = better.sum(axis=1)
    group, place = np.repeat(np.arange(len(start)), counts), np.flatnonzero(better)
    flat = frontiers.ravel()
    after, before = flat[place], flat[place - 1]
    first = np.cumsum(counts)[counts > 0] - counts[counts > 0]
    before[first] = start[counts > 0]
    return _steps(reduced, group, before, after)


def downgrades(reduced: Reduced, frontiers: Int[np.ndarray, "groups vertices"]) -> Steps:
    """Steps from the end of every frontier (least loss) back to its cheapest choice."""
    backwards = frontiers[:, ::-1]
    group, place = np.nonzero(backwards[:, 1:] >= 0)
    inside = backwards[group, place] >= 0
    group, place = group[inside], place[inside]
    return _steps(reduced, group, backwards[group, place], backwards[group, place + 1])


def _steps(
    reduced: Reduced,
    group: Int[np.ndarray, " steps"],
    before: Int[np.ndarray, " steps"],
    after: Int[np.ndarray, " steps"],
) -> Steps:
    changes = [_at(cost, group, after) - _at(cost, group, before) for cost in reduced.costs]
    change = np.array(changes).reshape(len(reduced.costs), len(group))
    return Steps(group=group, before=before, after=after, change=change)


def _at(
    table: Float[np.ndarray, "groups choices"],
    group: Int[np.ndarray, " steps"],
    column: Int[np.ndarray, " steps"],
) -> Float[np.ndarray, " steps"]:
    """``table[group, column]``, twice as fast as indexing."""
    return np.ascontiguousarray(table).ravel().take(group * table.shape[1] + column)


def frontier_ends(frontiers: Int[np.ndarray, "groups vertices"]) -> Int[np.ndarray, " groups"]:
    """Last choice of every frontier."""
    return frontiers[np.arange(len(frontiers)), (frontiers >= 0).sum(axis=1) - 1]


def longest_prefix(
    priority: Float[np.ndarray, " steps"],
    change: Float[np.ndarray, "budgets steps"],
    room: Float[np.ndarray, " budgets"],
) -> Bool[np.ndarray, " steps"]:
    """Steps by falling priority, ties in order, up to the first that exceeds the room.

    If no step frees room, all steps above one key are taken at once and all below another are
    ignored, so that few remain to sort: linear time (Dyer 1984, Zemel 1984). The keys are
    guessed from a sample; the result does not depend on them.
    """
    taken = np.zeros(len(priority), dtype=bool)
    undecided, keys, left, room = np.arange(len(priority)), priority, change, room.copy()
    monotone = not (change < 0).any()
    while monotone and len(keys) > _SORTED:
        high, low = _about_the_break(keys, left, room)
        part = keys > high
        for upper in (part, (keys > low) & ~part):
            needed = left[:, upper].sum(axis=1)
            if (needed > room).any():
                part = upper  # the break is in there
                break
            taken[undecided[upper]] = True
            room -= needed
        else:
            part = keys <= low
        if part.all():  # equal keys
            break
        undecided, keys, left = undecided[part], keys[part], left[:, part]
    order = undecided[np.argsort(-keys, kind="stable")]
    over = (np.cumsum(change[:, order], axis=1) > room[:, None]).any(axis=0)
    taken[order[: int(over.argmax()) if over.any() else len(order)]] = True
    return taken


def _about_the_break(
    keys: Float[np.ndarray, " steps"],
    change: Float[np.ndarray, "budgets steps"],
    room: Float[np.ndarray, " budgets"],
) -> tuple[float, float]:
    """Two keys that probably bracket the break."""
    sample = slice(None, None, math.isqrt(len(keys)) // 4 + 1)
    order = np.argsort(-keys[sample])
    ranked, used = keys[sample][order], np.cumsum(change[:, sample][:, order], axis=1)
    fits = (used * (len(keys) / len(order)) <= room[:, None]).all(axis=0)
    place, margin = int(fits.sum()), 2 * math.isqrt(len(order))
    high, low = max(place - margin, 0), min(place + margin, len(order) - 1)
    return float(ranked[high]), float(ranked[low])
