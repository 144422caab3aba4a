"""A quadratic knapsack as a matrix: loss = ⟨M, y yᵀ⟩ with y = (1, options, budgets left).

The vector y holds a 1, the indicator x of every option (a group takes one), and the slack
s = limit − cost·x ≥ 0 of every budget that can bind, in units of the cheapest allocation's
slack. Products of entries of y are nonnegative, and relaxations of y yᵀ keep that. With s they
also contain the products of options and budgets (Sherali and Adams 1990, level 1).
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.problem import Reduced

MARGIN = 1e-9  # tolerance of budgets in their units: only options beyond it are ruled out

Matrix = Float[np.ndarray, "size size"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Lifted:
    """The problem that is left when some groups are settled and some options ruled out.

    Attributes:
        matrix: Matrix M over (1, options, budgets).
        of: Group of every option, numbered from 0 without gaps, ascending.
        options: Number of every option in the whole problem, group·choices + choice.
        costs: Costs of every option, in the budget's unit.
        limits: Budgets minus the costs of settled groups, in the budgets' units.
        settled: Options of the settled groups, numbered as in `options`.
        barred: Pairs of options that are ruled out together.
    """

    matrix: Matrix
    of: Int[np.ndarray, " options"]
    options: Int[np.ndarray, " options"]
    costs: Float[np.ndarray, "budgets options"]
    limits: Float[np.ndarray, " budgets"]
    settled: Int[np.ndarray, " settled"]
    barred: Bool[np.ndarray, "options options"]

    @classmethod
    def of_problem(cls, reduced: Reduced) -> "Lifted":
        """Lift a problem; budgets that cannot bind and options that never fit are left out."""
        allowed = np.isfinite(reduced.losses)
        options = np.flatnonzero(allowed)
        of = options // reduced.losses.shape[1]
        least = np.where(allowed, reduced.costs, np.inf).min(axis=2)
        most = np.where(allowed, reduced.costs, -np.inf).max(axis=2)
        above = (reduced.costs - least[:, :, None]).reshape(len(least), allowed.size)
        above = above[:, options]
        left = reduced.limits - least.sum(axis=1)
        # A budget that the dearest allocation meets says nothing and needs no slack in y.
        binds = left < (most - least).sum(axis=1)
        spread = above.max(axis=1, initial=0.0)
        unit = np.where(left > 1e-12 * spread, left, np.maximum(spread, 1e-300))[binds]
        size = 1 + len(options) + int(binds.sum())
        matrix = np.zeros((size, size))
        inner = slice(1, 1 + len(options))
        # ⟨M, y yᵀ⟩ counts every pair of entries twice, (1, option) and (option, option) alike:
        # so half of the losses and half of the cross terms.
        matrix[0, inner] = matrix[inner, 0] = 0.5 * reduced.losses.ravel()[options]
        if reduced.interactions is not None:
            cross = reduced.interactions.reshape(allowed.size, allowed.size)
            matrix[inner, inner] = 0.5 * cross[np.ix_(options, options)]
        lifted = cls(
            matrix=matrix,
            of=of,
            options=options,
            costs=above[binds] / unit[:, None],
            limits=left[binds] / unit,
            settled=np.zeros(0, dtype=np.int64),
            barred=np.zeros((len(options), len(options)), dtype=bool),
        )
        rest = lifted.restrict(lifted.fits())
        assert rest is not None, "the budgets cannot be met"
        return rest[0]

    @property
    def groups(self) -> int:
        """Groups that are not settled."""
        return int(self.of[-1]) + 1 if len(self.of) else 0

    @property
    def cheapest(self) -> Float[np.ndarray, "budgets groups"]:
        """Least cost of each open group."""
        least = np.full((len(self.limits), self.groups), np.inf)
        for row, cost in zip(least, self.costs, strict=True):
            np.minimum.at(row, self.of, cost)
        return least

    @property
    def most_left(self) -> Float[np.ndarray, " budgets"]:
        """Slack of the budgets at the cheapest allocation."""
        return self.limits - self.cheapest.sum(axis=1)

    @property
    def left_with(self) -> Float[np.ndarray, "budgets options"]:
        """Largest slack of the budgets once an option is taken."""
        return self.most_left[:, None] - (self.costs - self.cheapest[:, self.of])

    def fits(self) -> Bool[np.ndarray, " options"]:
        """Options that some allocation within each budget takes."""
        return np.asarray((self.left_with >= -MARGIN).all(axis=0))

    def pair_fits(self) -> Bool[np.ndarray, "options options"]:
        """Pairs of options that fit each budget together and are not barred."""
        left, above = self.left_with, self.costs - self.cheapest[:, self.of]
        fits = (left[:, :, None] - above[:, None, :] >= -MARGIN).all(axis=0)
        return np.asarray(fits & ~self.barred)

    @property
    def allocations(self) -> float:
        """Number of allocations, ignoring budgets."""
        return float(np.prod(np.bincount(self.of).astype(float))) if len(self.of) else 1.0

    def restrict(
        self, keep: Bool[np.ndarray, " options"]
    ) -> tuple["Lifted", "Restriction"] | None:
        """Rule out options, repeatedly, until all that remain fit; settle finished groups.

        Returns:
            The remaining problem and the map from matrices over y to matrices over the new y;
            None if a group has no option left.
        """
        # Invariant: every allocation of options in `keep` takes the options `fixed` and, of the
        # open groups, options of `here`; `at` is where those stand in self.
        here, at = self, np.arange(len(self.of))
        fixed: list[int] = []
        while True:
            counts = np.bincount(here.of[keep], minlength=here.groups)
            if (counts == 0).any():
                return None
            single = (counts == 1)[here.of] & keep
            kept, taken = np.flatnonzero(keep & ~single), np.flatnonzero(single)
            fixed += at[taken].tolist()
            at = at[kept]
            if here.barred[np.ix_(taken, taken)].any():
                return None
            apart = here.barred[np.ix_(taken, kept)].any(axis=0)
            here = Lifted(
                matrix=self.matrix,
                of=np.unique(here.of[kept], return_inverse=True)[1].astype(np.int64),
                options=here.options[kept],
                costs=here.costs[:, kept],
                limits=here.limits - here.costs[:, taken].sum(axis=1),
                settled=np.concatenate([here.settled, here.options[taken]]),
                barred=here.barred[np.ix_(kept, kept)],
            )
            # What the settled groups have taken may leave no room for others, or bar them.
            keep = here.fits() & ~apart
            if not keep.all():
                continue
            size = 1 + len(self.of)
            restriction = Restriction(
                top=np.concatenate([[0], 1 + np.array(fixed, dtype=np.int64)]),
                rows=np.concatenate([[0], 1 + at, np.arange(size, len(self.matrix))]),
            )
            return dataclasses.replace(here, matrix=restriction.form(self.matrix)), restriction

    def below(self, upper: float) -> Iterator[tuple[float, Int[np.ndarray, " groups"]]]:
        """Allocations of loss below `upper`, by rising loss: loss, options of open groups.

        Budgets are met up to `MARGIN` only; check them again in exact sums.
        """
        members = [np.flatnonzero(self.of == g) for g in range(self.groups)]
        picks = np.zeros((0, 1), dtype=np.int64)
        loss, used = self.matrix[0, :1].copy(), np.zeros((len(self.limits), 1))
        inner = self.matrix[1:, 1:]
        for options in members:  # every partial allocation with every option of one more group
            own = 2 * self.matrix[0, 1 + options] + np.diagonal(inner)[options]
            with_others = 2 * inner[options][:, picks].sum(axis=1)  # [options, allocations]
            loss = (loss + own[:, None] + with_others).ravel()
            used = self.costs[:, options, None] + used[:, None, :]
            used = used.reshape(len(used), len(loss))
            new = np.repeat(options, picks.shape[1])
            picks = np.concatenate([np.tile(picks, len(options)), new[None]])
        fits = (used <= self.limits[:, None] + MARGIN).all(axis=0) & (loss < upper)
        below = np.flatnonzero(fits)
        for at in below[np.argsort(loss[below], kind="stable")]:
            yield float(loss[at]), picks[:, at]

    def columns(
        self, taken: Int[np.ndarray, " groups"], choices: int, groups: int
    ) -> Int[np.ndarray, " all_groups"]:
        """Columns of all groups when the open groups take the given options."""
        out = np.zeros(groups, dtype=np.int64)
        for option in itertools.chain(self.settled, self.options[taken]):
            out[option // choices] = option % choices
        return out


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Restriction:
    """Map from y to a shorter vector, with some options taken and others ruled out.

    Attributes:
        top: Entries that equal 1: the first, and the options taken.
        rows: Entries that are kept.
    """

    top: Int[np.ndarray, " top"]
    rows: Int[np.ndarray, " rows"]

    def form(self, matrix: Matrix) -> Float[np.ndarray, "rows rows"]:
        """Restrict a quadratic form in y to the shorter vector.

        Entries that equal 1 act like the first: their rows add up to the new first row.
        """
        out = matrix[np.ix_(self.rows, self.rows)]
        out[0] = out[:, 0] = matrix[self.top].sum(axis=0)[self.rows]
        out[0, 0] = matrix[np.ix_(self.top, self.top)].sum()
        return out

    def part(self, product: Matrix) -> Float[np.ndarray, "rows rows"]:
        """Restrict y yᵀ to the entries that are kept."""
        return product[np.ix_(self.rows, self.rows)]
