"""Solvers: from a `Problem` to a `Solution` with a proven lower bound.

A *solver* is anything callable on a problem: a function, or a frozen class whose fields are its
options. Most readers need `solve(problem)`, which picks a suitable one:

- one budget: `CoreSearch` finds and proves the optimum, of a million layers in seconds;
- several budgets: `SeveralBudgets` combines searches with an integer program (cvxpy, HiGHS). It
  proves the optimum of most networks in seconds and gives a gap for 100,000 layers;
- cross-layer terms: `BranchAndBound` gives the optimum or a proven gap, up to a thousand
  (layer, choice) pairs. Beyond that `LocalSearch` gives good allocations with a coarse bound.

The others serve comparisons and special cases. `Greedy` is the paper's Algorithm 1.
`DynamicProgramming` is an independent exact method for one budget. `Exact` is the integer
program alone, and `QuadraticProgram` the one with cross-layer terms (SCIP). `uniform`,
`random_search` and `reversed_search` are baselines. `ObjectiveSearch` minimises any function of
whole allocations, for example a measured loss.

No solver has to be trusted. `solution_from_columns` evaluates every answer with code that no
solver shares. A solver adds only its lower bound, and that bound decides ``optimal``.

- `solver`: the protocol. `automatic`: solvers by name.
- `knapsack`: losses that add up over the layers.
- `quadratic`: cross-layer terms as well.
- `measured`: the loss of whole allocations, measured or predicted.

To add a solver, write a file in one of these folders. It takes a `Problem`, works on
`problem.reduced()`, where tied layers are one group, and returns ``solution_from_columns(...)``
with the bound that it proves (-inf for none). Name the file on the page of its folder. Add the
solver to `automatic.SOLVERS`, to the help of ``Solve.solvers`` (`jmpq.run.options`), to the
exports here, and to ``PROOFS`` or ``SEARCHES`` of tests/solvers/test_degenerate.py. Solvers do
not use JAX and import cvxpy and SciPy lazily.
"""

from jmpq.solvers.automatic import make_solver, solve
from jmpq.solvers.knapsack.baselines import (
    draw_allocations,
    random_search,
    reversed_search,
    uniform,
)
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.knapsack.integer_program import Exact
from jmpq.solvers.knapsack.least_cost import least_cost
from jmpq.solvers.knapsack.one_budget.dynamic_programming import DynamicProgramming
from jmpq.solvers.knapsack.one_budget.expanding_core import CoreSearch
from jmpq.solvers.knapsack.pareto import pareto_hull
from jmpq.solvers.knapsack.relaxation_bounds import lp_bound
from jmpq.solvers.knapsack.several_budgets.anytime_search import SeveralBudgets
from jmpq.solvers.measured.accuracy_floor import CheapestAbove, cheapest_above
from jmpq.solvers.measured.objective_search import Measurement, Objective, ObjectiveSearch
from jmpq.solvers.measured.refinement import refine
from jmpq.solvers.quadratic.branch_and_bound import BranchAndBound
from jmpq.solvers.quadratic.brute_force import BruteForce
from jmpq.solvers.quadratic.quadratic_program import QuadraticProgram
from jmpq.solvers.quadratic.tabu_search import LocalSearch
from jmpq.solvers.solver import Solver

__all__ = [
    "BranchAndBound",
    "BruteForce",
    "CheapestAbove",
    "CoreSearch",
    "DynamicProgramming",
    "Exact",
    "Greedy",
    "LocalSearch",
    "Measurement",
    "Objective",
    "ObjectiveSearch",
    "QuadraticProgram",
    "SeveralBudgets",
    "Solver",
    "cheapest_above",
    "draw_allocations",
    "least_cost",
    "lp_bound",
    "make_solver",
    "pareto_hull",
    "random_search",
    "refine",
    "reversed_search",
    "solve",
    "uniform",
]
