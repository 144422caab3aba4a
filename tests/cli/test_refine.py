"""`jmpq refine`, `race` and `floor`: allocations decided by measurement, in the plan."""

import json
from dataclasses import replace

import pytest

from jmpq.allocation import Allocation
from jmpq.sensitivity.table import load_sensitivities
from tests.cli.command import SMALL, jmpq, works


def read(path):
    return json.loads(path.read_text())


def by_name(run):
    return {a["name"]: a for a in read(run / "plan.json")["allocations"]}


def test_refined_allocation_measures_no_worse_and_goes_on(run):
    few = ("--batch-size", 40)
    before = by_name(run)
    out = works("refine", run, "--max-evaluations", 2, *few).out
    assert "exact/gauss_newton: measured kl" in out
    (journal,) = run.glob(".refine.*.journal")
    first = journal.read_text().splitlines()
    assert len(first) == 1 + 2
    out = works("refine", run, "--max-evaluations", 24, *few).out
    lines = journal.read_text().splitlines()
    assert lines[: len(first)] == first
    assert len(first) < len(lines) == len(set(lines)) <= 1 + 24
    after = by_name(run)
    assert set(after) - set(before) == {"refined/exact/gauss_newton"}
    new, old = after["refined/exact/gauss_newton"], after["exact/gauss_newton"]
    for name, limit in new["budgets"].items():
        assert new["costs"][name] <= limit
    assert new["budgets"] == old["budgets"]
    roles = ("--roles", "solution", "--calibration-roles", "solution", "--examples", 20)
    works("evaluate", run, *roles)
    measured = read(run / "evaluation.json")["measured"]
    kl = [measured[a["name"]]["calibration"]["kl"] for a in (new, old)]
    assert new["objective_value"] == pytest.approx(kl[0], rel=1e-4)
    assert set(new["predictions"]) == set(old["predictions"])
    assert kl[0] <= kl[1] * (1 + 1e-5)
    best = min(json.loads(line)["value"] for line in lines[1:])
    assert abs(kl[0] - best) < 1e-5
    works("report", run)


def test_a_race_finds_the_best_of_equal_budgets(run):
    out = works("race", run, "--batch-size", 10).out
    told = out.splitlines()[0]
    (best,) = (name for name in by_name(run) if f": {name} has kl" in told)
    before = by_name(run)
    winner = before.pop("race/kl")
    assert winner["allocation"] == before[best]["allocation"]
    assert winner["budgets"] == before[best]["budgets"]
    solutions = [a for a in before.values() if a["role"] == "solution"]
    rivals = [a for a in solutions if a["budgets"] == winner["budgets"]]
    assert len(rivals) > 2
    assert f"{len({json.dumps(a['allocation']) for a in rivals})} solutions raced" in told
    works("evaluate", run, "--calibration-roles", "solution", "--examples", 20)
    measured = read(run / "evaluation.json")["measured"]
    kl = {a["name"]: measured[a["name"]]["calibration"]["kl"] for a in (*rivals, winner)}
    assert kl["race/kl"] <= min(kl.values()) * (1 + 1e-5)
    works("race", run, "--batch-size", 10)  # the winner does not race with itself
    assert by_name(run).keys() == before.keys() | {"race/kl"}
    works("refine", run, "--allocation", "race/kl", "--max-evaluations", 1)
    assert "refined/race/kl" in by_name(run)


def test_cheapest_allocation_above_a_floor(run):
    out = works("floor", run, "--max-drop", 100, "--minimize", "bops").out
    found = by_name(run)["floor_100/gauss_newton/bops"]
    assert "bops" in out
    assert found["costs"]["bops"] == min(a["costs"]["bops"] for a in by_name(run).values()
                                         if "bops" in a["costs"])  # fmt: skip
    works("floor", run, "--max-drop", 5, "--metric", "squared_error")
    found = by_name(run)["floor_5/squared_error/size_bytes"]
    roles = ("--roles", "solution", "--calibration-roles", "solution", "--examples", 20)
    works("evaluate", run, *roles)
    evaluation = read(run / "evaluation.json")
    top1 = evaluation["measured"][found["name"]]["calibration"]["top1"]
    assert top1 >= evaluation["float"]["calibration"]["top1"] - 0.05 - 1e-9


def test_first_order_terms_count_in_what_is_added_to_a_plan_that_counts_them(run):
    works("solve", run, *SMALL, "--replace", "--first-order")
    works("refine", run, "--max-evaluations", 1, "--batch-size", 40)
    works("floor", run, "--max-drop", 100)
    added = by_name(run)
    tables = load_sensitivities(run / "sensitivity.npz")
    for name in ("refined/exact/gauss_newton", "floor_100/gauss_newton/size_bytes"):
        bits = Allocation.from_json(added[name]["allocation"])
        for metric, table in tables.items():
            (with_first,) = replace(table, use_first=True).predict([bits])
            assert added[name]["predictions"][metric] == pytest.approx(with_first, rel=1e-9)
            assert metric == "squared_error" or with_first != table.predict([bits])


def test_what_cannot_be_refined_is_refused(run):
    result = jmpq("refine", run, "--allocation", "exact/gauss")
    assert result.code == 1
    assert "no allocation 'exact/gauss'. Did you mean 'exact/gauss_newton'?" in result.err
    result = jmpq("floor", run, "--metric", "hessian")
    assert "'hessian' is not in" in result.err
    result = jmpq("floor", run, "--minimize", "watts")
    assert "'watts' is not a cost that adds up over layers" in result.err
    result = jmpq("floor", run, "--max-drop", -200)
    assert result.code == 2
    assert "max_drop=-200.0: give a number of at least 0" in result.err
