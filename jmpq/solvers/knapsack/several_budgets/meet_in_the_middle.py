"""Better allocations under several tight budgets, by joining lists of small changes.

A near-optimal allocation takes options of small reduced cost and leaves almost nothing of every
priced budget (`reduced_costs`). Very many allocations have small reduced costs. But changing
one or two groups rarely uses up ten budgets at once. That takes about a dozen changes whose
uses of all budgets add up to given amounts. Meet-in-the-middle finds vectors of a given sum:

1. The groups that change most cheaply are divided at random into four parts. For each part, the
   combinations of options with the least sums of reduced costs are listed.
2. The first two lists are joined, and so are the last two. Only pairs that use nearly a given
   amount of some budgets are kept, so that these budgets fit.
3. The two lists of pairs are joined on the remaining budgets: one side uses what the other
   leaves. The best pair within all budgets is the answer.

Rows are matched by the cells of a grid. Joining lists of N combinations then costs about as
much as sorting them, instead of comparing N² pairs.

References:
    Horowitz, Sahni (1974), Computing partitions with applications to the knapsack problem;
    Schroeppel, Shamir (1981), A T = O(2^(n/2)), S = O(2^(n/4)) algorithm for certain
    NP-complete problems; Wagner (2002), A generalized birthday problem (lists of pairs that
    agree in part).
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from jmpq.solvers.knapsack.several_budgets.reduced_costs import Columns, ReducedCosts

_SEARCHED = 320  # groups that one search may change
_PAIRS = 4  # pairs kept in a list, in units of the combinations
_LAST_PAIRS = 10  # the same of the last join, of which only the best is kept
_EARLY = 0.4  # part of the budgets that the lists of pairs fit
_LEAST_GAIN = 1e-3  # least improvement, as a part of the gap
_TRIED = 5  # pairs whose exact sums are computed
_SAMPLE = 20_000  # rows from which the grid is chosen
_FINEST = 2.0**-16  # least cell size, in units of the rows' range
_HASH = np.random.default_rng(0).integers(1, 2**62, size=1024) | 1  # an odd number a budget

Use = Float[np.ndarray, "_ budgets"]
Budgets = Int[np.ndarray, " some"]


def joined(
    costs: ReducedCosts, columns: Columns, *, states: int, rng: np.random.Generator
) -> Columns | None:
    """One search from an allocation within the budgets: a better one, or None.

    Args:
        costs: The problem at (nearly) optimal prices.
        columns: First allocation; groups that are not searched keep its choices.
        states: Number of combinations in each of the four lists.
        rng: Random generator for the parts and for the budgets' target amounts.
    """
    binding = rng.permutation(costs.binding)
    if not len(binding):
        return None
    early, late = np.split(binding, [round(_EARLY * len(binding))])
    groups = costs.cheapest_to_change(columns, _SEARCHED)
    # A better allocation's reduced costs sum to less than the gap; those of the groups that
    # are not searched are in already.
    others = np.delete(costs.above[np.arange(len(columns)), columns], groups)
    most = (1.0 - _LEAST_GAIN) * costs.gap(columns) - float(others.sum())
    slack = costs.slack(columns)
    # If choices use a budget in large amounts, no allocation may use it up. So half of the
    # searches aim at everything that is left of each budget, half at a part of it.
    aim = slack * (rng.random(len(slack)) < rng.choice([0.5, 1.0]))
    halves: tuple[_List, _List]
    if len(early):
        parts = np.array_split(rng.permutation(groups), 4)
        a, b, c, d = (_Combinations.of(costs, columns, part, most, states) for part in parts)
        if min(len(a.above), len(b.above), len(c.above), len(d.above)) == 0:
            return None
        target = _target(costs, (a, b, c, d), aim, rng)
        halves = (
            _Pairs.of(costs, a, b, target, early, _PAIRS * states, rng),
            _Pairs.of(costs, c, d, aim - target, early, _PAIRS * states, rng),
        )
    else:  # one budget to fit: two lists do
        one, other = np.array_split(rng.permutation(groups), 2)
        halves = (
            _Combinations.of(costs, columns, one, most, _PAIRS * states),
            _Combinations.of(costs, columns, other, most, _PAIRS * states),
        )
    first, second = halves
    i, j = _same_cells(costs, first.use, aim - second.use, late, _LAST_PAIRS * states, rng)
    gap = first.above[i] + second.above[j]
    rest = np.setdiff1d(np.arange(len(slack)), binding)
    for budget in (*late, *early, *rest):
        left = slack[budget] - first.use[i, budget] - second.use[j, budget]
        gap = gap + costs.prices[budget] * left
        stays = (left >= 0) & (gap < most)
        i, j, gap = i[stays], j[stays], gap[stays]
    for pair in np.argsort(gap, kind="stable")[:_TRIED]:
        better = columns.copy()
        first.write(int(i[pair]), better)
        second.write(int(j[pair]), better)
        if costs.reduced.fits(better):  # by exact sums
            return better
    return None


@runtime_checkable
class _List(Protocol):
    """Combinations of options, or pairs of them.

    Attributes:
        above: Sum of reduced costs of each row.
        use: Use of the budgets by each row, relative to the starting allocation.
    """

    @property
    def above(self) -> Float[np.ndarray, " states"]: ...

    @property
    def use(self) -> Use: ...

    def write(self, state: int, columns: Columns) -> None:
        """Put the options of one row into an allocation."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Combinations:
    """The combinations of some groups' options with the least sums of reduced costs.

    Most groups of a combination take their best option. A combination is therefore stored as a
    linked list of changes: the last change points to the one before.

    Attributes:
        above: Sum of reduced costs of each combination, rising.
        use: Use of the budgets by each combination, relative to the starting allocation.
        groups: Groups of the combinations.
        best: Option of zero reduced cost of each group.
        last: Last change of each combination; -1 for none.
        changes: Changes: position of the group in `groups`, its option, and the change before
            it (-1 for none).
    """

    above: Float[np.ndarray, " states"]
    use: Use
    groups: Int[np.ndarray, " part"]
    best: Int[np.ndarray, " part"]
    last: Int[np.ndarray, " states"]
    changes: Int[np.ndarray, "3 changes"]

    @classmethod
    def of(
        cls,
        costs: ReducedCosts,
        columns: Columns,
        groups: Int[np.ndarray, " part"],
        most: float,
        size: int,
    ) -> "_Combinations":
        """Up to `size` combinations of least sum, all below `most`."""
        rows = np.arange(len(groups))
        best = costs.above[groups].argmin(axis=1)
        dearer = costs.above[groups]
        dearer[rows, best] = np.inf
        # Invariant: of the groups that came in, `above` has the least sums, rising.
        above, last = np.zeros(int(most > 0)), np.full(int(most > 0), -1)
        changes, count = [np.zeros((3, 0), dtype=np.int64)], 0
        # Cheap changes come first: they fill the list, and dear ones then find little room.
        for place in np.argsort(dearer.min(axis=1), kind="stable"):
            row = dearer[place]
            options = np.flatnonzero(row < most)
            if not len(options):
                break  # nor has any later group
            ends = np.searchsorted(above, most - row[options])
            sums = [above] + [above[:e] + x for e, x in zip(ends, row[options], strict=True)]
            before = np.concatenate([last[:e] for e in ends])
            option, old = np.repeat(options, ends), len(above)
            above = np.concatenate(sums)
            kept = np.argsort(above, kind="stable")[:size]  # it merges rising runs
            above, added = above[kept], kept >= old
            new = kept[added] - old
            last = np.concatenate([last, before])[kept]
            last[added] = count + np.arange(len(new))
            count += len(new)
            changes.append(np.stack([np.full(len(new), place), option[new], before[new]]))
            if len(above) == size:
                most = float(above[-1])  # no sum falls as groups come in
        change = np.concatenate(changes, axis=1)
        return cls(
            above=above,
            use=_uses(costs, columns, groups, best, last, change),
            groups=groups,
            best=best,
            last=last,
            changes=change,
        )

    def write(self, state: int, columns: Columns) -> None:
        """Put the options of one combination into an allocation."""
        columns[self.groups] = self.best
        change = self.last[state]
        while change >= 0:
            place, option, change = self.changes[:, change]
            columns[self.groups[place]] = option


def _uses(
    costs: ReducedCosts,
    columns: Columns,
    groups: Int[np.ndarray, " part"],
    best: Int[np.ndarray, " part"],
    last: Int[np.ndarray, " states"],
    changes: Int[np.ndarray, "3 changes"],
) -> Use:
    """Use of the budgets by combinations, relative to `columns` (see `_Combinations`)."""
    tables = np.moveaxis(costs.reduced.costs[:, groups], 0, -1)
    rows = np.arange(len(groups))
    more = tables - tables[rows, best][:, None]
    use = np.tile(
        (tables[rows, best] - tables[rows, columns[groups]]).sum(axis=0), (len(last), 1)
    )
    state = np.flatnonzero(last >= 0)
    change = last[state]
    while len(state):  # one change after the other, the last ones first
        place, option, change = changes[:, change]
        use[state] += more[place, option]
        left = change >= 0
        state, change = state[left], change[left]
    return use


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Pairs:
    """Pairs from two lists that nearly use a given amount of some budgets.

    Attributes:
        above: Sum of reduced costs of each pair.
        use: Use of the budgets by each pair, relative to the starting allocation.
        lists: The two lists.
        rows: Row of each list in every pair.
    """

    above: Float[np.ndarray, " states"]
    use: Use
    lists: tuple[_List, _List]
    rows: tuple[Int[np.ndarray, " states"], Int[np.ndarray, " states"]]

    @classmethod
    def of(
        cls,
        costs: ReducedCosts,
        first: _List,
        second: _List,
        target: Float[np.ndarray, " budgets"],
        budgets: Budgets,
        size: int,
        rng: np.random.Generator,
    ) -> "_Pairs":
        """Up to `size` best pairs, by reduced costs plus priced distance from `target`."""
        i, j = _same_cells(costs, first.use, target - second.use, budgets, 2 * size, rng)
        if len(i) > size:
            off = first.use[:, budgets][i] + second.use[:, budgets][j] - target[budgets]
            order = first.above[i] + second.above[j] + np.abs(off) @ costs.prices[budgets]
            kept = np.argpartition(order, size - 1)[:size]
            i, j = i[kept], j[kept]
        return cls(
            above=first.above[i] + second.above[j],
            use=first.use[i] + second.use[j],
            lists=(first, second),
            rows=(i, j),
        )

    def write(self, state: int, columns: Columns) -> None:
        """Put the options of one pair into an allocation."""
        for part, rows in zip(self.lists, self.rows, strict=True):
            part.write(int(rows[state]), columns)


def _target(
    costs: ReducedCosts,
    lists: tuple[_List, _List, _List, _List],
    aim: Float[np.ndarray, " budgets"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " budgets"]:
    """Target use of the first pairs; the second pairs are to use the rest of the aim.

    Both lists should have many pairs near their target. So the distance of the aim from the
    mean use is shared between them, and the target is the nearest use among a thousand pairs.
    """
    means = [part.use.mean(axis=0) for part in lists]
    wanted = 0.5 * (aim + means[0] + means[1] - means[2] - means[3])
    first, second = (part.use[rng.integers(len(part.use), size=1000)] for part in lists[:2])
    use = first + second
    return use[(np.abs(use - wanted) @ costs.prices).argmin()]


def _same_cells(
    costs: ReducedCosts,
    first: Use,
    second: Use,
    budgets: Budgets,
    wanted: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Pairs of rows that are nearly equal in the priced use of some budgets.

    They share a cell of a grid. The grid is refined until about `wanted` pairs are left, at
    most twice as many.
    """
    if not (len(first) and len(second)):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    tables = [table[:, budgets] * costs.prices[budgets] for table in (first, second)]
    shift = rng.random(len(budgets))  # so that each search has other borders of cells
    some = [table[rng.permutation(len(table))[:_SAMPLE]] for table in tables]
    share = np.prod([len(a) / len(b) for a, b in zip(some, tables, strict=True)])
    span = max(float(np.ptp(table, axis=0).max()) for table in tables)
    width = np.full(len(budgets), span if span > 0 else 1.0)
    finest = _FINEST * width
    pairs = len(_Matches.of(some, width, shift))
    while pairs > share * wanted and (width > finest).any():
        widest = int(np.where(width > finest, width, 0.0).argmax())
        finer = np.where(np.arange(len(width)) == widest, 0.5 * width, width)
        fewer = len(_Matches.of(some, finer, shift))
        # Where hardly any rows come nearer to each other under one budget, its cells stay.
        if 8 * fewer < share * wanted:
            finest[widest] = np.inf
        else:
            width, pairs = finer, fewer
    return _Matches.of(tables, width, shift).pairs(2 * wanted)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Matches:
    """Rows of two tables that share the cells of a grid.

    Attributes:
        order: Rows of the first table, sorted by cell.
        other: Rows of the second table.
        start: Position in `order` of the first row in the cell of each row in `other`.
        count: Number of such rows.
    """

    order: Int[np.ndarray, " first"]
    other: Int[np.ndarray, " second"]
    start: Int[np.ndarray, " second"]
    count: Int[np.ndarray, " second"]

    @classmethod
    def of(
        cls,
        tables: list[Float[np.ndarray, "_ budgets"]],
        width: Float[np.ndarray, " budgets"],
        shift: Float[np.ndarray, " budgets"],
    ) -> "_Matches":
        # A cell's number is hashed to one integer. Two cells that share it cost time only.
        first, second = (
            (np.floor(table / width + shift).astype(np.int64) * _HASH[: len(width)]).sum(axis=1)
            for table in tables
        )
        order, other = np.argsort(first), np.argsort(second)
        first, second = first[order], second[other]
        start = np.searchsorted(first, second, side="left")
        count = np.searchsorted(first, second, side="right") - start
        return cls(order=order, other=other, start=start, count=count)

    def __len__(self) -> int:
        return int(self.count.sum())

    def pairs(self, most: int) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
        """Rows of both tables, pair by pair, at most `most` pairs."""
        total = np.cumsum(self.count)
        end = int(np.searchsorted(total, most, side="right"))
        start, count, total = self.start[:end], self.count[:end], total[:end]
        # The n-th pair of a row of the second table takes the n-th row from its start.
        first = np.repeat(start - (total - count), count)
        i = self.order[first + np.arange(len(first))]
        return i, np.repeat(self.other[:end], count)
