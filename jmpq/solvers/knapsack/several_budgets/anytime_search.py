"""Several budgets: prices and their bound, then searches, then the integer program."""

import dataclasses
import time

import numpy as np

from jmpq.kinds import check_kinds
from jmpq.problem.exact_sum import exact_sum
from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import OPTIMALITY, Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.integer_program import Exact
from jmpq.solvers.knapsack.relaxation_bounds import cheapest_costs, lp_bound
from jmpq.solvers.knapsack.several_budgets.meet_in_the_middle import joined
from jmpq.solvers.knapsack.several_budgets.reduced_costs import Columns, ReducedCosts
from jmpq.solvers.knapsack.several_budgets.repair_and_swap import (
    SEARCHED,
    raised,
    repaired,
    swapped,
)
from jmpq.solvers.solver import check_options

_SMALL, _LARGE = (2_000, 10_000), (50_000, 150_000)  # combinations in a list of one search
_FAILURES = 3  # searches of one size without a better allocation before the next size
_FEW = 5  # budgets that bind, up to which integer programs mostly end


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeveralBudgets:
    """Prices, searches and the integer program under many tight budgets: a `Solver`.

    The prices of the linear relaxation give a bound and an allocation, which is repaired and
    improved by swaps and by meet-in-the-middle searches. The integer program then runs over the
    options that reduced costs do not exclude. When time runs out, the best allocation is
    returned as ``feasible`` with the best bound proven. Runs that end before the time limit
    give the same answer.

    Attributes:
        time_limit_s: Seconds for the whole call; the linear relaxation, and the search for a
            first allocation within the budgets, are not interrupted.
        relative_gap: Gap at which to stop, relative to the loss above the sum of the groups'
            least losses; 0 for the optimum.
        integer_program: Whether to run the integer program. Without it the bound is the linear
            relaxation's, and the searches end when they find nothing better.
        seed: Seed of the searches.
    """

    time_limit_s: float = 60.0
    relative_gap: float = 0.0
    integer_program: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, above_0=("time_limit_s",), from_0=("relative_gap",))

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Raises:
            Infeasible: If no allocation meets the budgets.
            RuntimeError: If the integer program fails.
        """
        started = time.perf_counter()
        search = _Search.of(problem, self, started + self.time_limit_s)
        if self.integer_program:
            # The better the allocation is, the fewer options the integer program is left with.
            # Where it ends, the optimum is proven. That it does is likely where few budgets
            # bind; else it is searches that find more in the same time.
            if len(search.costs.binding) > _FEW:
                search.join(_SMALL, share=0.4)
                search.program(share=0.15)
                search.join(_LARGE, share=0.8)
            else:
                search.join(_SMALL[:1], share=0.1, failures=1)
                search.program(share=0.7)
                search.join((*_SMALL, *_LARGE), share=0.6)
            search.program(share=1.0)
        else:
            search.join((*_SMALL, *_LARGE), share=1.0)
        return solution_from_columns(
            problem,
            search.reduced.expand(search.columns),
            bound=search.bound,
            solver="several_budgets",
            wall_s=time.perf_counter() - started,
        )


@dataclasses.dataclass(kw_only=True)
class _Search:
    """The best allocation and bound so far.

    Attributes:
        options: Options of the solver.
        reduced: Problem without options that exceed a budget in every allocation.
        costs: Reduced costs of the problem at the best prices.
        deadline: Time on the clock of `time.perf_counter`.
        columns: Best allocation so far, always within the budgets.
        bound: Proven lower bound on the loss of every allocation within the budgets.
    """

    options: SeveralBudgets
    reduced: Reduced
    costs: ReducedCosts
    deadline: float
    columns: Columns
    bound: float

    @classmethod
    def of(cls, problem: Problem, options: SeveralBudgets, deadline: float) -> "_Search":
        """The bound of the linear relaxation, and an allocation within the budgets.

        Raises:
            Infeasible: If there is none.
        """
        reduced = problem.reduced()
        part = _affordable(reduced)
        bound, prices = lp_bound(part)
        costs = ReducedCosts.of(part, prices)
        columns = repaired(costs)
        if columns is None or len(columns) > SEARCHED:
            columns = _better(part, columns, raised(costs))
        if columns is None:  # or there is none, and this says why
            columns = swapped(costs, cheapest_allocation(problem, reduced), deadline)
        return cls(
            options=options,
            reduced=part,
            costs=costs,
            deadline=deadline,
            columns=columns,
            bound=bound,
        )

    def join(self, sizes: tuple[int, ...], *, share: float, failures: int = _FAILURES) -> None:
        """Search with lists of the given sizes in a share of the remaining time.

        The searches of one size end after `failures` failures in a row.
        """
        end, per_state = self._end(share), 0.0
        rng = np.random.default_rng((self.options.seed, *sizes))
        for states in sizes:
            failed = 0
            while failed < failures and not self.done():
                started = time.perf_counter()
                if started + per_state * states >= end:
                    return
                better = joined(self.costs, self.columns, states=states, rng=rng)
                failed = failed + 1 if better is None else 0
                if better is not None:
                    self.columns = swapped(self.costs, better, end)
                per_state = (time.perf_counter() - started) / states

    def program(self, *, share: float) -> None:
        """Run the integer program from the best allocation in a share of the time left."""
        if self.done() or time.perf_counter() >= self.deadline:
            return
        exact = Exact(relative_gap=self.options.relative_gap)
        self.columns, self.bound = exact.improve(
            self.reduced, self.columns, self.bound, self.costs.prices, self._end(share)
        )

    def done(self) -> bool:
        """Whether the proven gap is small enough."""
        loss = _loss(self.reduced, self.columns)
        least = exact_sum(self.reduced.losses.min(axis=1))
        enough = max(self.options.relative_gap * (loss - least), OPTIMALITY * abs(loss))
        return bool(loss - self.bound <= enough)

    def _end(self, share: float) -> float:
        now = time.perf_counter()
        return now + share * (self.deadline - now)


def _affordable(reduced: Reduced) -> Reduced:
    """The problem without options that exceed a budget with all other groups at cheapest.

    Without them the linear relaxation proves more. If a group would be left without options,
    the problem is returned unchanged: no allocation meets the budgets.
    """
    keep, least = reduced.allowed, cheapest_costs(reduced)
    for table, row, limit in zip(reduced.costs, least, reduced.limits, strict=True):
        room = exact_sum(np.append(-row, limit))
        keep = keep & (table - row[:, None] <= room + 1e-12 * abs(limit))
    if not keep.any(axis=1).all() or keep[reduced.allowed].all():
        return reduced
    return dataclasses.replace(reduced, losses=np.where(keep, reduced.losses, np.inf))


def _better(reduced: Reduced, one: Columns | None, other: Columns | None) -> Columns | None:
    """The allocation of less loss; either may be None."""
    if one is None or other is None:
        return other if one is None else one
    return one if _loss(reduced, one) <= _loss(reduced, other) else other


def _loss(reduced: Reduced, columns: Columns) -> float:
    return exact_sum(reduced.losses[np.arange(len(columns)), columns])
