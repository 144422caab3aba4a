"""The solver of a name, and the one that suits a problem where none is named."""

from typing import Literal

from jmpq.problem.problem import Problem
from jmpq.problem.solution import Solution
from jmpq.solvers.knapsack.dynamic_programming import DynamicProgramming
from jmpq.solvers.knapsack.expanding_core import CoreSearch
from jmpq.solvers.knapsack.integer_program import Exact
from jmpq.solvers.knapsack.several_budgets.anytime_search import SeveralBudgets
from jmpq.solvers.quadratic.branch_and_bound import BranchAndBound
from jmpq.solvers.quadratic.tabu_search import LocalSearch
from jmpq.solvers.solver import Solver

_BRANCHED = 1000  # options, (layer, choice) pairs, up to which branch and bound is worth a try

SolverName = Literal[
    "auto", "core", "several_budgets", "dynamic_programming", "branch_and_bound", "local_search"
]


def exact_solver(
    problem: Problem, name: SolverName | str = "auto", *, time_limit_s: float = 60.0
) -> Solver:
    """The exact solver of a name, or the one that suits the problem.

    Args:
        problem: What is to be solved.
        name: ``core``, ``several_budgets``, ``dynamic_programming`` (which keeps no time
            limit), a mixed-integer solver by cvxpy's name, such as ``HIGHS`` or ``SCIP``; for
            cross-layer terms ``branch_and_bound``, or ``local_search``, which proves little.
            ``auto`` is the core solver for up to one budget, else that of several budgets;
            with cross-layer terms branch and bound, and the local search where there are too
            many options for it.
        time_limit_s: Seconds for the whole call.

    Raises:
        ValueError: If the problem has cross-layer terms and the solver named does not take
            them: nothing is left out silently.
    """
    if name == "auto":
        if problem.interactions is not None:
            small = int(problem.allowed.sum()) <= _BRANCHED
            name = "branch_and_bound" if small else "local_search"
        else:
            name = "core" if len(problem.budgets) <= 1 else "several_budgets"
    match name:
        case "branch_and_bound":
            return BranchAndBound(time_limit_s=time_limit_s)
        case "local_search":
            return LocalSearch(time_limit_s=time_limit_s)
    if problem.interactions is not None:
        raise ValueError(
            f"Solver {name!r} takes no cross-layer terms: choose branch_and_bound or "
            "local_search, or leave the terms out with `problem.separable()`."
        )
    match name:
        case "core":
            return CoreSearch(time_limit_s=time_limit_s)
        case "several_budgets":
            return SeveralBudgets(time_limit_s=time_limit_s)
        case "dynamic_programming":
            return DynamicProgramming()
        case _:
            return Exact(time_limit_s=time_limit_s, solver=name)


def solve(problem: Problem, *, time_limit_s: float = 60.0) -> Solution:
    """Solve with the solver that suits the problem, exactly where that is possible.

    Raises:
        Infeasible: If no allocation meets the budgets.
    """
    return exact_solver(problem, time_limit_s=time_limit_s)(problem)
