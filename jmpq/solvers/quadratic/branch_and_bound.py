"""The optimum of a loss with cross-layer terms: branch and bound on a semi-definite bound."""

import dataclasses
import heapq
import itertools
import math
import time

import numpy as np
from jaxtyping import Float

from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import OPTIMALITY, Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.quadratic.lifted import Lifted
from jmpq.solvers.quadratic.neighbourhood import Columns
from jmpq.solvers.quadratic.semidefinite import Iterate, Relaxation
from jmpq.solvers.quadratic.separable_bounds import row_bound
from jmpq.solvers.quadratic.tabu_search import LocalSearch


@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchAndBound:
    """Branch and bound on the doubly nonnegative relaxation: a `Solver`.

    The local search finds an allocation; the relaxation of `semidefinite` bounds what is left
    of the problem, and its multiplier rules out every option whose own bound reaches the loss
    of that allocation. What remains is divided by the choices of one group, the part of least
    bound first, until parts are small enough to be tried in full. A part starts from the
    multiplier of the one that it came from.

    Whatever happens, the bound is the least of all open parts: out of time, the best
    allocation is ``feasible`` with the gap that is left.

    Attributes:
        time_limit_s: Seconds for the whole call, the local search's included.
        max_parts: Parts looked at before giving up; 1 for the bound of the relaxation alone.
        enumerate_up_to: Parts of so many allocations are tried in full.
        search: The local search; its time is at most a third of `time_limit_s`.
    """

    time_limit_s: float = 60.0
    max_parts: int = 1_000_000
    enumerate_up_to: int = 50_000
    search: LocalSearch = dataclasses.field(default_factory=LocalSearch)

    def __post_init__(self) -> None:
        if not (self.time_limit_s > 0 and min(self.max_parts, self.enumerate_up_to) >= 1):
            raise ValueError(
                "Branch and bound needs a time limit above 0 and max_parts and "
                f"enumerate_up_to of at least 1; got time_limit_s={self.time_limit_s}, "
                f"max_parts={self.max_parts}, enumerate_up_to={self.enumerate_up_to}."
            )

    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Raises:
            Infeasible: If no allocation meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        seconds = min(self.search.time_limit_s, self.time_limit_s / 3)
        search = dataclasses.replace(self.search, time_limit_s=seconds, bound=False)
        first = np.unique(problem.groups, return_index=True)[1]
        tree = _Tree(
            reduced=reduced,
            cheapest=cheapest_allocation(problem, reduced),
            best=search(problem).columns[first],
            enumerate_up_to=self.enumerate_up_to,
            deadline=started + self.time_limit_s,
        )
        tree.grow(Lifted.of_problem(reduced), row_bound(reduced), self.max_parts)
        return solution_from_columns(
            problem,
            reduced.expand(tree.best),
            bound=min(tree.bound, tree.loss),
            solver="branch_and_bound",
            wall_s=time.perf_counter() - started,
        )


@dataclasses.dataclass(eq=False, kw_only=True)
class _Tree:
    """The open parts, by bound, and the best allocation so far."""

    reduced: Reduced
    cheapest: Columns
    best: Columns
    enumerate_up_to: int
    deadline: float
    loss: float = math.inf
    closed: float = math.inf  # the least bound of the parts that were closed
    parts: int = 0
    heap: list[tuple[float, int, Lifted, Iterate | None]] = dataclasses.field(
        default_factory=list
    )
    count: itertools.count = dataclasses.field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.loss = self._loss(self.best)

    @property
    def bound(self) -> float:
        """Of all parts, open and closed."""
        return min([self.closed, *(part[0] for part in self.heap[:1])])

    @property
    def enough(self) -> float:
        """A part with this bound holds nothing better, up to the tolerance of an optimum."""
        own = self.reduced.losses[np.arange(len(self.best)), self.best]
        return self.loss - 0.5 * OPTIMALITY * max(math.fsum(np.abs(own)), abs(self.loss))

    def grow(self, root: Lifted, bound: float, max_parts: int) -> None:
        """Look at parts, that of least bound first, until none is open or time is up."""
        self._push(bound, root, None)
        while self.heap and self.parts < max_parts and time.perf_counter() < self.deadline:
            bound, _, part, start = heapq.heappop(self.heap)
            if bound >= self.enough:
                self._close(bound)
                continue
            self.parts += 1
            self._look_at(bound, part, start)

    def _look_at(self, bound: float, part: Lifted, start: Iterate | None) -> None:
        """Close a part, divide it, or put it back with a better bound where time is up."""
        while part.allocations > self.enumerate_up_to:
            relaxation = Relaxation(part)
            found = relaxation.solve(start, upper=self.enough, deadline=self.deadline)
            bound, start = max(bound, found.bound), found.last
            self._round(part, start)
            if bound >= self.enough:
                return self._close(bound)
            if time.perf_counter() > self.deadline:
                return self._push(bound, part, start)
            keep = found.needs < self.enough
            if keep.all():
                return self._divide(bound, part, start, found.needs)
            self._close(float(found.needs[~keep].min()))
            before, rest = part.allocations, part.restrict(keep)
            if rest is None:
                return None
            part, start = rest[0], start.fold(rest[1])
            if part.allocations > 0.3 * before:
                return self._divide(bound, part, start, found.needs[keep])
        return self._try_all(part)

    def _divide(
        self, bound: float, part: Lifted, start: Iterate, needs: Float[np.ndarray, " options"]
    ) -> None:
        """One part for every option of the group whose options' bounds rise most."""
        if len(needs) != len(part.of):  # options went after the bounds were found
            _, needs = Relaxation(part).certify(start.multiplier)
        needs = np.clip(needs, bound, self.enough)
        rise = np.zeros(part.groups)
        np.add.at(rise, part.of, (needs - bound) / np.bincount(part.of)[part.of])
        group = int(rise.argmax())
        for option in np.flatnonzero(part.of == group):
            keep = (part.of != group) | (np.arange(len(part.of)) == option)
            if (rest := part.restrict(keep)) is not None:
                self._push(float(needs[option]), rest[0], start.fold(rest[1]))

    def _close(self, bound: float) -> None:
        self.closed = min(self.closed, bound)

    def _try_all(self, part: Lifted) -> None:
        for _, taken in part.below(self.loss):
            columns = part.columns(taken, *self.reduced.losses.shape[::-1])
            if self.reduced.fits(columns):
                self._offer(columns)
                break

    def _round(self, part: Lifted, last: Iterate) -> None:
        """An allocation next to the relaxed one, improved by a short local search."""
        shares = last.product[0, 1 : 1 + len(part.of)]
        order = np.lexsort((-shares, part.of))
        taken = order[np.searchsorted(part.of[order], np.arange(part.groups))]
        columns = part.columns(taken, *self.reduced.losses.shape[::-1])
        if self.reduced.fits(columns):
            short = LocalSearch(restarts=0, patience=10)
            self._offer(short.search(self.reduced, columns, self.cheapest, self.deadline)[0])

    def _offer(self, columns: Columns) -> None:
        if (loss := self._loss(columns)) < self.loss:
            self.best, self.loss = columns, loss

    def _push(self, bound: float, part: Lifted, start: Iterate | None) -> None:
        heapq.heappush(self.heap, (bound, next(self.count), part, start))

    def _loss(self, columns: Columns) -> float:
        rows = np.arange(len(columns))
        loss = math.fsum(self.reduced.losses[rows, columns])
        if self.reduced.interactions is not None:
            taken = self.reduced.interactions[rows, columns][:, rows, columns]
            loss = math.fsum([loss, 0.5 * math.fsum(taken.ravel())])
        return loss
