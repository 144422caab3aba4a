"""The integer quadratic program solved by SCIP: a rival of the solvers here."""

import dataclasses
import pathlib
import tempfile
import time

import numpy as np

from jmpq.kinds import check_kinds
from jmpq.problem.instances.program_file import write_program
from jmpq.problem.problem import Problem
from jmpq.problem.solution import Solution, solution_from_columns
from jmpq.solvers.quadratic.tabu_search import LocalSearch
from jmpq.solvers.solver import check_options

_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticProgram:
    """SCIP on the program as `write_program` states it: a `Solver` for any budgets.

    It needs the extra ``scip``. The bound is SCIP's dual bound minus its tolerance, and as
    sound as SCIP's floating-point arithmetic. An answer that breaks a budget in exact sums, or
    that is worse than a short local search's, is replaced by the local search's.

    Attributes:
        time_limit_s: Seconds for the whole call; stating the program is not interrupted.
        threads: Threads that SCIP may use.
    """

    time_limit_s: float = 60.0
    threads: int = 1

    def __post_init__(self) -> None:
        check_options(self, above_0=("time_limit_s",), from_1=("threads",))

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Raises:
            Infeasible: If no allocation meets the budgets.
            ImportError: If pyscipopt is not installed.
        """
        started = time.perf_counter()
        short = LocalSearch(restarts=0, time_limit_s=0.1 * self.time_limit_s, bound=False)
        first = short(problem)
        columns, bound = scip(problem, started + self.time_limit_s, self.threads)
        best = first.columns
        if columns is not None:
            loss, costs = problem.evaluate(columns)
            if not problem.violated(costs) and loss < first.loss:
                best = columns
        return solution_from_columns(
            problem,
            best,
            bound=min(bound, problem.evaluate(best)[0]),
            solver="scip",
            wall_s=time.perf_counter() - started,
        )


def scip(
    problem: Problem, deadline: float, threads: int = 1, *, processor_time: bool = False
) -> tuple[np.ndarray | None, float]:
    """Columns that SCIP finds, or None, and the bound that it proves.

    Args:
        problem: The problem.
        deadline: Time on the clock of `time.perf_counter`.
        threads: Threads that SCIP may use.
        processor_time: Whether SCIP's time limit counts processor time, not wall time.

    Raises:
        ImportError: If pyscipopt is not installed.
    """
    try:
        import pyscipopt
    except ImportError as error:
        raise ImportError(
            "Solver 'scip' needs pyscipopt, which is not installed: pip install 'jmpq[scip]'."
        ) from error
    model = pyscipopt.Model()
    model.hideOutput()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "problem.mps"
        write_program(path, problem)
        model.readProblem(str(path))
    model.setParam("timing/clocktype", 1 if processor_time else 2)
    model.setParam("limits/time", max(deadline - time.perf_counter(), 0.01))
    model.setParam("numerics/feastol", _TOLERANCE)
    model.setParam("numerics/dualfeastol", _TOLERANCE)
    model.setParam("limits/gap", 0.0)
    model.setParam("parallel/maxnthreads", threads)
    model.setParam("lp/threads", threads)
    model.optimize()
    bound = model.getDualbound()
    bound = bound - _TOLERANCE * (1 + abs(bound)) if abs(bound) < model.infinity() else -np.inf
    if model.getNSols() == 0:
        return None, bound
    columns = np.zeros(int(problem.groups.max()) + 1, dtype=np.int64)
    for variable in model.getVars():
        name, *numbers = variable.name.split("_")
        if name == "x" and model.getVal(variable) > 0.5:
            columns[int(numbers[0])] = int(numbers[1])
    return columns[problem.groups], bound
