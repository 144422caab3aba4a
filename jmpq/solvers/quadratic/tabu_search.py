"""Tabu search on a loss with cross-layer terms, under any budgets."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable

import numpy as np

from jmpq.kinds import check_kinds
from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.relaxation_bounds import cheapest_costs, lp_bound, priced_losses
from jmpq.solvers.quadratic.priced_walk import Columns, Options, PricedWalk, below
from jmpq.solvers.quadratic.row_bound import row_bound
from jmpq.solvers.solver import Solver, check_options

_POOL = 8  # allocations that paths are laid between
_TRIES = 20  # walks that meet no budget before an integer program looks for an allocation


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSearch:
    """Walks of `PricedWalk` from the knapsack's answer, then from new starts: a `Solver`.

    A new start lies on the path between two of the best allocations, or is a kick of one of
    them, in which some groups take random choices. It may exceed the budgets. Below the time
    limit the answer depends only on the seed.

    Attributes:
        restarts: Walks in a row without a better allocation that end the search; None to
            search until time is up.
        patience: Steps without a better allocation that end a walk; None for half as many as
            there are options, at least 50: many short walks find more than a few long ones.
        tenure: Least number of steps for which a group may not return to a choice; None for a
            number drawn for every walk, at most a quarter of the groups.
        seed: Seed of starts and tenures.
        time_limit_s: Seconds for the search.
        start: Solver of the problem without cross-layer terms; None for the best choices at
            the prices of the linear relaxation.
        bound: Whether to compute the cheap lower bound `row_bound`; if False, the bound is
            that of `solution_from_columns`.
    """

    restarts: int | None = 100
    patience: int | None = None
    tenure: int | None = None
    seed: int = 0
    time_limit_s: float = 10.0
    start: Solver | None = None
    bound: bool = True

    def __post_init__(self) -> None:
        given = {name for name in vars(self) if getattr(self, name) is not None}
        check_options(
            self,
            above_0=("time_limit_s",),
            from_0=[name for name in ("restarts",) if name in given],
            from_1=[name for name in ("patience", "tenure") if name in given],
        )

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Search.

        Raises:
            Infeasible: If no allocation meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        walks = self.walks(problem, reduced)
        bound = row_bound(reduced) if self.bound else -np.inf
        walks.go_on(started + self.time_limit_s, restarts=self.restarts, bound=bound)
        return solution_from_columns(
            problem,
            reduced.expand(walks.best),
            bound=bound,
            solver="local_search",
            wall_s=time.perf_counter() - started,
        )

    def walks(self, problem: Problem, reduced: Reduced) -> "Walks":
        """The walks of this search, none of which has begun.

        Args:
            problem: Problem to solve.
            reduced: The problem over groups.

        Raises:
            Infeasible: If no allocation meets one of the budgets.
        """
        fallback = functools.partial(cheapest_allocation, problem, reduced)
        if (cheapest_costs(reduced).sum(axis=1) > reduced.limits).any():
            fallback()  # which says what cannot be met
        if self.start is not None:
            columns = reduced.collapse(self.start(problem.separable()).columns)
        else:
            plain = dataclasses.replace(reduced, interactions=None)
            columns = priced_losses(plain, lp_bound(plain)[1])[0].argmin(axis=1)
        return Walks(self, reduced, columns, fallback)


class Walks:
    """The walks of a `LocalSearch`, which go on where they stopped.

    Attributes:
        options: Options of the problem.
        pool: The best allocations with their losses, by rising loss; paths are laid between
            them.
        steps: Steps that were taken.
    """

    def __init__(
        self,
        search: LocalSearch,
        reduced: Reduced,
        columns: Columns,
        fallback: Callable[[], Columns],
    ) -> None:
        """Prepare the first walk.

        Args:
            search: The search, whose options hold.
            reduced: The problem over groups.
            columns: First allocation; it may exceed the budgets.
            fallback: Function that finds an allocation within the budgets, in case no walk
                does.
        """
        self.options, self.fallback = Options.of_problem(reduced), fallback
        self.pool: list[tuple[float, Columns]] = []
        self.steps = 0
        half = max(50, len(self.options.of) // 2)
        self._patience = half if search.patience is None else search.patience
        self._tenure, self._rng = search.tenure, np.random.default_rng(search.seed)
        self._next: PricedWalk | None = PricedWalk(self.options, columns)

    @property
    def best(self) -> Columns:
        """The best allocation so far."""
        return self.pool[0][1]

    def start_from(self, columns: Columns) -> None:
        """Let the next walk start from an allocation; it may exceed the budgets."""
        self._next = PricedWalk(self.options, columns)

    def go_on(
        self,
        deadline: float,
        *,
        restarts: int | None = None,
        steps: int | None = None,
        bound: float = -math.inf,
    ) -> None:
        """Walk until one of the limits is reached; afterwards there is an allocation.

        Args:
            deadline: Time on the clock of `time.perf_counter`.
            restarts: Walks in a row without a better allocation, after the first one; None
                for any number.
            steps: Number of steps, counted from the very first one; None for any number.
            bound: Lower bound on the loss; an allocation that reaches it is not improved.
        """
        late, failed, last = functools.partial(_is_past, deadline), -1, None
        most = math.inf if restarts is None else restarts
        while failed < most and (steps is None or self.steps < steps or not self.pool):
            walk = last = self._next or self._start(last)
            least = self.pool[0][0] if self.pool else np.inf
            self._next, failed = None, failed + 1
            found = walk.search(
                least,
                patience=self._patience,
                tenure=self._tenure or int(self._rng.integers(1, 3 + len(walk.taken) // 4)),
                rng=self._rng,
                stop=late,
            )
            self.steps += walk.steps
            if found is not None:
                failed = 0 if below(found[1], least) else failed
                self.pool = _kept(self.pool, *found)
                if not below(bound, self.pool[0][0]):
                    break
            elif not self.pool and (failed >= min(_TRIES, most) or late()):
                self._next = first = PricedWalk(self.options, self.fallback())
                self.pool = [(first.loss, first.columns)]
                continue
            if late():
                break

    def _start(self, last: PricedWalk | None) -> PricedWalk:
        """A walk from the path between two of the best allocations, or from a kick of one."""
        rng, options = self._rng, self.options
        pool = self.pool or ([] if last is None else [(last.loss, last.columns)])
        picks = rng.permutation(len(pool))
        walk = PricedWalk(options, pool[picks[0]][1])
        if len(pool) > 1 and rng.random() < 0.5:
            goal = pool[picks[1]][1]
            apart = int((goal != walk.columns).sum())
            walk.towards(goal, int(rng.integers(1, max(2, apart))))
            return walk
        groups = len(walk.taken)
        size = round(min(2, groups) * (max(2, groups) / 2) ** rng.random())  # up to all of them
        for group in rng.permutation(groups)[:size]:
            walk.change(int(rng.integers(options.first[group], options.first[group + 1])))
        return walk


def _is_past(deadline: float) -> bool:
    return time.perf_counter() > deadline


def _kept(
    pool: list[tuple[float, Columns]], columns: Columns, loss: float
) -> list[tuple[float, Columns]]:
    """The best allocations by rising loss; any two differ in more than a few groups."""
    apart = max(1, len(columns) // 20)
    near = [int((columns != other).sum()) < apart for _, other in pool]
    if any(close and value <= loss for close, (value, _) in zip(near, pool, strict=True)):
        return pool
    others = [entry for close, entry in zip(near, pool, strict=True) if not close]
    return sorted([*others, (loss, columns)], key=lambda entry: entry[0])[:_POOL]
