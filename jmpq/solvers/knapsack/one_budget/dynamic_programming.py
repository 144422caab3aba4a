"""The optimum under one budget of integer costs, by dynamic programming over the costs."""

import dataclasses
import math
import time

import numpy as np
from jaxtyping import Int

from jmpq.kinds import check_kinds
from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.one_budget.whole_units import IntegerCosts, integer_costs, one_budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicProgramming:
    """Bellman's recursion over costs 0, 1, 2, ...: a `Solver` for one integer budget.

    Costs are counted from each group's cheapest choice, in units of their greatest common
    divisor. V_i(c) is the least loss of the groups from i on when cost c is left:

        V_i(c) = min_j losses[i, j] + V_(i+1)(c − costs[i, j]).

    Time is groups × choices × units, and memory, for the choices to trace back, groups × units.
    `CoreSearch` is faster. Of allocations with equal loss the lexicographically first wins, by
    columns in the order of the groups. Losses are added in floating point from the last group
    to the first.

    Attributes:
        memory_limit_bytes: Largest table; problems that need more raise an error.

    References:
        Dudzinski and Walukiewicz (1987), Exact methods for the knapsack problem and its
        generalizations, European Journal of Operational Research 28, 3-21.
    """

    memory_limit_bytes: float = 1e9

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Raises:
            Infeasible: If no allocation meets the budgets.
            ValueError: If more than one budget can bind, its costs are not integers, or the
                table needs more than `memory_limit_bytes`.
        """
        started = time.perf_counter()
        reduced = problem.reduced()
        columns = cheapest_allocation(problem, reduced)
        reduced = one_budget(reduced, "Dynamic programming")
        if len(reduced.limits) == 0:
            columns = reduced.losses.argmin(axis=1)
        else:
            integer = integer_costs(reduced)
            if integer is None:
                raise ValueError(_not_integer(problem, reduced))
            self._check_memory(reduced, integer)
            columns = _cheapest_path(reduced, integer)
        loss, _ = problem.evaluate(reduced.expand(columns))
        above = loss - math.fsum(reduced.losses.min(axis=1))
        rounding = (2 + len(columns)) * np.finfo(np.float64).eps * above
        return solution_from_columns(
            problem,
            reduced.expand(columns),
            bound=loss - rounding,
            solver="dynamic_programming",
            wall_s=time.perf_counter() - started,
        )

    def _check_memory(self, reduced: Reduced, integer: IntegerCosts) -> None:
        groups, units = len(reduced.losses), integer.room + 1
        needed = units * (groups * np.dtype(_pick_type(reduced)).itemsize + 32)
        if needed > self.memory_limit_bytes:
            raise ValueError(
                f"Dynamic programming over {reduced.names[0]} needs {needed:.3g} bytes for "
                f"{groups} groups x {units} units of cost; memory_limit_bytes is "
                f"{self.memory_limit_bytes:.3g}. Raise it, round the costs up to coarser "
                "units, or use `CoreSearch`."
            )


def _pick_type(reduced: Reduced) -> type[np.unsignedinteger]:
    return np.uint8 if reduced.losses.shape[1] <= 256 else np.uint16


def _cheapest_path(reduced: Reduced, integer: IntegerCosts) -> Int[np.ndarray, " groups"]:
    """The allocation of least loss within the budget, in whole units of cost."""
    groups, units = len(reduced.losses), integer.room + 1
    above = reduced.losses - reduced.losses.min(axis=1, keepdims=True)
    costs = integer.above(reduced)
    picks = np.zeros((groups, units), dtype=_pick_type(reduced))
    value = np.zeros(units)  # least loss of the later groups, by cost that is left
    for i in reversed(range(groups)):
        new = np.full(units, np.inf)
        for column, (loss, cost) in enumerate(zip(above[i], costs[i], strict=True)):
            if cost < units and np.isfinite(loss):
                candidate = value[: units - cost] + loss
                better = candidate < new[cost:]
                np.copyto(new[cost:], candidate, where=better)
                picks[i, cost:][better] = column
        value = new
    columns, left = np.zeros(groups, dtype=np.int64), integer.room
    for i in range(groups):
        columns[i] = picks[i, left]
        left -= costs[i, columns[i]]
    return columns


def _not_integer(problem: Problem, reduced: Reduced) -> str:
    name = reduced.names[0]
    table = np.where(problem.allowed, problem.costs[name], 0.0)
    fractions = np.argwhere(table != np.floor(table))
    if len(fractions) == 0:
        return (
            f"The sum of {name} exceeds 2^53, where float64 no longer counts in ones: "
            "measure it in a larger unit, or use `CoreSearch`."
        )
    row, column = fractions[0]
    return (
        f"Layer {problem.layers[row]!r} at {problem.choices[column].label} has {name} "
        f"{table[row, column]}: dynamic programming takes integers. Round the costs up to "
        "whole units, or use `CoreSearch`."
    )
