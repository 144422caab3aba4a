"""Tabu search on a loss with cross-layer terms, under any budgets."""

import dataclasses
import functools
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
        restarts: Walks in a row without a better allocation that end the search.
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

    restarts: int = 100
    patience: int | None = None
    tenure: int | None = None
    seed: int = 0
    time_limit_s: float = 10.0
    start: Solver | None = None
    bound: bool = True

    def __post_init__(self) -> None:
        counts = [name for name in ("patience", "tenure") if getattr(self, name) is not None]
        check_options(self, above_0=("time_limit_s",), from_0=("restarts",), from_1=counts)

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Search.

        Raises:
            Infeasible: If no allocation meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        fallback = functools.partial(cheapest_allocation, problem, reduced)
        if (cheapest_costs(reduced).sum(axis=1) > reduced.limits).any():
            fallback()  # which says what cannot be met
        if self.start is not None:
            columns = reduced.collapse(self.start(problem.separable()).columns)
        else:
            plain = dataclasses.replace(reduced, interactions=None)
            columns = priced_losses(plain, lp_bound(plain)[1])[0].argmin(axis=1)
        bound = row_bound(reduced) if self.bound else -np.inf
        deadline = started + self.time_limit_s
        best, _ = self.search(reduced, columns, deadline, fallback, bound)
        return solution_from_columns(
            problem,
            reduced.expand(best),
            bound=bound,
            solver="local_search",
            wall_s=time.perf_counter() - started,
        )

    def search(
        self,
        reduced: Reduced,
        columns: Columns,
        deadline: float,
        fallback: Callable[[], Columns],
        bound: float = -np.inf,
    ) -> tuple[Columns, float]:
        """The best allocation found from `columns`, and its loss.

        Args:
            reduced: The problem over groups.
            columns: First allocation; it may exceed the budgets.
            deadline: Time on the clock of `time.perf_counter`.
            fallback: Function that finds an allocation within the budgets, in case no walk
                does.
            bound: Lower bound on the loss; the search ends when it is reached.
        """
        options, rng = Options.of_problem(reduced), np.random.default_rng(self.seed)
        patience = max(50, len(options.of) // 2) if self.patience is None else self.patience
        walk, pool, failed = PricedWalk(options, columns), [], -1
        late = functools.partial(_is_past, deadline)
        while failed < self.restarts:
            tenure = self.tenure or int(rng.integers(1, 3 + len(columns) // 4))
            least = pool[0][0] if pool else np.inf
            found = walk.search(least, patience=patience, tenure=tenure, rng=rng, stop=late)
            failed += 1
            if found is not None:
                if below(found[1], least):
                    failed = 0
                pool = _kept(pool, *found)
                if not below(bound, pool[0][0]):
                    break
            elif not pool and (failed >= min(_TRIES, self.restarts) or late()):
                walk = PricedWalk(options, fallback())
                pool = _kept(pool, walk.columns, walk.loss)
                continue
            if late():
                break
            walk = self._start(options, pool or [(walk.loss, walk.columns)], rng)
        return pool[0][1], pool[0][0]

    def _start(
        self, options: Options, pool: list[tuple[float, Columns]], rng: np.random.Generator
    ) -> PricedWalk:
        """A walk from the path between two of the best allocations, or from a kick of one."""
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
