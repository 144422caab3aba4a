"""The solver of a name, and the one that suits a problem where none is named.

`SOLVERS` has one entry a name; the command line takes its names from here.
"""

import dataclasses
from collections.abc import Callable, Mapping

from jmpq.problem.problem import Problem
from jmpq.problem.solution import Solution
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.knapsack.integer_program import Exact
from jmpq.solvers.knapsack.one_budget.dynamic_programming import DynamicProgramming
from jmpq.solvers.knapsack.one_budget.expanding_core import CoreSearch
from jmpq.solvers.knapsack.several_budgets.anytime_search import SeveralBudgets
from jmpq.solvers.quadratic.branch_and_bound import BranchAndBound
from jmpq.solvers.quadratic.tabu_search import LocalSearch
from jmpq.solvers.solver import Solver
from jmpq.text import did_you_mean

_BRANCHED = 1000  # options, (layer, choice) pairs, up to which branch and bound is worth a try


@dataclasses.dataclass(frozen=True)
class NamedSolver:
    """A solver that has a name.

    Attributes:
        make: Solver for a time limit in seconds.
        cross_layer: Whether the solver counts cross-layer terms.
    """

    make: Callable[[float], Solver]
    cross_layer: bool = False


SOLVERS: Mapping[str, NamedSolver] = {
    "greedy": NamedSolver(lambda _: Greedy()),
    "core": NamedSolver(lambda seconds: CoreSearch(time_limit_s=seconds)),
    "several_budgets": NamedSolver(lambda seconds: SeveralBudgets(time_limit_s=seconds)),
    "dynamic_programming": NamedSolver(lambda _: DynamicProgramming()),
    "local_search": NamedSolver(lambda seconds: LocalSearch(time_limit_s=seconds), True),
    "branch_and_bound": NamedSolver(lambda seconds: BranchAndBound(time_limit_s=seconds), True),
}
CROSS_LAYER = tuple(name for name, solver in SOLVERS.items() if solver.cross_layer)


def make_solver(problem: Problem, name: str = "exact", *, time_limit_s: float = 60.0) -> Solver:
    """The solver of a name, or the exact one that suits the problem.

    Args:
        problem: What is to be solved.
        name: A name of `SOLVERS`, or a mixed-integer solver by cvxpy's name, such as ``HIGHS``
            or ``SCIP``. ``exact`` is ``core`` for up to one budget, else ``several_budgets``;
            with cross-layer terms ``branch_and_bound``, and ``local_search``, which proves
            little, where there are too many options for it.
        time_limit_s: Seconds for the whole call; ``greedy`` and ``dynamic_programming`` keep
            no limit.

    Raises:
        ValueError: If no solver has the name, or if the problem has cross-layer terms and the
            solver named does not take them: nothing is left out silently.
    """
    crossed = problem.interactions is not None
    if name == "exact":
        if crossed:
            small = int(problem.allowed.sum()) <= _BRANCHED
            name = "branch_and_bound" if small else "local_search"
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
    """Refuse what cannot be a solver's name.

    Raises:
        ValueError: With all names.
    """
    if name != "exact" and name not in SOLVERS and not name.isupper():
        raise ValueError(
            f"solvers={name!r}.{did_you_mean(name, ('exact', *SOLVERS))} Expected exact, "
            f"{', '.join(SOLVERS)}, or a mixed-integer solver by "
            "cvxpy's name, such as HIGHS or SCIP."
        )


def solve(problem: Problem, *, time_limit_s: float = 60.0) -> Solution:
    """Solve with the solver that suits the problem, exactly where that is possible.

    Raises:
        Infeasible: If no allocation meets the budgets.
    """
    return make_solver(problem, time_limit_s=time_limit_s)(problem)
