"""Solvers by name, and the default solver of a problem.

`SOLVERS` has one entry per name; the command line takes its names from here.
"""

import dataclasses
from collections.abc import Callable, Mapping

from jmpq.kinds import check_kinds
from jmpq.problem.problem import Problem
from jmpq.problem.solution import Solution
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.knapsack.integer_program import Exact
from jmpq.solvers.knapsack.one_budget.dynamic_programming import DynamicProgramming
from jmpq.solvers.knapsack.one_budget.expanding_core import CoreSearch
from jmpq.solvers.knapsack.several_budgets.anytime_search import SeveralBudgets
from jmpq.solvers.quadratic.branch_and_bound import BranchAndBound
from jmpq.solvers.quadratic.quadratic_program import QuadraticProgram
from jmpq.solvers.quadratic.tabu_search import LocalSearch
from jmpq.solvers.solver import Solver
from jmpq.text import did_you_mean

_BRANCHED = 1000  # options, (layer, choice) pairs, up to which branch and bound is worth a try


@dataclasses.dataclass(frozen=True)
class NamedSolver:
    """Entry of `SOLVERS`.

    Attributes:
        make: Function from a time limit in seconds to a solver.
        cross_layer: Whether the solver counts cross-layer terms.
    """

    make: Callable[[float], Solver]
    cross_layer: bool = False


SOLVERS: Mapping[str, NamedSolver] = {
    "greedy": NamedSolver(lambda _: Greedy()),
    "greedy_dual_prices": NamedSolver(lambda _: Greedy(weights="dual_prices")),
    "core": NamedSolver(lambda seconds: CoreSearch(time_limit_s=seconds)),
    "several_budgets": NamedSolver(lambda seconds: SeveralBudgets(time_limit_s=seconds)),
    "dynamic_programming": NamedSolver(lambda _: DynamicProgramming()),
    "local_search": NamedSolver(lambda seconds: LocalSearch(time_limit_s=seconds), True),
    "branch_and_bound": NamedSolver(lambda seconds: BranchAndBound(time_limit_s=seconds), True),
    "quadratic_program": NamedSolver(lambda s: QuadraticProgram(time_limit_s=s), True),
}
CROSS_LAYER = tuple(name for name, solver in SOLVERS.items() if solver.cross_layer)


def make_solver(problem: Problem, name: str = "exact", *, time_limit_s: float = 60.0) -> Solver:
    """The solver of a name; ``exact`` depends on the problem.

    Args:
        problem: Problem to solve.
        name: Name in `SOLVERS`, or cvxpy's name of a mixed-integer solver, such as ``HIGHS``
            or ``SCIP``. ``exact`` means ``core`` for up to one budget, else
            ``several_budgets``. With cross-layer terms it means ``branch_and_bound``, or, if
            there are too many options, ``local_search`` until time is up, which proves little.
        time_limit_s: Seconds for the whole call; ``greedy``, ``greedy_dual_prices`` and
            ``dynamic_programming`` ignore it.

    Raises:
        ValueError: If no solver has the name, or if the problem has cross-layer terms and the
            solver does not support them.
    """
    crossed = problem.interactions is not None
    if name == "exact":
        if crossed:
            if int(problem.allowed.sum()) > _BRANCHED:
                return LocalSearch(time_limit_s=time_limit_s, restarts=None)
            name = "branch_and_bound"
        else:
            name = "core" if len(problem.budgets) <= 1 else "several_budgets"
    check_solver(name)
    if crossed and name not in CROSS_LAYER:
        raise ValueError(
            f"Solver {name!r} takes no cross-layer terms: choose "
            f"{' or '.join(CROSS_LAYER)}, or leave the terms out with `problem.separable()`."
        )
    if name in SOLVERS:
        return SOLVERS[name].make(time_limit_s)
    return Exact(time_limit_s=time_limit_s, solver=name)


def check_solver(name: str) -> None:
    """Check a solver's name.

    Raises:
        ValueError: If it is unknown; the message lists all names.
    """
    if name != "exact" and name not in SOLVERS and not name.isupper():
        raise ValueError(
            f"solvers={name!r}.{did_you_mean(name, ('exact', *SOLVERS))} Expected exact, "
            f"{', '.join(SOLVERS)}, or a mixed-integer solver by "
            "cvxpy's name, such as HIGHS or SCIP."
        )


@check_kinds
def solve(problem: Problem, *, time_limit_s: float = 60.0) -> Solution:
    """Solve with the default solver of the problem, exactly if possible.

    Raises:
        Infeasible: If no allocation meets the budgets.
    """
    return make_solver(problem, time_limit_s=time_limit_s)(problem)
