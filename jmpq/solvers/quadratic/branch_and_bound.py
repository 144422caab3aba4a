"""The optimum of a loss with cross-layer terms: branch and bound on a semi-definite bound."""

import dataclasses
import functools
import heapq
import itertools
import math
import time

import numpy as np
from jaxtyping import Float

from jmpq.kinds import check_kinds
from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import OPTIMALITY, Solution, solution_from_columns
from jmpq.solvers.quadratic.lifted import Lifted
from jmpq.solvers.quadratic.priced_walk import Columns
from jmpq.solvers.quadratic.row_bound import row_bound
from jmpq.solvers.quadratic.semidefinite import Iterate, Relaxation
from jmpq.solvers.quadratic.tabu_search import LocalSearch, Walks
from jmpq.solvers.solver import check_options

_PATIENCE, _PATIENCE_OF_PARTS = 0.02, 0.1  # progress below which dividing is better
_WALKS = 5e-4  # steps of the walks per iteration and squared size: a quarter of the time
_OFF_GRID = 1e-6  # distance from the grid that bounds may have, in its units
_EXACT = 2.0**53  # below this, sums of whole numbers are exact


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchAndBound:
    """Branch and bound on the doubly nonnegative relaxation: a `Solver`.

    A local search finds an allocation. The relaxation of `semidefinite` bounds the loss, and
    its multiplier rules out every option, and every pair of options, whose own bound reaches
    the loss of that allocation.
    The rest is divided by the choices of one group, the part of least bound first, until parts
    are small enough to enumerate. A part starts from the multiplier of its parent. The local
    search goes on meanwhile, by steps in proportion to the work on the bound.

    The bound is the least bound of all open parts. Where all terms of the loss are whole
    numbers, losses lie on a grid, and bounds are rounded up to it. When time runs out, the best
    allocation is ``feasible`` with the remaining gap.

    Attributes:
        time_limit_s: Seconds for the whole call, including the local search.
        max_parts: Largest number of parts examined; 1 for the relaxation's bound alone.
        enumerate_up_to: Largest number of allocations of a part that is enumerated.
        search: Local search; before the first bound it gets at most a third of `time_limit_s`.
    """

    time_limit_s: float = 60.0
    max_parts: int = 1_000_000
    enumerate_up_to: int = 50_000
    search: LocalSearch = dataclasses.field(default_factory=LocalSearch)

    def __post_init__(self) -> None:
        counts = ("max_parts", "enumerate_up_to")
        check_options(self, above_0=("time_limit_s",), from_1=counts)

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Raises:
            Infeasible: If no allocation meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        seconds = min(self.search.time_limit_s, self.time_limit_s / 3)
        walks, bound = self.search.walks(problem, reduced), row_bound(reduced)
        walks.go_on(started + seconds, restarts=self.search.restarts, bound=bound)
        tree = _Tree(
            reduced=reduced,
            walks=walks,
            best=walks.best,
            enumerate_up_to=self.enumerate_up_to,
            deadline=started + self.time_limit_s,
            grid=_grid(reduced),
        )
        tree.grow(Lifted.of_problem(reduced), bound, self.max_parts)
        return solution_from_columns(
            problem,
            reduced.expand(tree.best),
            bound=min(tree.bound, tree.loss),
            solver="branch_and_bound",
            wall_s=time.perf_counter() - started,
        )


def _grid(reduced: Reduced) -> float:
    """The greatest number of which every loss is a multiple; 0 if terms are not whole."""
    terms = [reduced.losses[np.isfinite(reduced.losses)]]
    if reduced.interactions is not None:
        terms.append(reduced.interactions.ravel())
    values = np.abs(np.concatenate(terms))
    if (values != np.floor(values)).any() or values.sum() >= _EXACT:
        return 0.0
    return float(np.gcd.reduce(values.astype(np.int64)))


@dataclasses.dataclass(eq=False, kw_only=True)
class _Tree:
    """The open parts, by bound, and the best allocation so far.

    Invariant: every allocation within budget is in an open part, whose bound it does not beat,
    or loses at least `closed`, or loses at least what `best` does.
    """

    reduced: Reduced
    walks: Walks
    best: Columns
    enumerate_up_to: int
    deadline: float
    grid: float = 0.0  # number of which all losses are multiples; 0 for none
    loss: float = math.inf
    closed: float = math.inf  # the least bound of the parts that were closed
    parts: int = 0
    owed: float = 0.0  # steps that the walks may have taken by now
    heap: list[tuple[float, int, Lifted, Iterate | None]] = dataclasses.field(
        default_factory=list
    )
    count: itertools.count = dataclasses.field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.loss, self.owed = self._loss(self.best), self.walks.steps

    @property
    def bound(self) -> float:
        """Least bound of all parts, open and closed."""
        bound = min([self.closed, *(part[0] for part in self.heap[:1])])
        if not self.grid or not math.isfinite(bound):
            return bound
        return self.grid * math.ceil(bound / self.grid - _OFF_GRID)

    @property
    def enough(self) -> float:
        """Bound from which a part cannot improve the best loss beyond the tolerance."""
        own = self.reduced.losses[np.arange(len(self.best)), self.best]
        least = 0.5 * OPTIMALITY * max(math.fsum(np.abs(own)), abs(self.loss))
        # On a grid, a bound that is above the next lower point leaves nothing below the best.
        return self.loss - max(least, (1 - 2 * _OFF_GRID) * self.grid)

    def grow(self, root: Lifted, bound: float, max_parts: int) -> None:
        """Examine parts by rising bound until none is open or time is up."""
        self._push(bound, root, None)
        while self.heap and self.parts < max_parts and time.perf_counter() < self.deadline:
            bound, _, part, start = heapq.heappop(self.heap)
            if bound >= self.enough:  # what `best` loses has fallen since the part was made
                self._close(bound)
                continue
            self.parts += 1
            self._look_at(bound, part, start)

    def _look_at(self, bound: float, part: Lifted, start: Iterate | None) -> None:
        """Close a part, divide it, or put it back with a better bound when time is up."""
        while part.allocations > self.enumerate_up_to:
            relaxation = Relaxation(part)
            walk_on = functools.partial(self._walk_on, len(part.matrix))
            proof = relaxation.solve(
                start,
                upper=self.enough,
                deadline=self.deadline,
                patience=_PATIENCE if start is None else _PATIENCE_OF_PARTS,
                meanwhile=walk_on,
            )
            if self.parts == 1:  # those of the whole problem decide for all of its parts
                proof = relaxation.tighten(
                    proof, upper=self.enough, deadline=self.deadline, meanwhile=walk_on
                )
            bound, start = max(bound, proof.bound), proof.last
            self._round(part, start)
            if bound >= self.enough:
                return self._close(bound)
            if time.perf_counter() > self.deadline:
                return self._push(bound, part, start)
            # A pair of options, or an option, whose own bound reaches the best loss is ruled
            # out; allocations that take it lose at least the least of these bounds.
            barred = relaxation.barred(start, self.enough)
            if barred.any():
                self._close(self.enough)
                part = dataclasses.replace(part, barred=part.barred | barred)
            keep = proof.needs < self.enough
            if keep.all():
                return self._divide(bound, part, start, proof.needs)
            self._close(float(proof.needs[~keep].min()))
            before, rest = part.allocations, part.restrict(keep)
            if rest is None:  # every allocation takes an option that is ruled out
                return None
            part, start = rest[0], start.restrict(rest[1])
            # Small enough now: try them all. Much smaller: bound it again, which may rule out
            # more. Else divide.
            if part.allocations > max(0.3 * before, self.enumerate_up_to):
                return self._divide(bound, part, start, proof.needs[keep])
        return self._try_all(part)

    def _divide(
        self, bound: float, part: Lifted, start: Iterate, needs: Float[np.ndarray, " options"]
    ) -> None:
        """Divide by the options of the group whose options' bounds rise most on average."""
        if len(needs) != len(part.of):  # `restrict` has dropped more than was ruled out
            _, needs = Relaxation(part).certify(start.multiplier, start.triangles)
        needs = np.clip(needs, bound, self.enough)
        # A child's bound is its option's: the group where these lie highest above the part's
        # own, on average, leaves the least to do. Together the children cover the part.
        rise = np.zeros(part.groups)
        np.add.at(rise, part.of, (needs - bound) / np.bincount(part.of)[part.of])
        group = int(rise.argmax())
        for option in np.flatnonzero(part.of == group):
            keep = (part.of != group) | (np.arange(len(part.of)) == option)
            if (rest := part.restrict(keep)) is not None:
                self._push(float(needs[option]), rest[0], start.restrict(rest[1]))

    def _close(self, bound: float) -> None:
        self.closed = min(self.closed, bound)

    def _try_all(self, part: Lifted) -> None:
        """The first allocation of a part, by rising loss, that fits and beats the best."""
        for _, taken in part.below(self.loss):
            columns = part.columns(taken, *self.reduced.losses.shape[::-1])
            if self.reduced.fits(columns):
                self._offer(columns)
                break

    def _round(self, part: Lifted, last: Iterate) -> None:
        """An allocation next to the relaxed one, and what a walk from there finds."""
        # Of every group the option of largest share, the first row of the relaxed y yᵀ.
        shares = last.product[0, 1 : 1 + len(part.of)]
        order = np.lexsort((-shares, part.of))
        taken = order[np.searchsorted(part.of[order], np.arange(part.groups))]
        self.walks.start_from(part.columns(taken, *self.reduced.losses.shape[::-1]))
        self.walks.go_on(self.deadline, restarts=0)
        self._offer(self.walks.best)

    def _walk_on(self, size: int, iterations: int) -> float:
        """Let the walks have their share of the time; return what is `enough` then.

        Args:
            size: Size of the matrices of a part.
            iterations: Iterations on them since the last call.
        """
        self.owed += _WALKS * size**2 * iterations
        self.walks.go_on(self.deadline, steps=int(self.owed))
        self._offer(self.walks.best)
        return self.enough

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
