"""Solvers: from a `Problem` to a `Solution` with a bound. No JAX; cvxpy only when used."""

from jmpq.solvers.baselines import draw_allocations, random_search, reversed_search, uniform
from jmpq.solvers.bounds import lagrangian_bound, lp_bound
from jmpq.solvers.branch_and_bound import BranchAndBound
from jmpq.solvers.brute_force import BruteForce
from jmpq.solvers.exact import Exact
from jmpq.solvers.greedy import Greedy
from jmpq.solvers.local_search import LocalSearch
from jmpq.solvers.row_bound import row_bound
from jmpq.solvers.solver import Solver

__all__ = [
    "BranchAndBound",
    "BruteForce",
    "Exact",
    "Greedy",
    "LocalSearch",
    "Solver",
    "draw_allocations",
    "lagrangian_bound",
    "lp_bound",
    "random_search",
    "reversed_search",
    "row_bound",
    "uniform",
]
