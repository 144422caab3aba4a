"""The optimum by trying every allocation: the reference of the tests."""

import dataclasses
import math
import time

import numpy as np

from jmpq.kinds import check_kinds
from jmpq.problem.problem import ROUNDING, Problem
from jmpq.problem.solution import Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation


@dataclasses.dataclass(frozen=True, kw_only=True)
class BruteForce:
    """Try every allocation: a `Solver` for small problems.

    Of allocations with equal loss the lexicographically first wins (by columns, in the
    order of the groups).

    Attributes:
        max_allocations: Largest number of allocations; larger problems raise an error.
        chunk: Number of allocations evaluated at once.
    """

    max_allocations: int = 1_000_000
    chunk: int = 1 << 16

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Search everything.

        Raises:
            ValueError: If there are more than `max_allocations`.
            Infeasible: If none of them meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        options = [np.flatnonzero(np.isfinite(row)) for row in reduced.losses]
        sizes = tuple(len(columns) for columns in options)
        if (total := math.prod(sizes)) > self.max_allocations:
            raise ValueError(
                f"{total} allocations are more than brute force may try "
                f"({self.max_allocations}): use the exact solver."
            )
        best, best_loss = None, math.inf
        limits = reduced.limits + ROUNDING * np.abs(reduced.limits)  # of sums not yet exact
        for first in range(0, total, self.chunk):
            numbers = np.arange(first, min(first + self.chunk, total))
            picks = np.unravel_index(numbers, sizes)
            columns = [option[pick] for option, pick in zip(options, picks, strict=True)]
            losses = np.zeros(len(numbers))
            used = np.zeros((len(reduced.limits), len(numbers)))
            for i, column in enumerate(columns):
                losses += reduced.losses[i, column]
                used += reduced.costs[:, i, column]
                if reduced.interactions is not None:
                    for j in range(i):
                        losses += reduced.interactions[i, column, j, columns[j]]
            losses[(used > limits[:, None]).any(axis=0)] = np.inf
            while losses[k := int(losses.argmin())] < best_loss:
                candidate = np.array([column[k] for column in columns])
                if reduced.fits(candidate):
                    best, best_loss = candidate, losses[k]
                losses[k] = np.inf
        if best is None:
            best = cheapest_allocation(problem, reduced)  # raises, with the reason
        return solution_from_columns(
            problem,
            reduced.expand(best),
            bound=problem.evaluate(reduced.expand(best))[0],
            solver="brute_force",
            wall_s=time.perf_counter() - started,
        )
