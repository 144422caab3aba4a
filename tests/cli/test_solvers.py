import json

import numpy as np
import pytest

from jmpq.solvers.knapsack.mixed_integer import installed
from tests.cli.command import FEW, SMALL, finish, jmpq, process, works

ONE = ("--comparison", "none")
FREE = ("--first-last-bits", "0", "--budget", "size_bytes=40%")


def rows(run):
    plan = json.loads((run / "plan.json").read_text())
    return {row["name"]: row for row in plan["allocations"]}


@pytest.mark.parametrize("solver", ["core", "dynamic_programming", "HIGHS", "SCIP"])
def test_the_exact_optimum_is_found_by_the_solver_that_is_named(run, solver):
    if solver == "SCIP" and solver not in installed():
        pytest.skip("SCIP is not installed")
    works("solve", run, "--replace", *ONE, *FREE, "--metrics", "gauss_newton")
    want = rows(run)["exact/gauss_newton"]
    works(
        "solve", run, "--replace", *ONE, *FREE, "--metrics", "gauss_newton", "--solvers", solver
    )
    (found,) = rows(run).values()
    assert (found["name"], found["asked"]) == (f"{solver}/gauss_newton", solver)
    back_ends = {"HIGHS": "exact", "SCIP": "exact/SCIP"}
    assert found["solver"] == back_ends.get(solver, solver)
    assert (want["solver"], want["status"], found["status"]) == ("core", "optimal", "optimal")
    assert found["predicted_loss"] == pytest.approx(want["predicted_loss"], rel=1e-9)


def test_a_solver_that_is_not_there_is_an_error_of_one_line(run):
    before = (run / "plan.json").read_bytes()
    result = jmpq("solve", run, "--replace", *SMALL, "--solvers", "NOPE")
    assert result.code == 1
    assert result.err.startswith("jmpq: cvxpy finds no mixed-integer solver 'NOPE'; it finds ")
    assert result.err.count("\n") == 1
    assert (run / "plan.json").read_bytes() == before


def test_cross_layer_terms_are_solved_where_a_metric_has_them(run):
    quadratic = ("--solvers", "exact", "local_search", "branch_and_bound")
    result = works("solve", run, "--replace", *SMALL, *FREE, *quadratic)
    assert (
        "local_search, branch_and_bound: squared_error has no cross-layer terms, left out"
        in (result.out)
    )
    found = rows(run)
    searched = found["local_search/gauss_newton_full"]
    proven = found["branch_and_bound/gauss_newton_full"]
    assert proven["status"] == "optimal"
    assert proven["predicted_loss"] <= searched["predicted_loss"] * (1 + 1e-12)
    assert not any(name.startswith("local_search/squared_error") for name in found)
    # The sweep over other budgets has them too, and every solver's gaps are printed.
    swept = [row for name, row in found.items() if name.startswith("sweep/branch_and_bound/")]
    assert [row["metric"] for row in swept] == ["gauss_newton_full"] * 2
    assert all(row["status"] == "optimal" for row in swept)
    assert len({row["budgets"]["size_bytes"] for row in (*swept, proven)}) == 3
    printed = {
        line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line.strip()
    }
    for solver in ("local_search", "branch_and_bound"):
        budgets, optimal, median, worst, seconds = printed[f"{solver}/gauss_newton_full"]
        assert (budgets, float(seconds) > 0) == ("3", True)
        assert float(median) <= float(worst)
    assert (optimal, worst) == ("3", "0")  # of branch and bound
    for row in (searched, proven):
        assert row["metric"] == "gauss_newton_full"
        assert row["predicted_loss"] == pytest.approx(row["predictions"]["gauss_newton_full"])
        assert row["costs"]["size_bytes"] <= row["budgets"]["size_bytes"]
    # No allocation within budget is better by the whole quadratic form, the exact one neither.
    exact = found["exact/gauss_newton"]
    assert exact["predicted_loss"] == pytest.approx(exact["predictions"]["gauss_newton"])
    best = proven["predictions"]["gauss_newton_full"]
    within = [
        row["predictions"]["gauss_newton_full"]
        for row in found.values()
        if row["costs"].get("size_bytes", np.inf) <= proven["budgets"]["size_bytes"]
    ]
    assert min(within) >= best * (1 - 1e-9)


def test_scip_proves_the_optimum_of_cross_layer_terms(run):
    pytest.importorskip("pyscipopt")
    both = ("--solvers", "branch_and_bound", "quadratic_program", "--metrics", "gauss_newton")
    works("solve", run, "--replace", *ONE, *FREE, *both)
    found = rows(run)
    ours = found["branch_and_bound/gauss_newton_full"]
    theirs = found["quadratic_program/gauss_newton_full"]
    assert theirs["solver"] == "scip"
    assert theirs["predicted_loss"] == pytest.approx(ours["predicted_loss"], rel=1e-6)
    assert theirs["bound"] == pytest.approx(ours["bound"], rel=1e-4, abs=1e-6)
    assert theirs["bound"] <= theirs["predicted_loss"]


def test_a_quadratic_solver_without_cross_layer_terms_is_an_error_of_one_line(run):
    result = jmpq(
        "solve", run, "--replace", "--metrics", "squared_error", "--solvers", "branch_and_bound"
    )
    assert result.code == 1
    assert (
        "jmpq: Solver 'branch_and_bound' needs a metric with cross-layer terms; squared_error "
        "has none." in result.err
    )
    assert result.err.count("\n") == 1


def test_solving_one_budget_imports_what_it_needs_and_no_more(run):
    works("sensitivity", run, *FEW, "--metrics", "gauss_newton", "composed")
    code = """
import sys
from jmpq.cli.main import main
run, solvers = sys.argv[1], ["--solvers", "exact", "greedy"]
main(["solve", run, "--replace", "--budget", "size_bytes=40%", *solvers])
print("composed_kl" in open(run + "/plan.json").read())
print(sorted({"jax", "flax", "cvxpy", "highspy", "scipy"} & set(sys.modules)))
"""
    result = finish(process(run, code=code))
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-2:] == ["True", "[]"]
