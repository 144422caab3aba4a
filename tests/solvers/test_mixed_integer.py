"""What the solvers behind cvxpy say of themselves, and what is made of it."""

import subprocess
import sys
import types

import cvxpy
import numpy as np
import pytest

from jmpq.solvers import Exact, Greedy
from jmpq.solvers.knapsack import mixed_integer
from tests.solvers.instances import optimum, random_problem


def test_a_solver_that_is_not_installed_is_refused_with_those_that_are():
    with pytest.raises(
        ValueError, match=r"finds no mixed-integer solver 'NOPE'; it finds .*HIG"
    ):
        Exact(solver="NOPE")(random_problem(0))
    assert "HIGHS" in mixed_integer.installed()
    mixed_integer.check_installed("HIGHS")


@pytest.mark.parametrize(
    "solver", [s for s in mixed_integer.installed() if s in mixed_integer.LISTED]
)
def test_every_installed_solver_finds_the_optimum_and_keeps_its_options(solver):
    problem = random_problem(3, layers=6, choices=3, budgets=2)
    best, solution = optimum(problem), Exact(solver=solver, time_limit_s=20.0)(problem)
    assert solution.loss == pytest.approx(best, rel=1e-9)
    assert solution.bound <= best
    assert solution.solver == ("exact" if solver == "HIGHS" else f"exact/{solver}")


def test_time_limit_and_gap_go_by_the_names_of_each_solver():
    given = {name: mixed_integer.options(name, 7.0, 0.25) for name in mixed_integer.LISTED}
    given["SCIP"], given["SCIPY"] = (
        given["SCIP"]["scip_params"],
        given["SCIPY"]["scipy_options"],
    )
    limits = {
        "HIGHS": {"time_limit": 7.0, "mip_rel_gap": 0.25},
        "SCIP": {"limits/time": 7.0, "limits/gap": 0.25},
        "SCIPY": {"time_limit": 7.0, "mip_rel_gap": 0.25},
        "GUROBI": {"TimeLimit": 7.0, "MIPGap": 0.25},
        "GLPK_MI": {"tm_lim": 7000, "mip_gap": 0.25},
        "CBC": {"maximumSeconds": 7.0},
    }
    assert set(limits) == set(given)
    for name, expected in limits.items():
        assert expected.items() <= given[name].items(), name
    assert mixed_integer.options("UNKNOWN", 7.0, 0.25) == {}


def test_a_dual_bound_is_only_what_a_solver_reports_as_one():
    model = types.SimpleNamespace(getDualbound=lambda: 3)
    reported = {
        "HIGHS": types.SimpleNamespace(mip_dual_bound=1.5),
        "SCIP": {"model": model},
        "SCIPY": {"mip_dual_bound": 2.5},
        "GUROBI": types.SimpleNamespace(ObjBound=4.0),
    }
    found = {name: mixed_integer.dual_bound(name, stats) for name, stats in reported.items()}
    assert found == {"HIGHS": 1.5, "SCIP": 3.0, "SCIPY": 2.5, "GUROBI": 4.0}
    assert mixed_integer.dual_bound("CBC", {"bound": 1.0}) is None
    assert mixed_integer.dual_bound("HIGHS", None) is None


def test_statuses_are_mapped_case_by_case():
    with_answer = types.SimpleNamespace(primal_solution_status=2)
    without = types.SimpleNamespace(primal_solution_status=0)
    cases = [
        ("HIGHS", cvxpy.OPTIMAL, None, True),
        ("SCIP", cvxpy.OPTIMAL_INACCURATE, None, True),
        ("HIGHS", cvxpy.USER_LIMIT, with_answer, True),
        ("HIGHS", cvxpy.USER_LIMIT, without, False),
        ("SCIP", cvxpy.USER_LIMIT, None, True),
        ("HIGHS", cvxpy.INFEASIBLE, None, False),
        ("GUROBI", cvxpy.INFEASIBLE_INACCURATE, None, False),
    ]
    for solver, status, stats, expected in cases:
        assert mixed_integer.has_answer(solver, status, stats) == expected, (solver, status)
    for status in (cvxpy.UNBOUNDED, cvxpy.SOLVER_ERROR):
        with pytest.raises(RuntimeError, match=f"SCIP ended with status '{status}'"):
            mixed_integer.has_answer("SCIP", status, None)


@pytest.mark.parametrize("bound", [None, -np.inf])
def test_without_a_dual_bound_nothing_is_called_optimal(monkeypatch, bound):
    """The solver's own "optimal" does not count, only bounds do."""
    monkeypatch.setattr("jmpq.solvers.knapsack.integer_program.dual_bound", lambda *_: bound)
    problem = random_problem(3, layers=6, choices=3, budgets=2)
    best, solution = optimum(problem), Exact()(problem)
    assert solution.loss == pytest.approx(best, rel=1e-9)
    assert solution.status == "feasible"
    assert Greedy()(problem).bound <= solution.bound < best


def test_highs_prints_nothing_of_itself():
    code = (
        "import pathlib, tempfile\n"
        "from jmpq.problem import write_program\n"
        "from jmpq.solvers.knapsack.integer_program import Exact\n"
        "from tests.solvers.instances import random_problem\n"
        "problem = random_problem(3, layers=6, choices=3, budgets=2)\n"
        "print(Exact(solver='HIGHS')(problem).status)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    write_program(pathlib.Path(folder) / 'p.lp', problem)\n"
        "print('end')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["optimal", "end", ""]), (
        done.stderr
    )
