"""What a solver is."""

from typing import Protocol

from jmpq.problem.problem import Problem
from jmpq.problem.solution import Solution


class Solver(Protocol):
    """Anything callable on a problem; raises `Infeasible` where no allocation fits."""

    def __call__(self, problem: Problem) -> Solution: ...
