"""Better allocations under several tight budgets, by joining lists of small changes.

A near-optimal allocation takes options of small reduced cost and leaves next to nothing of any
budget that has a price (`reduced_costs`). There are astronomically many of the former. But ten
budgets at once are hardly ever used up by changing one or two groups. It takes a dozen changes,
whose uses of all budgets add up to given numbers; and searches for vectors of a given sum meet
in the middle:

1. The groups that change most cheaply fall at random into four parts. Of each part, the
   combinations of options with the least sum of reduced costs are listed.
2. The first two lists are joined, and so are the last two: the pairs that use a given amount of
   some budgets, nearly. They are a sample of all pairs, but one in which these budgets fit.
3. The two lists of pairs are joined by what the former leave of the other budgets and the
   latter use of them. The best pair within all budgets is the answer.

Lists of N combinations join at the price of sorting them, where N² pairs would have to be
looked at: rows are compared by the cells of a grid into which they fall.

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
_LEAST_GAIN = 1e-3  # part of the gap by which an allocation is better
_TRIED = 5  # pairs whose exact sums are looked at
_SAMPLE = 20_000  # rows by which the grid is made
_FINEST = 2.0**-16  # cells, in units of what the rows span
_HASH = np.random.default_rng(0).integers(1, 2**62, size=1024) | 1  # an odd number a budget

Use = Float[np.ndarray, "_ budgets"]
Budgets = Int[np.ndarray, " some"]


def joined(
    costs: ReducedCosts, columns: Columns, *, states: int, rng: np.random.Generator
) -> Columns | None:
    """One search from an allocation within the budgets: a better one, or None.

    Args:
        costs: The problem at (nearly) the best prices.
        columns: Where to start; the groups that are not searched stay as they are.
        states: Combinations in each of four lists.
        rng: For the parts, and for what is used of which budget.
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
    # No allocation may use up a budget of which choices take large lumps. So half of the
    # searches aim at all that is left of each budget, half at what is left of some.
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
        above: Sum of the reduced costs of each.
        use: What each uses of the budgets more than the starting allocation.
    """

    @property
    def above(self) -> Float[np.ndarray, " states"]: ...

    @property
    def use(self) -> Use: ...

    def write(self, state: int, columns: Columns) -> None:
        """Put the options of one of them into an allocation."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Combinations:
    """The combinations of some groups' options with the least sum of reduced costs.

    Attributes:
        above: Sum of the reduced costs of each combination.
        use: What it uses of the budgets more than the starting allocation.
        groups: The groups in the order in which they come in.
        options: For each group, the option of every combination of the groups up to it.
        parents: And the combination before it that each of these extends.
    """

    above: Float[np.ndarray, " states"]
    use: Use
    groups: Int[np.ndarray, " part"]
    options: list[Int[np.ndarray, " _"]]
    parents: list[Int[np.ndarray, " _"]]

    @classmethod
    def of(
        cls,
        costs: ReducedCosts,
        columns: Columns,
        groups: Int[np.ndarray, " part"],
        most: float,
        size: int,
    ) -> "_Combinations":
        """The `size` combinations of the least sum, of those with a sum below `most`."""
        above, options, parents = np.zeros(1), [], []
        for group in groups:
            row = costs.above[group]
            open_ = np.flatnonzero(row < most - above.min(initial=np.inf))
            sums = (above[:, None] + row[open_]).ravel()
            kept = np.flatnonzero(sums < most)
            if len(kept) > size:
                kept = kept[np.argpartition(sums[kept], size - 1)[:size]]
                # No sum falls as groups come in: what is above a whole list stays above it.
                most = float(sums[kept].max())
            above = sums[kept]
            parents.append(kept // max(len(open_), 1))
            options.append(open_[kept % max(len(open_), 1)])
        # Uses from the last group to the first; few options differ from the start's.
        tables = costs.reduced.costs
        use, state = np.zeros((len(above), len(tables))), np.arange(len(above))
        for group, option, parent in reversed(list(zip(groups, options, parents, strict=True))):
            taken = option[state]
            changed = np.flatnonzero(taken != columns[group])
            more = (tables[:, group] - tables[:, group, columns[group]][:, None]).T
            use[changed] += more[taken[changed]]
            state = parent[state]
        return cls(above=above, use=use, groups=groups, options=options, parents=parents)

    def write(self, state: int, columns: Columns) -> None:
        """Put the options of one combination into an allocation."""
        steps = zip(self.groups, self.options, self.parents, strict=True)
        for group, options, parents in reversed(list(steps)):
            columns[group] = options[state]
            state = parents[state]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Pairs:
    """Pairs from two lists that nearly use a given amount of some budgets.

    Attributes:
        above: Sum of the reduced costs of each pair.
        use: What it uses of the budgets more than the starting allocation.
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
        """The `size` best pairs by reduced costs and the priced distance from `target`."""
        i, j = _same_cells(costs, first.use, target - second.use, budgets, 2 * size, rng)
        above, use = first.above[i] + second.above[j], first.use[i] + second.use[j]
        if len(above) > size:
            off = np.abs(use[:, budgets] - target[budgets]) @ costs.prices[budgets]
            kept = np.argpartition(above + off, size - 1)[:size]
            i, j, above, use = i[kept], j[kept], above[kept], use[kept]
        return cls(above=above, use=use, lists=(first, second), rows=(i, j))

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
    """What the first pairs are to use, where the second are to use the rest of the aim.

    Both should have many such pairs. So the distance of the aim from the mean use is shared
    out, and of a thousand pairs the nearest use is taken, which some pair has exactly.
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

    These are the pairs in the same cell of a grid, made so fine that about `wanted` pairs are;
    at most twice as many.
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
    """Which rows of two tables fall into the same cells of a grid.

    Attributes:
        order: Rows of the first table, those in the same cell side by side.
        other: Rows of the second table.
        start: Where in `order` the rows in the cell of each of these start.
        count: How many they are.
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
        """Rows of both tables, pair by pair, up to `most`."""
        total = np.cumsum(self.count)
        end = int(np.searchsorted(total, most, side="right"))
        start, count, total = self.start[:end], self.count[:end], total[:end]
        # The n-th pair of a row of the second table takes the n-th row from its start.
        first = np.repeat(start - (total - count), count)
        i = self.order[first + np.arange(len(first))]
        return i, np.repeat(self.other[:end], count)
