"""Allocations within several budgets: priced choices, then repair, filling and swaps."""

import math
import time

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.problem import Reduced
from jmpq.solvers.knapsack.relaxation_bounds import Multipliers
from jmpq.solvers.knapsack.several_budgets.reduced_costs import Columns, ReducedCosts

SEARCHED = 2048  # groups that swaps may change
_MOVES = 300  # changes of one group that are combined to pairs
_STEPS = 200  # swaps of one descent
_OVER = (3.0, 1e4)  # penalties of a budget that is exceeded, in units of its price


def repaired(costs: ReducedCosts) -> Columns | None:
    """The best choices at the prices, repaired by swaps; None if the repair fails."""
    columns = swapped(costs, costs.above.argmin(axis=1))
    return columns if costs.reduced.fits(columns) else None


def raised(costs: ReducedCosts) -> Columns | None:
    """The best choices at prices raised until the budgets are met, then filled and swapped.

    None if no common factor of the prices meets the budgets.
    """
    columns = raise_prices(costs.reduced, costs.prices)
    if columns is None:
        return None
    return swapped(costs, fill(costs.reduced, columns, costs.prices))


def raise_prices(reduced: Reduced, prices: Multipliers) -> Columns | None:
    """The best choices at prices times the least common factor that meets the budgets.

    None if no factor does.
    """

    def at(factor: float) -> Columns:
        priced = reduced.losses + np.tensordot(factor * prices, reduced.costs, axes=1)
        return priced.argmin(axis=1)

    # Invariant from here on: `columns` are the choices at factor `high`.
    low, high = 1.0, 1.0
    columns = at(high)
    while not reduced.fits(columns):
        low, high = high, 2 * high
        if high > 1e6 or not prices.any():
            return None
        columns = at(high)
    # They fit. Halving keeps a factor that fits above one that does not, though between them
    # fitting need not be monotone with several budgets.
    for _ in range(30):
        if high - low <= 1e-9 * high:
            break
        middle = 0.5 * (low + high)
        trial = at(middle)
        if reduced.fits(trial):
            columns, high = trial, middle
        else:
            low = middle
    return columns


def fill(reduced: Reduced, columns: Columns, prices: Multipliers) -> Columns:
    """Spend what is left of the budgets, most loss saved per price first."""
    rows, columns = np.arange(len(columns)), columns.copy()
    worth = np.maximum(prices, 1e-12 * prices.max(initial=0.0))
    while True:
        left = reduced.limits - reduced.used(columns)
        saved = reduced.losses[rows, columns][:, None] - reduced.losses
        extra = reduced.costs - reduced.costs[:, rows, columns][:, :, None]
        # Every step saves loss and fits by itself, so the loop ends; which of them fit
        # together, each group's best by loss saved per price, is seen in their order.
        able = (saved > 0) & (extra <= left[:, None, None]).all(axis=0)
        price = np.tensordot(worth, np.maximum(extra, 0.0), axes=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(able, saved / price, -np.inf)
        best = ratio.argmax(axis=1)
        order = np.argsort(-ratio[rows, best], kind="stable")
        order = order[np.isfinite(saved[order, best[order]]) & able[order, best[order]]]
        taken = _prefixes(extra[:, order, best[order]], left)
        if not len(taken):
            return columns
        after = columns.copy()
        after[order[taken]] = best[order[taken]]
        if not reduced.fits(after):  # rounding at the limit: one by one is exact
            after = columns.copy()
            after[order[taken[0]]] = best[order[taken[0]]]
            if not reduced.fits(after):
                return columns
        columns = after


def _prefixes(
    costs: Float[np.ndarray, "budgets steps"], left: Float[np.ndarray, " budgets"]
) -> Int[np.ndarray, " taken"]:
    """Steps, in order, that fit together; a step that does not fit is skipped."""
    taken: list[Int[np.ndarray, " some"]] = []
    steps = np.arange(costs.shape[1])
    while len(steps):
        total = np.cumsum(costs[:, steps], axis=1)
        over = np.flatnonzero((total > left[:, None]).any(axis=0))
        count = int(over[0]) if len(over) else len(steps)
        taken.append(steps[:count])
        left = left - (total[:, count - 1] if count else 0.0)
        steps = steps[count + 1 :]
        steps = steps[(costs[:, steps] <= left[:, None]).all(axis=0)]
    return np.concatenate(taken) if taken else np.zeros(0, dtype=np.int64)


def swapped(costs: ReducedCosts, columns: Columns, deadline: float = math.inf) -> Columns:
    """Change one or two groups at a time while the penalised gap falls.

    The start may exceed the budgets. The objective is the gap, with a multiple of the price as
    the penalty on an exceeded budget. With a small multiple the descent may exceed one budget
    for a while to satisfy the others; a descent with a large multiple follows.
    """
    reduced = costs.reduced
    groups = costs.cheapest_to_change(columns, SEARCHED)
    if not len(groups):
        return columns
    tables = costs.above[groups], reduced.costs[:, groups]
    part, slack = columns[groups], costs.slack(columns)
    for over in _OVER:
        part, slack = _descend(costs, *tables, part, slack, over * costs.penalties, deadline)
    better = columns.copy()
    better[groups] = part
    return better if reduced.fits(better) or not reduced.fits(columns) else columns


def _descend(
    costs: ReducedCosts,
    above: Float[np.ndarray, "groups choices"],
    tables: Float[np.ndarray, "budgets groups choices"],
    columns: Columns,
    slack: Float[np.ndarray, " budgets"],
    penalties: Multipliers,
    deadline: float,
) -> tuple[Columns, Float[np.ndarray, " budgets"]]:
    """Repeat the best single change or pair of changes; return the columns and the slack."""
    prices, rows, columns = costs.prices, np.arange(len(columns)), columns.copy()
    budgets, _, choices = tables.shape

    for _ in range(_STEPS):
        # A move is a group and an option for it: what it adds, and what more it uses.
        added = (above - above[rows, columns][:, None]).ravel()
        more = tables - tables[:, rows, columns][:, :, None]
        more = np.moveaxis(more, 0, -1).reshape(-1, budgets)
        now = float(_priced(slack[None], prices, penalties)[0])
        single = added + _priced(slack - more, prices, penalties) - now
        # Of the moves that add least, all pairs: budget by budget, so that tables stay small.
        few = np.argsort(added, kind="stable")[:_MOVES]
        few = few[np.isfinite(added[few])]
        pairs = added[few][:, None] + added[few] - now
        for budget in range(budgets):
            left = (slack[budget] - more[few, budget])[:, None] - more[few, budget]
            pairs += np.maximum(prices[budget] * left, -penalties[budget] * left)
        group = few // choices
        pairs[group[:, None] == group] = np.inf
        one, two = int(single.argmin()), divmod(int(pairs.argmin()), len(few))
        if min(single[one], pairs[two]) >= -1e-9 * now or time.perf_counter() > deadline:
            break
        taken = [one] if single[one] <= pairs[two] else [int(few[move]) for move in two]
        for move in taken:
            columns[move // choices] = move % choices
            slack = slack - more[move]
    return columns, slack


def _priced(
    slack: Float[np.ndarray, "moves budgets"], prices: Multipliers, penalties: Multipliers
) -> Float[np.ndarray, " moves"]:
    """Price of unused budgets plus penalty of exceeded ones."""
    return np.maximum(prices * slack, -penalties * slack).sum(axis=1)
