"""Solvers: from a `Problem` to a `Solution` with a bound.

No JAX; cvxpy, SciPy and numba only when they are used.
"""

from jmpq.solvers.automatic import exact_solver, solve
from jmpq.solvers.knapsack.baselines import (
    draw_allocations,
    random_search,
    reversed_search,
    uniform,
)
from jmpq.solvers.knapsack.budget_sweep import sweep, write_csv
from jmpq.solvers.knapsack.dynamic_programming import DynamicProgramming
from jmpq.solvers.knapsack.expanding_core import CoreSearch
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.knapsack.integer_program import Exact
from jmpq.solvers.knapsack.least_cost import LeastCost, least_cost
from jmpq.solvers.knapsack.multiplier_search import MultiplierSearch
from jmpq.solvers.knapsack.pareto import Front, Hull, pareto_front, pareto_hull
from jmpq.solvers.knapsack.relaxation_bounds import lagrangian_bound, lp_bound
from jmpq.solvers.knapsack.water_filling import (
    BitModel,
    WaterFilling,
    fit_bit_model,
    water_filling,
)
from jmpq.solvers.measured.accuracy_floor import CheapestAbove, cheapest_above
from jmpq.solvers.measured.objective_search import Measurement, Objective, ObjectiveSearch
from jmpq.solvers.measured.refinement import Refinement, refine
from jmpq.solvers.quadratic.branch_and_bound import BranchAndBound
from jmpq.solvers.quadratic.brute_force import BruteForce
from jmpq.solvers.quadratic.linearized import Linearized
from jmpq.solvers.quadratic.semidefinite import semidefinite_bound
from jmpq.solvers.quadratic.separable_bounds import convex_bound, linearized_bound, row_bound
from jmpq.solvers.quadratic.tabu_search import LocalSearch
from jmpq.solvers.solver import Solver

__all__ = [
    "BitModel",
    "BranchAndBound",
    "BruteForce",
    "CheapestAbove",
    "CoreSearch",
    "DynamicProgramming",
    "Exact",
    "Front",
    "Greedy",
    "Hull",
    "LeastCost",
    "Linearized",
    "LocalSearch",
    "Measurement",
    "MultiplierSearch",
    "Objective",
    "ObjectiveSearch",
    "Refinement",
    "Solver",
    "WaterFilling",
    "cheapest_above",
    "convex_bound",
    "draw_allocations",
    "exact_solver",
    "fit_bit_model",
    "lagrangian_bound",
    "least_cost",
    "linearized_bound",
    "lp_bound",
    "pareto_front",
    "pareto_hull",
    "random_search",
    "refine",
    "reversed_search",
    "row_bound",
    "semidefinite_bound",
    "solve",
    "sweep",
    "uniform",
    "water_filling",
    "write_csv",
]
