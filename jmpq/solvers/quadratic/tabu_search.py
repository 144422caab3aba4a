"""Tabu search over single changes and swaps, and with it a loss with cross-layer terms."""

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.quadratic.neighbourhood import Columns, Neighbourhood
from jmpq.solvers.quadratic.row_bound import row_bound
from jmpq.solvers.solver import Solver, check_options


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
        seed: Seed of the kicks.
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
        counts = ("patience", "tenure", "max_options")
        check_options(self, above_0=("time_limit_s",), from_0=("restarts",), from_1=counts)

    def __call__(self, problem: Problem) -> Solution:
        """Search.

        Raises:
            Infeasible: If no allocation meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        cheapest = cheapest_allocation(problem, reduced)
        columns = reduced.collapse(self.start(problem.separable()).columns)
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
        num_options = int(np.isfinite(reduced.losses).sum())
        return tabu_search(
            Neighbourhood(reduced, self.max_options),
            lambda columns: LossField.of(reduced, columns),
            columns,
            cheapest,
            restarts=self.restarts,
            patience=self.patience,
            tenure=min(self.tenure, 1 + num_options // 4),
            seed=self.seed,
            stop=lambda: time.perf_counter() > deadline,
        )


@runtime_checkable
class Walker(Protocol):
    """An allocation that a walk changes, and what it is worth."""

    columns: Columns

    @property
    def value(self) -> float:
        """What the walk minimises, of the present allocation."""
        ...

    def best_move(
        self, near: Neighbourhood, banned: Bool[np.ndarray, " options"], below: float
    ) -> tuple[int, ...] | None:
        """The best move of no banned option, or that leads below a value; None without one."""
        ...

    def change(self, option: int) -> None:
        """Give a group another choice."""
        ...


def tabu_search(
    near: Neighbourhood,
    walker: Callable[[Columns], Walker],
    columns: Columns,
    cheapest: Columns,
    *,
    restarts: int,
    patience: int,
    tenure: int,
    seed: int,
    stop: Callable[[], bool],
) -> tuple[Columns, float]:
    """The best allocation of several walks, and its value.

    The first walk starts from `columns`, the others from a kick of the best so far: a few
    groups take random choices.

    Args:
        near: Moves, and the budgets.
        walker: Sets out from an allocation.
        columns: A first allocation within the budgets.
        cheapest: Another that kicks fall back on.
        restarts: Walks after the first.
        patience: Steps without a better allocation before a walk ends.
        tenure: Steps for which a group may not return to a choice.
        seed: Seed of the kicks.
        stop: Asked before every move.
    """
    rng = np.random.default_rng(seed)
    best, least = columns, walker(columns).value
    for _ in range(restarts + 1):
        reached, value = _walk(near, walker(columns), least, patience, tenure, stop)
        if _below(value, least):
            best, least = reached, value
        if stop():
            break
        size = int(rng.integers(2, max(3, len(best) // 3) + 1))
        columns = near.kick(best, cheapest, size, rng)
    return best, least


def _walk(
    near: Neighbourhood,
    walker: Walker,
    least: float,
    patience: int,
    tenure: int,
    stop: Callable[[], bool],
) -> tuple[Columns, float]:
    """The best allocation of one walk; `least` is the value that a banned move has to beat."""
    best, lowest = walker.columns.copy(), walker.value
    choices = near.reduced.losses.shape[1]
    banned, idle = np.zeros(near.reduced.losses.size, dtype=np.int64), 0
    # The best move is taken even where it makes things worse. That the next moves do not undo
    # it, which would be a circle, is what the ban on the options left behind is for; `banned`
    # holds the step until which each of them may not come back.
    for step in range(1, 1 + 100 * patience):
        move = walker.best_move(near, banned > step, min(least, lowest))
        if move is None or stop():
            break
        for option in move:
            group = option // choices
            banned[group * choices + walker.columns[group]] = step + tenure
            walker.change(option)
        idle += 1
        # Moves hold the budgets up to rounding; `fits` adds their costs up exactly.
        if _below(walker.value, lowest) and near.reduced.fits(walker.columns):
            best, lowest, idle = walker.columns.copy(), walker.value, 0
        if idle >= patience:
            break
    return best, lowest


def _below(value: float, other: float) -> bool:
    """Less by more than rounding: a walk is not to go on for differences that are none."""
    return value < other - 1e-12 * abs(other)


@dataclasses.dataclass(eq=False)
class LossField:
    """A `Walker` on the problem's own loss: what every option adds to it, kept up to date."""

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
    def value(self) -> float:
        """The loss: own losses once, and every cross term, which two fields hold, once."""
        rows = np.arange(len(self.columns))
        halves = self.reduced.losses[rows, self.columns] + self.field[rows, self.columns]
        return 0.5 * float(halves.sum())

    def change(self, option: int) -> None:
        """Give a group another choice, in one pass over the cross terms of two options."""
        group, column = divmod(option, self.field.shape[1])
        old = int(self.columns[group])
        cross = self.reduced.interactions
        if cross is not None:
            self.field += cross[group, column] - cross[group, old]
        self.columns[group] = column

    def best_move(
        self, near: Neighbourhood, banned: Bool[np.ndarray, " options"], below: float
    ) -> tuple[int, ...] | None:
        """The move of least loss of no banned option, or that leads below a loss."""
        rows = np.arange(len(self.columns))
        change = self.field - self.field[rows, self.columns][:, None]
        needed = below - self.value - 1e-12 * abs(below)  # what a banned move has to reach
        single = np.where(near.single_changes(self.columns), change, np.inf).ravel()
        single[banned & (single >= needed)] = np.inf
        options = near.promising(self.columns, change)
        pair = self.pair_changes(near, options, change.ravel()[options])
        held = banned[options]
        pair[(held[:, None] | held[None, :]) & (pair >= needed)] = np.inf
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
            # Each change alone counts its cross term with the other group's present choice;
            # together they have that of the two new choices instead.
            now = options // choices * choices + self.columns[options // choices]
            total += cross[options[:, None], options] + cross[now[:, None], now]
            mixed = cross[now[:, None], options]
            total -= mixed + mixed.T
        return np.where(near.pairs(self.columns, options), total, np.inf)
