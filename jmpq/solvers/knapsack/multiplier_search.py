"""Several budgets at once for very many groups: multipliers, their bound, and repair."""

import dataclasses
import math
import time

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import OPTIMALITY, Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.relaxation_bounds import (
    Multipliers,
    cheapest_costs,
    lagrangian_bound,
)

_KEPT = 6  # multipliers of highest bound that are repaired


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiplierSearch:
    """A price for every budget, the best choices at these prices, and repair: a `Solver`.

    The bound is the Lagrangian's at the best prices found, the same that the linear
    relaxation proves, without a linear program over all options. Its maximum is sought by
    cutting planes: the use of the budgets at given prices is a subgradient, the prices that
    promise most under all subgradients so far come next. An iteration costs a few passes over
    the tables, so that 100,000 groups take seconds.

    An allocation comes from the best prices: all of them are raised until the budgets are
    met, then the options that save most loss for their price fill what is left.

    Attributes:
        max_iterations: Of the cutting planes.
        tolerance: Stop where no prices can prove more than this part of the bound above it.
        time_limit_s: Seconds for the cutting planes.

    References:
        Geoffrion (1974), Lagrangean relaxation for integer programming; Kelley (1960), The
        cutting-plane method for solving convex programs.
    """

    max_iterations: int = 300
    tolerance: float = 1e-9
    time_limit_s: float = 60.0

    def __post_init__(self) -> None:
        if not (self.max_iterations >= 1 and self.tolerance >= 0 and self.time_limit_s > 0):
            raise ValueError(
                "The multiplier search needs max_iterations of at least 1, a tolerance of at "
                f"least 0 and a time limit above 0; got {self.max_iterations}, "
                f"{self.tolerance} and {self.time_limit_s}."
            )

    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Raises:
            Infeasible: If no allocation meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced()
        best = cheapest_allocation(problem, reduced)
        loss = _loss(reduced, best)
        ranked = self.multipliers(reduced, started + self.time_limit_s)
        bound = max(lagrangian_bound(reduced, prices) for prices in ranked)
        for prices in ranked:
            columns = fill(reduced, repair(reduced, prices, best), prices)
            if (found := _loss(reduced, columns)) < loss and reduced.fits(columns):
                best, loss = columns, found
            if loss - bound <= OPTIMALITY * abs(loss):
                break
        return solution_from_columns(
            problem,
            reduced.expand(best),
            bound=bound,
            solver="multipliers",
            wall_s=time.perf_counter() - started,
        )

    def multipliers(self, reduced: Reduced, deadline: float = math.inf) -> list[Multipliers]:
        """Prices of the budgets, those of the highest bound first; at least one."""
        from scipy import optimize

        unit = _units(reduced)
        if not len(unit):
            return [np.zeros(0)]
        spread = np.where(np.isfinite(reduced.losses), reduced.losses, -np.inf).max(axis=1)
        most = max(math.fsum(spread - reduced.losses.min(axis=1)), 1e-300)
        point = np.zeros(len(unit))  # loss per unit; the limits of each budget are 1 unit off
        points, values, slopes = [], [], []
        for _ in range(self.max_iterations):
            value, slope = _lagrangian(reduced, point / unit)
            points.append(point)
            values.append(value)
            slopes.append(slope / unit)
            rows, known = np.array(slopes), np.array(values)
            if time.perf_counter() > deadline or not slopes[-1].any():
                break
            offset, scale = float(known.max()), max(most, 1e-300)
            # maximise t subject to t <= value_i + slope_i (λ − λ_i), in units of `most`
            free = known - (rows * np.array(points)).sum(axis=1)
            result = optimize.linprog(
                np.append(np.zeros(len(unit)), -1.0),
                A_ub=np.hstack([-rows, np.ones((len(rows), 1))]),
                b_ub=(free - offset) / scale,
                bounds=[(0.0, 1.0)] * len(unit) + [(None, None)],
                method="highs",
            )
            if result.x is None:
                break
            if result.x[-1] * scale <= self.tolerance * max(abs(offset), 1e-300):
                break
            point = result.x[:-1] * scale
        order = np.argsort(-np.array(values), kind="stable")[:_KEPT]
        return [points[k] / unit for k in order]


def repair(
    reduced: Reduced, prices: Multipliers, fallback: Int[np.ndarray, " groups"]
) -> Int[np.ndarray, " groups"]:
    """The best choices at prices that are raised together until the budgets are met.

    Where no common factor does it, `fallback`.
    """

    def at(factor: float) -> Int[np.ndarray, " groups"]:
        priced = reduced.losses + np.tensordot(factor * prices, reduced.costs, axes=1)
        return priced.argmin(axis=1)

    low, high = 1.0, 1.0
    found = at(high)
    while not reduced.fits(found):
        low, high = high, 2 * high
        if high > 1e6 or not prices.any():
            return fallback
        found = at(high)
    for _ in range(30):
        if high - low <= 1e-9 * high:
            break
        middle = 0.5 * (low + high)
        columns = at(middle)
        if reduced.fits(columns):
            found, high = columns, middle
        else:
            low = middle
    return found


def fill(
    reduced: Reduced, columns: Int[np.ndarray, " groups"], prices: Multipliers
) -> Int[np.ndarray, " groups"]:
    """Give away what is left of the budgets: most loss saved per price first."""
    rows, columns = np.arange(len(columns)), columns.copy()
    worth = np.maximum(prices, 1e-12 * prices.max(initial=0.0))
    while True:
        left = reduced.limits - reduced.used(columns)
        saved = reduced.losses[rows, columns][:, None] - reduced.losses
        extra = reduced.costs - reduced.costs[:, rows, columns][:, :, None]
        able = (saved > 0) & (extra <= left[:, None, None]).all(axis=0)
        price = np.tensordot(worth, np.maximum(extra, 0.0), axes=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(able, saved / price, -np.inf)
        column = ratio.argmax(axis=1)
        order = np.argsort(-ratio[rows, column], kind="stable")
        order = order[np.isfinite(saved[order, column[order]]) & able[order, column[order]]]
        taken = _prefixes(extra[:, order, column[order]], left)
        if not len(taken):
            return columns
        after = columns.copy()
        after[order[taken]] = column[order[taken]]
        if not reduced.fits(after):  # rounding at the limit: one by one is exact
            after = columns.copy()
            after[order[taken[0]]] = column[order[taken[0]]]
            if not reduced.fits(after):
                return columns
        columns = after


def _prefixes(
    costs: Float[np.ndarray, "budgets steps"], left: Float[np.ndarray, " budgets"]
) -> Int[np.ndarray, " taken"]:
    """Steps in their order that fit together; one that does not is passed over."""
    taken: list[Int[np.ndarray, " some"]] = []
    steps = np.arange(costs.shape[1])
    while len(steps):
        total = np.cumsum(costs[:, steps], axis=1)
        over = np.flatnonzero((total > left[:, None]).any(axis=0))
        count = int(over[0]) if len(over) else len(steps)
        taken.append(steps[:count])
        left = left - (total[:, count - 1] if count else 0.0)
        steps = steps[count + 1 :]
        steps = steps[(costs[:, steps] <= left[:, None]).all(axis=0)]
    return np.concatenate(taken) if taken else np.zeros(0, dtype=np.int64)


def _units(reduced: Reduced) -> Float[np.ndarray, " budgets"]:
    """What each budget leaves above the cheapest allocation, at least a trace of its spread."""
    least = cheapest_costs(reduced)
    left = reduced.limits - least.sum(axis=1)
    allowed = np.isfinite(reduced.losses)
    most = np.where(allowed, reduced.costs, -np.inf).max(axis=2) - least
    spread = most.sum(axis=1)
    return np.maximum(left, np.maximum(1e-9 * spread, 1e-300))


def _lagrangian(
    reduced: Reduced, prices: Multipliers
) -> tuple[float, Float[np.ndarray, " budgets"]]:
    """Value and a subgradient, use less limits, in floating point."""
    priced = reduced.losses + np.tensordot(prices, reduced.costs, axes=1)
    rows, columns = np.arange(len(priced)), priced.argmin(axis=1)
    slope = reduced.costs[:, rows, columns].sum(axis=1) - reduced.limits
    return float(priced[rows, columns].sum() - prices @ reduced.limits), slope


def _loss(reduced: Reduced, columns: Int[np.ndarray, " groups"]) -> float:
    return math.fsum(reduced.losses[np.arange(len(columns)), columns])
