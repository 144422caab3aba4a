"""Tabu search over single changes and swaps, for a loss with cross-layer terms."""

import dataclasses
import time

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.quadratic.neighbourhood import Columns, Neighbourhood
from jmpq.solvers.quadratic.separable_bounds import row_bound
from jmpq.solvers.solver import Solver


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSearch:
    """Tabu search from the knapsack's answer and from random kicks: a `Solver`.

    Every step evaluates all single changes, and all pairs of them (swaps of budget between
    two groups), in a few array operations, and takes the best that holds every budget. An
    option that a group has left may not come back for some steps unless the answer is the
    best so far. Where a start is exhausted the next one is a kick of the best: a few groups
    take random choices. Of equal moves the first wins, so that the answer depends on the
    seed alone as long as the time limit is not met.

    Attributes:
        restarts: Kicks after the first start.
        patience: Steps without a better answer before the next kick.
        tenure: Steps for which a group may not return to a choice; at most a quarter of the
            number of options.
        max_options: See `Neighbourhood`.
        seed: Of the kicks.
        time_limit_s: Seconds for the search.
        start: Solves the problem without its cross-layer terms.
        bound: Compute a (cheap) lower bound, `row_bound`; where False the bound is that of
            `solution_from_columns`.

    References:
        Glover (1989), Tabu search, part I.
    """

    restarts: int = 100
    patience: int = 50
    tenure: int = 20
    max_options: int = 400
    seed: int = 0
    time_limit_s: float = 10.0
    start: Solver = dataclasses.field(default_factory=Greedy)
    bound: bool = True

    def __post_init__(self) -> None:
        if not (
            self.restarts >= 0
            and min(self.patience, self.tenure, self.max_options) >= 1
            and self.time_limit_s > 0
        ):
            raise ValueError(
                "The local search needs restarts of at least 0, patience, tenure and "
                "max_options of at least 1 and a time limit above 0; got "
                f"restarts={self.restarts}, patience={self.patience}, tenure={self.tenure}, "
                f"max_options={self.max_options}, time_limit_s={self.time_limit_s}."
            )

    def __call__(self, problem: Problem) -> Solution:
        """Search.

        Raises:
            Infeasible: If no allocation meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        cheapest = cheapest_allocation(problem, reduced)
        first = np.unique(problem.groups, return_index=True)[1]
        columns = self.start(problem.separable()).columns[first]
        best, _ = self.search(reduced, columns, cheapest, started + self.time_limit_s)
        return solution_from_columns(
            problem,
            reduced.expand(best),
            bound=row_bound(reduced) if self.bound else -np.inf,
            solver="local_search",
            wall_s=time.perf_counter() - started,
        )

    def search(
        self, reduced: Reduced, columns: Columns, cheapest: Columns, deadline: float
    ) -> tuple[Columns, float]:
        """The best allocation found from `columns`, and its loss.

        Args:
            reduced: The problem over groups.
            columns: A first allocation within the budgets.
            cheapest: Another that kicks fall back on.
            deadline: By `time.perf_counter`.
        """
        rng = np.random.default_rng(self.seed)
        near = Neighbourhood(reduced, self.max_options)
        best, least = columns, LossField.of(reduced, columns).loss
        for _ in range(self.restarts + 1):
            found, loss = self._tabu(near, columns, least, deadline)
            if loss < least - 1e-12 * abs(least):
                best, least = found, loss
            if time.perf_counter() > deadline:
                break
            size = int(rng.integers(2, max(3, len(best) // 3) + 1))
            columns = near.kick(best, cheapest, size, rng)
        return best, least

    def _tabu(
        self, near: Neighbourhood, columns: Columns, least: float, deadline: float
    ) -> tuple[Columns, float]:
        """One walk; `least` is the loss that a tabu move has to beat."""
        state = LossField.of(near.reduced, columns)
        best, loss = columns, state.loss
        banned = np.zeros(near.reduced.losses.size, dtype=np.int64)  # until this step
        tenure = min(self.tenure, 1 + int(np.isfinite(near.reduced.losses).sum()) // 4)
        idle = 0
        for step in range(1, 1 + 100 * self.patience):
            move = state.best_move(near, banned > step, min(least, loss))
            if move is None or time.perf_counter() > deadline:
                break
            for option in move:
                banned[state.change(option)] = step + tenure
            idle += 1
            if state.loss < loss - 1e-12 * abs(loss) and near.reduced.fits(state.columns):
                best, loss, idle = state.columns.copy(), state.loss, 0
            if idle >= self.patience:
                break
        return best, loss


@dataclasses.dataclass(eq=False)
class LossField:
    """An allocation with the loss that every option would add to it, kept up to date."""

    reduced: Reduced
    columns: Columns
    field: Float[np.ndarray, "groups choices"]  # own loss and cross terms with the others

    @classmethod
    def of(cls, reduced: Reduced, columns: Columns) -> "LossField":
        field = reduced.losses.copy()
        if reduced.interactions is not None:
            field += reduced.interactions[np.arange(len(columns)), columns].sum(axis=0)
        return cls(reduced, columns.copy(), field)

    @property
    def loss(self) -> float:
        """Half of every cross term stands in each of its two groups' fields."""
        rows = np.arange(len(self.columns))
        halves = self.reduced.losses[rows, self.columns] + self.field[rows, self.columns]
        return 0.5 * float(halves.sum())

    def change(self, option: int) -> int:
        """Give a group another choice; returns the option that it leaves."""
        group, column = divmod(option, self.field.shape[1])
        old = int(self.columns[group])
        cross = self.reduced.interactions
        if cross is not None:
            self.field += cross[group, column] - cross[group, old]
        self.columns[group] = column
        return group * self.field.shape[1] + old

    def best_move(
        self, near: Neighbourhood, banned: np.ndarray, least: float
    ) -> tuple[int, ...] | None:
        """The move of least loss that is not banned, or leads below `least`."""
        rows = np.arange(len(self.columns))
        change = self.field - self.field[rows, self.columns][:, None]
        below = least - self.loss - 1e-12 * abs(least)
        single = np.where(near.single_changes(self.columns), change, np.inf).ravel()
        single[banned & (single >= below)] = np.inf
        options = near.promising(self.columns, change)
        pair = self.pair_changes(near, options, change.ravel()[options])
        held = banned[options]
        pair[(held[:, None] | held[None, :]) & (pair >= below)] = np.inf
        a, b = int(single.argmin()), int(pair.argmin()) if pair.size else -1
        if b >= 0 and pair.flat[b] < single[a]:
            k, other = divmod(b, len(options))
            return int(options[k]), int(options[other])
        return (a,) if np.isfinite(single[a]) else None

    def pair_changes(
        self,
        near: Neighbourhood,
        options: Int[np.ndarray, " options"],
        change: Float[np.ndarray, " options"],
    ) -> Float[np.ndarray, "options options"]:
        """What two changes add to the loss, +inf where they break a budget."""
        total = change[:, None] + change[None, :]
        if self.reduced.interactions is not None:
            size = self.reduced.losses.size
            cross = self.reduced.interactions.reshape(size, size)
            choices = self.field.shape[1]
            now = options // choices * choices + self.columns[options // choices]
            total += cross[options[:, None], options] + cross[now[:, None], now]
            mixed = cross[now[:, None], options]
            total -= mixed + mixed.T
        return np.where(near.pairs(self.columns, options), total, np.inf)
