"""A walk over allocations that may exceed budgets at a price: strategic oscillation.

Under several tight budgets most good allocations are isolated: no single change, and no swap of
two, leads from one to another without exceeding a budget. So the walk minimises the loss plus a
price on every excess. A budget's price rises while the walk exceeds it and falls otherwise. The
walk therefore crosses the limits again and again; only allocations that fit are recorded.

References:
    Glover, Laguna (1997), Tabu search, sections 4.4 (strategic oscillation) and 4.5 (path
    relinking); Diaz, Fernandez (2001), A tabu search heuristic for the generalized assignment
    problem (prices that follow the excess).
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.problem import Reduced
from jmpq.solvers.knapsack.relaxation_bounds import cheapest_costs

Columns = Int[np.ndarray, " groups"]
_RISE, _FALL = 1.1, 1.02  # factors of a price per step: the walk returns fast, leaves slowly
_PAIRED = 64  # groups that may exchange in a step; of more groups a random sample
_LEAST, _MOST = 0.1, 100.0  # range of a price, in units of its first value


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """A problem as a list of options, (group, choice) pairs that are allowed.

    Attributes:
        reduced: The problem over groups.
        of: Group of every option, ascending.
        choice: Column of every option.
        first: Position of the first option of every group, then the number of options.
        losses: Loss of every option, nats per example.
        cross: Cross terms of every pair of options; None if there are none.
        costs: Costs of every option for the budgets that can bind, in units of their room.
        limits: Limits of those budgets, in the same units.
    """

    reduced: Reduced
    of: Int[np.ndarray, " options"]
    choice: Int[np.ndarray, " options"]
    first: Int[np.ndarray, " ends"]
    losses: Float[np.ndarray, " options"]
    cross: Float[np.ndarray, "options options"] | None
    costs: Float[np.ndarray, "budgets options"]
    limits: Float[np.ndarray, " budgets"]

    @classmethod
    def of_problem(cls, reduced: Reduced) -> "Options":
        """The options of a problem, without those that fit no allocation."""
        least = cheapest_costs(reduced)
        room = reduced.limits - least.sum(axis=1)
        room += 1e-9 * np.abs(reduced.limits)  # sums here are not exact
        above = reduced.costs - least[:, :, None]
        fits = reduced.allowed & (above <= room[:, None, None]).all(axis=0)
        fits |= reduced.allowed & ~fits.any(axis=1, keepdims=True)
        of, choice = np.nonzero(fits)
        costs = reduced.costs[:, of, choice]
        first = np.searchsorted(of, np.arange(len(reduced.losses) + 1))
        most = np.maximum.reduceat(costs, first[:-1], axis=1).sum(axis=1)
        binds = np.flatnonzero(most > reduced.limits)
        unit = np.maximum(costs[binds].max(axis=1, initial=0.0), 1e-300)
        cross = None
        if reduced.interactions is not None:
            every, size = of * reduced.losses.shape[1] + choice, reduced.losses.size
            cross = reduced.interactions.reshape(size, size)[np.ix_(every, every)]
        return cls(
            reduced=reduced,
            of=of,
            choice=choice,
            first=first,
            losses=reduced.losses[of, choice],
            cross=cross,
            costs=costs[binds] / unit[:, None],
            limits=reduced.limits[binds] / unit,
        )

    @functools.cached_property
    def number(self) -> Int[np.ndarray, "groups choices"]:
        """Position of every (group, column) among the options; -1 if it is not one."""
        number = np.full(self.reduced.losses.shape, -1)
        number[self.of, self.choice] = np.arange(len(self.of))
        return number

    def taken(self, columns: Columns) -> Int[np.ndarray, " groups"]:
        """Option of every group; its first one if the column is not an option."""
        taken = self.number[np.arange(len(columns)), columns]
        return np.where(taken < 0, self.first[:-1], taken)

    def columns(self, taken: Int[np.ndarray, " groups"]) -> Columns:
        """Inverse of `taken`."""
        return self.choice[taken]


class PricedWalk:
    """An allocation that changes one group at a time, with the effect of each change.

    Attributes:
        options: Options of the problem.
        taken: Option of every group.
        loss: Loss of the allocation, nats per example.
        prices: Price of one unit of excess, per budget.
        steps: Steps of `search`.
    """

    def __init__(self, options: Options, columns: Columns) -> None:
        self.options, self.steps = options, 0
        self.taken = options.taken(columns)
        self.field = options.losses.copy()  # what every option adds, or would add, to the loss
        if options.cross is not None:
            self.field += options.cross[self.taken].sum(axis=0)
        halves = options.losses[self.taken] + self.field[self.taken]
        self.loss = 0.5 * float(halves.sum())  # every cross term is in two fields
        self.over = options.costs[:, self.taken].sum(axis=1) - options.limits
        self.above = options.costs - options.costs[:, self.taken][:, options.of]
        change = np.abs(self.field - self.field[self.taken][options.of]).mean()
        spread = np.maximum(np.abs(self.above).mean(axis=1), 1e-300)
        self.first_prices = np.maximum(change, 1e-300) / spread
        self.prices = self.first_prices.copy()

    @property
    def columns(self) -> Columns:
        """The allocation."""
        return self.options.columns(self.taken)

    @property
    def fits(self) -> bool:
        """Whether every budget is met, up to rounding."""
        return bool((self.over <= 1e-9).all())

    def changes(self) -> tuple[Float[np.ndarray, " options"], Float[np.ndarray, " options"]]:
        """Change of the loss by every single change, and the priced objective after it."""
        change = self.field - self.field[self.taken][self.options.of]
        if not len(self.over):
            return change, change.copy()
        excess = np.maximum(self.over[:, None] + self.above, 0.0)
        return change, change + self.prices @ excess

    def exchange(
        self,
        change: Float[np.ndarray, " options"],
        banned: Bool[np.ndarray, " options"],
        groups: Int[np.ndarray, " some"],
    ) -> tuple[float, int, int]:
        """The best exchange of choices between two of these groups, if any.

        Args:
            change: Change of the loss by every single change.
            banned: Options that may not be taken.
            groups: Groups that may exchange.

        Returns:
            Priced change of the loss, counted as in `changes`, and the two options.
        """
        options, chosen = self.options, self.options.choice[self.taken]
        one, other = np.triu_indices(len(groups), 1)
        one, other = groups[one], groups[other]
        a, b = options.number[one, chosen[other]], options.number[other, chosen[one]]
        both = np.flatnonzero((a >= 0) & (b >= 0) & (chosen[one] != chosen[other]))
        a, b, one, other = a[both], b[both], self.taken[one[both]], self.taken[other[both]]
        free = ~(banned[a] | banned[b])
        a, b, one, other = a[free], b[free], one[free], other[free]
        if not len(a):
            return np.inf, -1, -1
        total = change[a] + change[b]
        if (cross := options.cross) is not None:
            # Each change alone counts its cross term with the other group's present choice;
            # together they have that of the two new choices instead.
            total += cross[a, b] + cross[one, other] - cross[one, b] - cross[a, other]
        excess = np.maximum(self.over[:, None] + self.above[:, a] + self.above[:, b], 0.0)
        total += self.prices @ excess
        best = int(total.argmin())
        return float(total[best]), int(a[best]), int(b[best])

    def change(self, option: int) -> None:
        """Give a group another choice."""
        options, group = self.options, self.options.of[option]
        old, self.taken[group] = self.taken[group], option
        self.loss += float(self.field[option] - self.field[old])
        if options.cross is not None:
            self.field += options.cross[option]
            self.field -= options.cross[old]
        own = slice(options.first[group], options.first[group + 1])
        self.over += options.costs[:, option] - options.costs[:, old]
        self.above[:, own] = options.costs[:, own] - options.costs[:, option, None]

    def reprice(self) -> None:
        """Raise the price of every budget that is exceeded, lower the others."""
        self.prices *= np.where(self.over > 1e-9, _RISE, 1 / _FALL)
        np.clip(
            self.prices, _LEAST * self.first_prices, _MOST * self.first_prices, out=self.prices
        )

    def search(
        self,
        least: float,
        *,
        patience: int,
        tenure: int,
        rng: np.random.Generator,
        stop: Callable[[], bool],
    ) -> tuple[Columns, float] | None:
        """The best allocation within the budgets on a walk from here; None if there is none.

        Each step makes the best change of one group. If no change improves the objective, the
        step makes the best change or the best exchange between two groups, even if it is worse.
        Of equally good changes it takes one at random: where losses are whole numbers most are
        equal, and the first of them would always move the same groups.
        A group may not return to a choice it left for `tenure` to twice `tenure` steps, drawn
        at random to break cycles. A return is allowed if it leads below `least` and below
        everything on the walk.

        Args:
            least: Loss that is already reached.
            patience: Steps without a better allocation before the walk ends.
            tenure: Least number of steps for which a group may not return to a choice.
            rng: Random generator of the tenures.
            stop: Function that ends the walk when it returns True; called now and then.
        """
        options = self.options
        banned = np.zeros(len(options.of), dtype=np.int64)
        best, lowest = None, np.inf
        if self.fits and options.reduced.fits(self.columns):
            best, lowest = self.taken.copy(), self.loss
        groups = np.arange(len(self.taken))
        draws, idle = rng.integers(tenure, 2 * tenure + 1, size=4096).tolist(), 0
        picks = rng.random(4096).tolist()
        for step in range(1, 1 + 1000 * patience):
            change, priced = self.changes()
            priced[self.taken] = np.inf
            free = np.where(banned > step, np.inf, priced)
            equal = np.flatnonzero(free == free.min())
            option = int(equal[int(picks[step % 4096] * len(equal))])
            # The best of all changes, banned or not, where it leads to the best so far.
            tempting, aspired = int(priced.argmin()), False
            if tempting != option and below(
                self.loss + float(change[tempting]), min(least, lowest)
            ):
                if aspired := bool((self.over + self.above[:, tempting] <= 1e-9).all()):
                    option = tempting
            move: tuple[int, ...] = (option,)
            here = float(self.prices @ np.maximum(self.over, 0.0))
            # Where no single change helps, budgets may leave room for exchanges alone.
            if len(self.over) and not aspired and free[option] >= here:
                if len(self.taken) > _PAIRED:
                    groups = rng.permutation(len(self.taken))[:_PAIRED]
                value, *pair = self.exchange(change, banned > step, groups)
                if value < free[option]:
                    move = tuple(pair)
            if len(move) == 1 and not (aspired or np.isfinite(free[option])):
                break  # nothing to change
            for each in move:
                banned[self.taken[options.of[each]]] = step + draws[step % 4096]
                self.change(each)
            self.reprice()
            self.steps += 1
            idle += 1
            # Budgets are added up step by step here; `Reduced.fits` adds exactly.
            if self.fits and below(self.loss, lowest) and options.reduced.fits(self.columns):
                best, lowest, idle = self.taken.copy(), self.loss, 0
            if idle >= patience or (step % 64 == 0 and stop()):
                break
        return None if best is None else (options.columns(best), lowest)

    def towards(self, columns: Columns, steps: int) -> None:
        """Take `steps` choices of another allocation, the best first."""
        goal = self.options.taken(columns)
        for _ in range(steps):
            differing = goal[goal != self.taken]
            if not len(differing):
                break
            self.change(int(differing[self.changes()[1][differing].argmin()]))


def below(value: float, other: float) -> bool:
    """Whether a value is less than another by more than rounding."""
    return bool(value < (other - 1e-12 * abs(other) if math.isfinite(other) else other))
