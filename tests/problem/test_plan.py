import dataclasses
import json

import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.problem import (
    Plan,
    PlannedAllocation,
    problem_of,
    read_plan,
    solution_from_columns,
    write_plan,
)
from jmpq.problem.plan import (
    planned_allocation,
    planned_budgets,
)
from tests.helpers import rewritten


def solved():
    problem = problem_of(
        np.array([[3.0, 1.0], [5.0, 2.0]]),
        {"size_bytes": np.array([[1.0, 2.0], [1.0, 4.0]])},
        {"size_bytes": 5.0},
        layers=("a", "b"),
        choices=(Choice(2, 4), Choice(8)),
    )
    solution = solution_from_columns(
        problem, np.array([0, 1]), bound=5.0, solver="core", wall_s=0.5
    )
    return problem, solution


def plan():
    problem, solution = solved()
    found = planned_allocation(
        "exact/gn",
        "solution",
        problem,
        solution,
        metric="gn",
        asked="exact",
    )
    found = dataclasses.replace(found, predictions={"gn": 5.0})
    drawn = PlannedAllocation(
        name="random/0",
        role="random",
        allocation=Allocation.uniform(["a", "b"], Choice(8)),
        costs={"size_bytes": 6.0},
        seed=0,
    )
    return Plan(
        jmpq="0.1.0",
        versions={"numpy": np.__version__},
        seed=0,
        created="2026-01-01T00:00:00Z",
        weights_sha256="00",
        sensitivity_sha256="11",
        quantizers={"weights": {"grid": "symmetric"}},
        layers=problem.layers,
        choices=problem.choices,
        rules=("pin a=W8: a",),
        budgets=planned_budgets(problem),
        unquantized={"size_bytes": 4.0},
        allocations=(found, drawn),
        excluded=("c",),
    )


@pytest.fixture
def path(tmp_path):
    write_plan(tmp_path / "plan.json", plan())
    return tmp_path / "plan.json"


def edited(path, **changes):
    rewritten(path, lambda record: record.update(changes))
    return path


def test_a_plan_reads_back_as_written(path):
    assert read_plan(path) == plan()
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]


def test_a_plan_file_reads_without_jmpq(path):
    data = json.loads(path.read_text())
    assert (data["schema"], data["version"]) == ("jmpq/plan", 3)
    assert data["allocations"][0]["allocation"] == {"a": "W2A4", "b": "W8"}
    assert data["allocations"][0]["predicted_loss"] == 5.0
    assert data["budgets"]["size_bytes"] == {"limit": 5, "asked": "5", "least": 2, "most": 6}


def test_an_allocation_is_found_by_name():
    chosen = plan().named("exact/gn")
    assert chosen.allocation == Allocation({"b": Choice(8), "a": Choice(2, 4)})
    with pytest.raises(ValueError, match=r"no allocation 'exact/g'. Did you mean 'exact/gn'"):
        plan().named("exact/g")


def test_a_planned_solution_says_who_did_what():
    chosen = plan().named("exact/gn")
    assert (chosen.asked, chosen.solver) == ("exact", "core")
    assert (chosen.objective, chosen.objective_value) == ("gn", 5.0)
    assert (chosen.metric, chosen.predicted_loss, chosen.bound) == ("gn", 5.0, 5.0)
    problem, solution = solved()
    other = dataclasses.replace(solution, objective="kl", objective_value=0.5)
    found = planned_allocation("search/kl", "solution", problem, other, metric="kl")
    assert (found.objective, found.objective_value, found.predicted_loss) == ("kl", 0.5, 0.5)
    assert found.bound is found.gap is found.status is None
    assert found.asked == found.solver == "core"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schema": "other"},
            "has schema 'other' version 3; this jmpq reads 'jmpq/plan' version 3",
        ),
        (
            {"version": 1},
            "version 1; this jmpq reads 'jmpq/plan' version 3: run `jmpq solve .*` again",
        ),
        ({"extra": 1}, "the plan has unknown fields: extra"),
        ({"choices": ["4"]}, "is not a choice of bits"),
        ({"layers": ["a"]}, "disagree on layers: b"),
        ({"budgets": {"bops": {"limit": 1}}}, "budget 'bops' lacks asked, least, most"),
        ({"allocations": [{"name": "x"}]}, "allocation 'x' lacks role, allocation, costs"),
        (
            {"allocations": [{"name": "x", "role": "y", "allocation": {}, "costs": {}}]},
            r"role of allocation 'x' is a string \('y'\), expected one of",
        ),
        (
            {
                "allocations": [
                    {"name": "x", "role": "random", "allocation": {"a": "4"}, "costs": {}}
                ]
            },
            "allocation 'x': Layer 'a': '4' is not a choice of bits",
        ),
        (
            {"allocations": 3},
            r"allocations of the plan is a whole number \(3\), expected a list",
        ),
    ],
)
def test_a_wrong_plan_names_file_and_field(path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read_plan(edited(path, **changes))
    assert str(path) in str(error.value)


def test_a_plan_without_a_field_or_json_is_refused(path):
    data = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in data.items() if k != "created"}))
    with pytest.raises(ValueError, match="the plan lacks created"):
        read_plan(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        read_plan(path)


def test_names_of_allocations_are_unique():
    first = plan().allocations[0]
    with pytest.raises(ValueError, match="Two allocations of the plan are called 'exact/gn'"):
        Plan(**{**vars(plan()), "allocations": (first, first)})


def test_a_failed_write_leaves_the_old_file_and_no_other(path):
    before = path.read_text()
    broken = Plan(**{**vars(plan()), "unquantized": {"size_bytes": float("nan")}})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_plan(path, broken)
    unwritable = Plan(**{**vars(plan()), "quantizers": {"weights": object()}})
    with pytest.raises(TypeError, match="object cannot be written to a plan"):
        write_plan(path, unwritable)
    with pytest.raises(OSError, match="Choose another folder"):
        write_plan(path / "plan.json", plan())  # a file where the folder should be
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]
