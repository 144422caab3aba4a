"""Feasibility: an allocation within several budgets, or the budgets that conflict."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.exact_sum import exact_sum
from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import Infeasible, infeasible
from jmpq.solvers.knapsack.relaxation_bounds import cheapest_costs


def cheapest_allocation(problem: Problem, reduced: Reduced) -> Int[np.ndarray, " groups"]:
    """An allocation within the budgets: the cheapest by normalised costs if that fits.

    If it does not fit, an integer program (HiGHS through SciPy) searches for one that does.

    Raises:
        Infeasible: If a budget is below the least possible cost, if budgets conflict, or if no
            allocation was found within rounding of the limits; the message says which.
    """
    least = cheapest_costs(reduced)
    for name, row, limit in zip(reduced.names, least, reduced.limits, strict=True):
        if exact_sum(row) > limit:
            raise infeasible(problem, (name,))
    price = combined_costs(reduced)
    columns = price.argmin(axis=1)
    if reduced.fits(columns):
        return columns
    for tighter in (0.0, 1e-9, 1e-7):  # integer programs hold limits up to a tolerance
        limits = reduced.limits * (1 - tighter)
        candidate = _least(reduced, price, limits)
        if candidate is None:
            break
        if reduced.fits(candidate):
            return candidate
    raise _conflict(problem, reduced)


def combined_costs(
    reduced: Reduced, weights: Float[np.ndarray, " budgets"] | None = None
) -> Float[np.ndarray, "groups choices"]:
    """Weighted sum of the costs above each group's cheapest choice; +inf where not allowed.

    Args:
        reduced: The problem. With one budget its cost is returned unchanged.
        weights: Weight of each cost. By default a cost is divided by what its budget leaves
            above the cheapest allocation, and a budget that cannot bind has weight 0 unless
            no budget can bind.
    """
    allowed = reduced.allowed
    if len(reduced.limits) == 1:
        return (
            reduced.costs[0] if allowed.all() else np.where(allowed, reduced.costs[0], np.inf)
        )
    least = cheapest_costs(reduced)
    above = np.where(allowed, reduced.costs - least[:, :, None], 0.0)
    if weights is not None:
        return np.where(allowed, np.tensordot(weights, above, axes=1), np.inf)
    total = np.zeros(reduced.losses.shape)
    left = reduced.limits - least.sum(axis=1)
    most = above.max(axis=2).sum(axis=1) if above.size else np.zeros(len(left))
    binds = left < most
    for table, slack, span, bind in zip(above, left, most, binds, strict=True):
        if span > 0 and (bind or not binds.any()):
            total += table / (max(slack, 1e-9 * span) if bind else span)
    return np.where(allowed, total, np.inf)


def _conflict(problem: Problem, reduced: Reduced) -> Infeasible:
    """Error for an irreducible set of conflicting budgets, with the least value of each."""
    names = list(reduced.names)
    for name in reduced.names:
        others = [n for n in names if n != name]
        if others and _least_of(reduced, None, others) is None:
            names = others
    joint = {}
    for name in names:
        columns = _least_of(reduced, name, [n for n in names if n != name])
        if columns is not None:
            used = reduced.used(columns)[reduced.names.index(name)]
            joint[name] = math.fsum([used, problem.constants.get(name, 0.0)])
    return infeasible(problem, tuple(names), joint)


def _least_of(
    reduced: Reduced, name: str | None, held: list[str]
) -> Int[np.ndarray, " groups"] | None:
    """The allocation of least cost `name` within the budgets `held`; any such for None."""
    allowed = np.isfinite(reduced.losses)
    if name is None:
        price = np.where(allowed, 0.0, np.inf)
    else:
        price = np.where(allowed, reduced.costs[reduced.names.index(name)], np.inf)
    limits = [
        limit if n in held else math.inf
        for n, limit in zip(reduced.names, reduced.limits, strict=True)
    ]
    return _least(reduced, price, np.array(limits))


def _least(
    reduced: Reduced,
    price: Float[np.ndarray, "groups choices"],
    limits: Float[np.ndarray, " budgets"],
) -> Int[np.ndarray, " groups"] | None:
    """The allocation of least price within limits, up to the solver's tolerance, or None."""
    from scipy import optimize, sparse

    rows, options = np.nonzero(np.isfinite(price))
    one_each = sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))))
    scale = np.maximum(np.abs(reduced.limits), 1e-300)
    use = reduced.costs[:, rows, options] / scale[:, None]
    most: Any = limits / scale  # SciPy's annotation forgets arrays
    objective = price[rows, options]
    top = objective.max()
    result = optimize.milp(
        objective / top if top > 0 else objective,
        integrality=np.ones(len(rows)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(use, ub=most),
        ],
    )
    if result.x is None:
        return None
    columns = np.zeros(len(price), dtype=np.int64)
    taken = result.x > 0.5
    columns[rows[taken]] = options[taken]
    return columns
