"""Which exact solver to use where none is named."""

from typing import Literal

from jmpq.problem.problem import Problem
from jmpq.problem.solution import Solution
from jmpq.solvers.core import CoreSearch
from jmpq.solvers.dynamic_programming import DynamicProgramming
from jmpq.solvers.exact import Exact
from jmpq.solvers.solver import Solver

Named = Literal["auto", "core", "dynamic_programming"]


def exact_solver(
    problem: Problem, name: Named | str = "auto", *, time_limit_s: float = 60.0
) -> Solver:
    """The exact solver of a name, or the one that suits the problem.

    Args:
        problem: What is to be solved.
        name: ``core``, ``dynamic_programming`` (which keeps no time limit), or a mixed-integer
            solver by cvxpy's name, such as ``HIGHS`` or ``SCIP``. ``auto`` is the core solver
            for up to one budget, and HIGHS through cvxpy for several.
        time_limit_s: Seconds for the whole call.
    """
    if name == "core" or (name == "auto" and len(problem.budgets) <= 1):
        return CoreSearch(time_limit_s=time_limit_s)
    if name == "dynamic_programming":
        return DynamicProgramming()
    return Exact(time_limit_s=time_limit_s, solver="HIGHS" if name == "auto" else name)


def solve(problem: Problem, *, time_limit_s: float = 60.0) -> Solution:
    """Solve exactly, with the solver that suits the problem.

    Raises:
        Infeasible: If no allocation meets the budgets.
    """
    return exact_solver(problem, time_limit_s=time_limit_s)(problem)
