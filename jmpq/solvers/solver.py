"""What a solver is."""

from typing import Protocol, runtime_checkable

from jmpq.problem.problem import Problem
from jmpq.problem.solution import Solution


@runtime_checkable
class Solver(Protocol):
    """Anything callable on a problem; raises `Infeasible` where no allocation fits."""

    def __call__(self, problem: Problem) -> Solution: ...
