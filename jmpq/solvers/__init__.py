"""Solvers: from a `Problem` to a `Solution` with a bound.

No JAX; cvxpy, SciPy and numba only when they are used.
"""

from jmpq.solvers.baselines import draw_allocations, random_search, reversed_search, uniform
from jmpq.solvers.bounds import lagrangian_bound, lp_bound
from jmpq.solvers.brute_force import BruteForce
from jmpq.solvers.choose import exact_solver, solve
from jmpq.solvers.core import CoreSearch
from jmpq.solvers.dynamic_programming import DynamicProgramming
from jmpq.solvers.exact import Exact
from jmpq.solvers.greedy import Greedy
from jmpq.solvers.solver import Solver

__all__ = [
    "BruteForce",
    "CoreSearch",
    "DynamicProgramming",
    "Exact",
    "Greedy",
    "Solver",
    "draw_allocations",
    "exact_solver",
    "lagrangian_bound",
    "lp_bound",
    "random_search",
    "reversed_search",
    "solve",
    "uniform",
]
