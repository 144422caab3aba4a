"""`jmpq instance`: the problems of a plan as files, with what the plan knows of them."""

import numpy as np
import pytest

from jmpq.problem import Plan, read_instance, read_plan
from jmpq.solvers import solve
from tests.cli.command import SMALL, jmpq, works


def test_the_problems_of_a_plan_are_written_with_what_it_proved(run):
    out = works("instance", run, "--formats", "json", "npz", "lp", "mps").out
    plan: Plan = read_plan(run / "plan.json")
    rows = {a.name: a for a in plan.allocations}
    names = {path.stem for path in (run / "instances").glob("*.json")}
    assert names == {"gauss_newton", "gauss_newton_full", "squared_error"}
    for kind in ("npz", "lp", "mps"):
        assert {path.stem for path in (run / "instances").glob(f"*.{kind}")} == names
    for metric in ("gauss_newton", "squared_error"):
        planned = rows[f"exact/{metric}"]
        for kind in ("json", "npz"):
            instance = read_instance(run / "instances" / f"{metric}.{kind}")
            problem, known = instance.problem, instance.known
            assert (instance.name, problem.layers) == (metric, plan.layers)
            assert problem.budgets == {k: b.limit for k, b in plan.budgets.items()}
            assert problem.asked == {k: b.asked for k, b in plan.budgets.items()}
            assert known.optimal
            assert known.loss == pytest.approx(planned.predicted_loss, rel=1e-12)
            assert known.source.startswith(f"exact/{metric} of a plan by jmpq")
            assert solve(problem).loss == pytest.approx(known.loss, rel=1e-9)
        assert f"{metric}.json: best known {known.loss:.6g} (exact/{metric}" in out
    full = read_instance(run / "instances" / "gauss_newton_full.json")
    loss, _ = full.problem.evaluate(full.known.columns)
    assert (
        loss
        == full.known.loss
        <= full.problem.evaluate(full.problem.columns(rows["exact/gauss_newton"].allocation))[0]
        * (1 + 1e-12)
    )
    assert not full.known.optimal  # nobody solved it
    assert np.isinf(full.known.bound)


def test_a_plan_with_a_name_has_its_own_instances(run):
    works("solve", run, *SMALL, "--name", "tight", "--budget", "size_bytes=10%")
    works("instance", run, "--plan", "tight", "--metrics", "squared_error")
    made = read_instance(run / "plans" / "tight" / "instances" / "squared_error.json")
    assert made.problem.asked == {"size_bytes": "10%"}
    assert not (run / "instances").exists()


def test_what_there_is_not_is_refused(run):
    result = jmpq("instance", run, "--metrics", "gauss_newtn")
    assert result.code == 1
    assert "Metric 'gauss_newtn' is not in" in result.err
    (run / "plan.json").unlink()
    result = jmpq("instance", run)
    assert (result.code, result.out) == (1, "")
    assert "plan.json not found: run `jmpq solve" in result.err
