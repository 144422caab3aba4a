"""The optimum of a loss with cross-layer terms as a mixed-integer linear program."""

import dataclasses
import math
import time
import warnings
from typing import Any

import numpy as np
from jaxtyping import Int

from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import OPTIMALITY, Solution, solution_from_columns
from jmpq.solvers.quadratic.separable_bounds import linear_program, row_bound
from jmpq.solvers.quadratic.tabu_search import LocalSearch

_TOLERANCE = 1e-9  # of HiGHS: feasibility, dual feasibility, integrality
_SPAN = 1e4  # the distance from bound to best known loss, as HiGHS sees it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linearized:
    """Every pair of options a variable, solved by HiGHS through cvxpy: a `Solver`.

    An independent check on `BranchAndBound`, and the rival of most published quadratic
    programs; practical up to about fifteen groups. The local search's allocation stays where
    HiGHS finds none better. As in `Exact` the bound is HiGHS's own, lowered by its
    tolerances, and the budgets are asked again.

    Attributes:
        time_limit_s: Seconds for the whole call; what cvxpy needs to state the program is not
            interrupted.
        search: The local search; its time is at most a third of `time_limit_s`.

    References:
        Adams, Johnson (1994), Improved linear programming-based lower bounds for the
        quadratic assignment problem.
    """

    time_limit_s: float = 60.0
    search: LocalSearch = dataclasses.field(default_factory=LocalSearch)

    def __post_init__(self) -> None:
        if not self.time_limit_s > 0:
            raise ValueError(
                "The linearized program needs a time limit above 0, got "
                f"time_limit_s={self.time_limit_s}."
            )

    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Raises:
            Infeasible: If no allocation meets the budgets.
            RuntimeError: If HiGHS fails.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        if reduced.interactions is None:
            empty = np.zeros((*reduced.losses.shape, *reduced.losses.shape))
            reduced = dataclasses.replace(reduced, interactions=empty)
        seconds = min(self.search.time_limit_s, self.time_limit_s / 3)
        search = dataclasses.replace(self.search, time_limit_s=seconds, bound=False)
        best, bound = search(problem), row_bound(reduced)
        columns, loss = best.columns, best.loss
        if loss - bound > OPTIMALITY * abs(loss):
            deadline = started + self.time_limit_s
            found, proven = _search(reduced, loss, bound, deadline)
            bound = max(bound, proven)
            if found is not None and reduced.fits(found):
                other = reduced.expand(found)
                if (least := problem.evaluate(other)[0]) < loss:
                    columns, loss = other, least
        return solution_from_columns(
            problem,
            columns,
            bound=min(bound, loss),
            solver="linearized",
            wall_s=time.perf_counter() - started,
        )


def _search(
    reduced: Reduced, loss: float, bound: float, deadline: float
) -> tuple[Int[np.ndarray, " groups"] | None, float]:
    """The allocation that HiGHS finds, None without one, and the bound that it proves."""
    import cvxpy

    program = linear_program(reduced)
    count, scale = len(program.options), _SPAN / (loss - bound)
    take = cvxpy.Variable(count, boolean=True)
    pair = cvxpy.Variable(len(program.objective) - count, nonneg=True)
    every = cvxpy.hstack([take, pair])
    constraints = [program.equalities @ every == program.totals]
    for row, limit in zip(program.costs[:, :count], program.limits, strict=True):
        if row.any():
            constraints.append(row @ take <= limit)
    objective = (scale * program.objective) @ every
    stated = cvxpy.Problem(cvxpy.Minimize(objective), constraints)
    try:
        with warnings.catch_warnings():  # the status says it
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            stated.solve(
                solver=cvxpy.HIGHS,
                time_limit=max(deadline - time.perf_counter(), 0.01),
                mip_rel_gap=0.0,
                mip_abs_gap=0.0,
                mip_feasibility_tolerance=_TOLERANCE,
                primal_feasibility_tolerance=_TOLERANCE,
                dual_feasibility_tolerance=_TOLERANCE,
                output_flag=False,
            )
    except cvxpy.SolverError as error:
        raise RuntimeError(f"HiGHS failed on the linearized program: {error}") from error
    info: Any = stated.solver_stats.extra_stats  # highspy.HighsInfo
    match stated.status:
        case cvxpy.OPTIMAL:
            found = True
        case cvxpy.USER_LIMIT:  # out of time, with or without an answer
            found = info.primal_solution_status == 2
        case cvxpy.INFEASIBLE:  # up to tolerances nothing is left beside the local search's
            return None, -math.inf
        case status:
            raise RuntimeError(f"HiGHS ended with status {status!r}.")
    margin = _TOLERANCE * (100 + len(reduced.losses) ** 2)

    proven = (info.mip_dual_bound - margin) / scale
    if not found or take.value is None:
        return None, proven
    table = np.full(reduced.losses.size, -np.inf)
    table[program.options] = take.value
    return table.reshape(reduced.losses.shape).argmax(axis=1), proven
