"""What a solver is, and the check of its options."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jmpq.problem.problem import Problem
from jmpq.problem.solution import Solution


@runtime_checkable
class Solver(Protocol):
    """Anything callable on a problem; raises `Infeasible` where no allocation fits."""

    def __call__(self, problem: Problem) -> Solution: ...


def check_options(
    solver: Solver,
    *,
    above_0: Sequence[str] = (),
    from_0: Sequence[str] = (),
    from_1: Sequence[str] = (),
) -> None:
    """Check that the options of a solver are in range.

    Args:
        solver: Solver whose fields are its options.
        above_0: Names of the options that must be above 0.
        from_0: Names of the options that must be at least 0.
        from_1: Names of the options that must be at least 1.

    Raises:
        ValueError: If an option is out of range; the message names it.
    """
    for name in (*above_0, *from_0, *from_1):
        value = getattr(solver, name)
        least = "above 0" if name in above_0 else f"at least {int(name in from_1)}"
        if not (value > 0 if name in above_0 else value >= int(name in from_1)):
            raise ValueError(f"{type(solver).__name__} got {name}={value}: expected {least}.")
