"""Solvers: from a `Problem` to a `Solution` whose bound says how good it can be.

A *solver* is anything callable on a problem: a function, or a frozen class whose fields are
its options. `solve(problem)` picks the one that suits and is what most readers need:

- one budget: `CoreSearch`, the optimum with its proof, a million layers in seconds;
- several budgets: `SeveralBudgets`, searches that end in an integer program by cvxpy and HiGHS;
  the optimum of most problems of networks in seconds, a proven gap for 100,000 layers;
- cross-layer terms: `BranchAndBound` up to a thousand (layer, choice) pairs, the optimum or a
  proven gap; beyond that `LocalSearch`, good allocations with a coarse bound.

The others are for comparison and for special cases: `Greedy` is the paper's Algorithm 1,
`DynamicProgramming` a second proof of the first kind, `Exact` the integer program alone, by
HiGHS or another solver, `uniform`, `random_search` and `reversed_search` are baselines, and
`ObjectiveSearch` minimises any function of whole allocations, a measured loss for one.

`automatic` has their names. A `solver` takes a problem, whatever else it is.

Nobody has to be believed. `solution_from_columns` evaluates an answer anew, by code that no
solver shares; a solver adds only its lower bound, and ``optimal`` is what that bound proves.

- `knapsack`: losses that add up over the layers.
- `quadratic`: cross-layer terms too.
- `measured`: the loss of whole allocations, measured or predicted.

To add a solver, write a file in one of these folders that takes a `Problem`, works on
`problem.reduced()` (tied layers are one group there) and returns ``solution_from_columns(...)``
with the bound it can prove, -inf for none. Give it an entry in `automatic.SOLVERS`, from where
the command line takes its name, and a word in the help of ``Solve.solvers``
(`jmpq.run.options`); export its class here, and add it to the list of
tests/solvers/test_degenerate.py. A method of several files gets a folder of its own. No JAX
here; cvxpy and SciPy are imported where they are used.
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
