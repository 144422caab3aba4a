"""Rivals of branch and bound in `bench.iqp`: the linearized program, and two other bounds.

Most published quadratic programs are solved by linearization: every pair of options becomes a
variable, which HiGHS solves to the end (`Linearized`) or as a linear program
(`linearized_bound`). Convexification (`convex_bound`) is the other classical bound. Both
bounds end in a sum over groups that is nowhere larger than the loss, which the knapsack's
`lp_bound` then bounds under the budgets. Multipliers and points come from solvers that stop
early or inexactly; they decide how tight a bound is, never whether it holds.
"""

import dataclasses
import math
import time
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem import Problem, Solution, solution_from_columns
from jmpq.problem.problem import Reduced
from jmpq.problem.solution import OPTIMALITY
from jmpq.solvers import LocalSearch, lp_bound
from jmpq.solvers.knapsack.relaxation_bounds import cheapest_costs
from jmpq.solvers.quadratic.row_bound import row_bound
from jmpq.solvers.solver import check_options

_EPS = float(np.finfo(np.float64).eps)
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
        check_options(self, above_0=("time_limit_s",))

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
        choice, loss = best.columns, best.loss
        if loss - bound > OPTIMALITY * abs(loss):
            deadline = started + self.time_limit_s
            found, proven = _search(reduced, loss, bound, deadline)
            bound = max(bound, proven)
            if found is not None and reduced.fits(found):
                other = reduced.expand(found)
                if (least := problem.evaluate(other)[0]) < loss:
                    choice, loss = other, least
        return solution_from_columns(
            problem,
            choice,
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


def convex_bound(reduced: Reduced) -> float:
    """Convexification by the least eigenvalue, and the tangent at the relaxed minimum.

    On indicators x² = x, so ½uΣ(x² − x) may be added to the loss; u is the least that makes
    it convex on the directions that keep one choice a group. The minimum of the convex
    program over the relaxed choices is found by Clarabel through cvxpy; the tangent there
    lies below the loss of every allocation.

    References:
        Hammer, Rubin (1970), Some remarks on quadratic programming with 0-1 variables.

    Raises:
        RuntimeError: If the convex program fails.
    """
    import cvxpy

    if reduced.interactions is None:
        return lp_bound(reduced)[0]
    allowed = np.isfinite(reduced.losses)
    options = np.flatnonzero(allowed)
    of = options // reduced.losses.shape[1]
    cross = reduced.interactions.reshape(allowed.size, allowed.size)[np.ix_(options, options)]
    member = (of[:, None] == np.arange(len(reduced.losses))) * 1.0
    kept = np.eye(len(options)) - member @ (member / member.sum(axis=0)).T
    values = np.linalg.eigvalsh(kept @ cross @ kept)
    margin = 16 * _EPS * len(options) * float(np.abs(values).max())
    shift = max(-float(values[0]), 0.0) + margin
    linear = reduced.losses.ravel()[options] - 0.5 * shift
    curved = cross + shift * np.eye(len(options))
    x = cvxpy.Variable(len(options), nonneg=True)
    start = (member / member.sum(axis=0)).sum(axis=1)
    slope = linear + curved @ start
    scale = max(float(np.abs(slope).max()), float(np.abs(curved).sum(axis=1).max()), 1e-300)
    root = _root(kept @ curved @ kept / scale)  # of steps from `start`, which kept keeps
    objective = 0.5 * cvxpy.sum_squares(root @ (x - start)) + (slope / scale) @ (x - start)
    constraints = [member.T @ x == 1]
    least = cheapest_costs(reduced)
    for table, row, limit in zip(reduced.costs, least, reduced.limits, strict=True):
        above = table.ravel()[options] - row[of]
        left = limit - math.fsum(row)
        unit = max(left, 1e-12 * float(above.sum()), 1e-300)
        constraints.append((above / unit) @ x <= left / unit)
    program = cvxpy.Problem(cvxpy.Minimize(objective), constraints)
    try:
        program.solve(solver=cvxpy.CLARABEL)
    except cvxpy.SolverError as error:
        raise RuntimeError(f"Clarabel failed on the convex program: {error}") from error
    point = start if x.value is None else np.maximum(x.value, 0.0)
    point = point / (member @ (member.T @ point))
    slope = linear + curved @ point
    losses = np.full(allowed.size, np.inf)
    losses[options] = slope
    constant = -0.5 * float(point @ curved @ point)
    rounding = 8 * _EPS * len(options) * (float(point @ np.abs(curved) @ point) + abs(constant))
    return _separable_bound(reduced, losses.reshape(allowed.shape)) + constant - rounding


def linearized_bound(reduced: Reduced, *, time_limit_s: float = 60.0) -> float:
    """The linear relaxation with a variable for every pair of options, by its duals.

    Duals of the linear program (HiGHS through SciPy) move parts of the cross terms to the
    losses of their options; what stays in a pair of groups is bounded by its least entry.
    Out of time, the bound is `row_bound`.

    References:
        Adams, Johnson (1994), Improved linear programming-based lower bounds for the
        quadratic assignment problem.
    """
    from scipy import optimize

    if reduced.interactions is None:
        return lp_bound(reduced)[0]
    program = linear_program(reduced)
    scale = float(np.abs(program.objective).max()) or 1.0
    found = optimize.linprog(
        program.objective / scale,
        A_ub=program.costs,
        b_ub=program.limits,
        A_eq=program.equalities,
        b_eq=program.totals,
        method="highs",
        options={"time_limit": time_limit_s},
    )
    if found.status != 0:
        return row_bound(reduced)
    duals = np.asarray(found.eqlin.marginals) * scale
    cross, losses = reduced.interactions.copy(), reduced.losses.copy()
    groups, choices = losses.shape
    # the row "sum over the other group's options = x" with dual α moves α from pair to option
    alpha = np.zeros((groups, choices, groups))
    g, k, h = program.rows.T
    alpha[g, k, h] = duals[: len(g)]
    cross -= alpha[:, :, :, None] + alpha.transpose(2, 0, 1)[:, None]
    losses += alpha.sum(axis=2)
    allowed = np.isfinite(reduced.losses)
    cross = np.where(allowed[:, :, None, None] & allowed, cross, np.inf)
    upper = np.triu_indices(groups, 1)
    pairs = cross.min(axis=3).min(axis=1)[upper]
    magnitude = math.fsum(np.abs(pairs)) + float(np.abs(alpha).max(axis=1).sum())
    rest = math.fsum(pairs) - 8 * _EPS * groups * magnitude
    return max(_separable_bound(reduced, losses) + rest, row_bound(reduced))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LinearProgram:
    """The quadratic knapsack with one more variable for every pair of options.

    Variables are the options x, then the pairs y. Σ_l y(g,k; h,l) = x(g,k) for every option
    and every other group, then Σ_k x(g,k) = 1.

    Attributes:
        objective: Losses and cross terms.
        equalities: Matrix of the equalities, sparse.
        totals: Right-hand sides of the equations.
        costs: Matrix of the budgets, in units of what the cheapest allocation leaves.
        limits: Right-hand sides of the inequalities.
        options: Number group·choices + choice of every x.
        rows: (group, choice, other group) of every equality of pairs.
    """

    objective: Float[np.ndarray, " variables"]
    equalities: Any
    totals: Float[np.ndarray, " equalities"]
    costs: Float[np.ndarray, "budgets variables"]
    limits: Float[np.ndarray, " budgets"]
    options: Int[np.ndarray, " options"]
    rows: Int[np.ndarray, "pairs 3"]


def linear_program(reduced: Reduced) -> LinearProgram:
    """State the linear program of `linearized_bound`."""
    from scipy import sparse

    assert reduced.interactions is not None
    allowed = np.isfinite(reduced.losses)
    groups, choices = allowed.shape
    options = np.flatnonzero(allowed)
    number = np.full(allowed.size, -1)
    number[options] = np.arange(len(options))
    of = options // choices
    first, second = np.nonzero(of[:, None] < of[None, :])
    cross = reduced.interactions.reshape(allowed.size, allowed.size)
    objective = np.concatenate(
        [reduced.losses.ravel()[options], cross[options[first], options[second]]]
    )
    row_of = np.full((len(options), groups), -1)
    a, h = np.nonzero(of[:, None] != np.arange(groups)[None, :])
    row_of[a, h] = np.arange(len(a))
    y = len(options) + np.arange(len(first))
    entries = [
        (row_of[first, of[second]], y, 1.0),
        (row_of[second, of[first]], y, 1.0),
        (np.arange(len(a)), a, -1.0),
        (len(a) + of, np.arange(len(options)), 1.0),
    ]
    rows = np.concatenate([r for r, _, _ in entries])
    columns = np.concatenate([c for _, c, _ in entries])
    values = np.concatenate([np.full(len(r), v) for r, _, v in entries])
    shape = (len(a) + groups, len(objective))
    least = cheapest_costs(reduced)
    left = reduced.limits - least.sum(axis=1)
    above = (reduced.costs - least[:, :, None]).reshape(len(left), allowed.size)[:, options]
    unit = np.maximum(np.where(left > 0, left, above.max(axis=1, initial=0.0)), 1e-300)
    costs = np.concatenate([above, np.zeros((len(left), len(first)))], axis=1)
    return LinearProgram(
        objective=objective,
        equalities=sparse.csr_array((values, (rows, columns)), shape=shape),
        totals=np.concatenate([np.zeros(len(a)), np.ones(groups)]),
        costs=costs / unit[:, None],
        limits=np.maximum(left, 0.0) / unit,
        options=options,
        rows=np.stack([of[a], options[a] % choices, h], axis=1),
    )


def _separable_bound(reduced: Reduced, losses: Float[np.ndarray, "groups choices"]) -> float:
    return lp_bound(dataclasses.replace(reduced, losses=losses, interactions=None))[0]


def _root(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """R with RᵀR = a positive semi-definite matrix, rounding below 0 cut."""
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
