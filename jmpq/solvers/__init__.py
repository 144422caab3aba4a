"""Solvers: from a `Problem` to a `Solution` with a bound.

No JAX; cvxpy, SciPy and numba only when they are used.
"""

from jmpq.solvers.baselines import draw_allocations, random_search, reversed_search, uniform
from jmpq.solvers.bounds import lagrangian_bound, lp_bound
from jmpq.solvers.branch_and_bound import BranchAndBound
from jmpq.solvers.brute_force import BruteForce
from jmpq.solvers.choose import exact_solver, solve
from jmpq.solvers.core import CoreSearch
from jmpq.solvers.dynamic_programming import DynamicProgramming
from jmpq.solvers.exact import Exact
from jmpq.solvers.floor import FloorSearch, cheapest_above
from jmpq.solvers.greedy import Greedy
from jmpq.solvers.least_cost import LeastCost, least_cost
from jmpq.solvers.linearized import Linearized
from jmpq.solvers.local_search import LocalSearch
from jmpq.solvers.multipliers import MultiplierSearch
from jmpq.solvers.objective_search import ObjectiveSearch, columns_of
from jmpq.solvers.pareto import Front, Hull, pareto_front, pareto_hull
from jmpq.solvers.quadratic_bounds import convex_bound, linearized_bound, row_bound
from jmpq.solvers.refinement import Refinement, refine
from jmpq.solvers.semidefinite import semidefinite_bound
from jmpq.solvers.solver import Solver
from jmpq.solvers.sweep import sweep, write_csv
from jmpq.solvers.water_filling import BitModel, WaterFilling, fit_bit_model, water_filling

__all__ = [
    "BitModel",
    "BranchAndBound",
    "BruteForce",
    "CoreSearch",
    "DynamicProgramming",
    "Exact",
    "FloorSearch",
    "Front",
    "Greedy",
    "Hull",
    "LeastCost",
    "Linearized",
    "LocalSearch",
    "MultiplierSearch",
    "ObjectiveSearch",
    "Refinement",
    "Solver",
    "WaterFilling",
    "cheapest_above",
    "columns_of",
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
