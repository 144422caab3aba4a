"""Problems as files: every field comes back, any program can write one, solvers agree."""

import dataclasses
import json

import numpy as np
import pytest

from jmpq.formats import Choice
from jmpq.problem import (
    Instance,
    Known,
    NamedCandidate,
    problem_of,
    read_instance,
    write_instance,
    write_program,
)
from jmpq.solvers import BruteForce, solve
from tests.solvers.instances import QUADRATIC, SHORT, loss_of, optimum

BOTH = pytest.mark.parametrize("kind", ["json", "npz"])


def same(got, want):
    for field in dataclasses.fields(want):
        a, b = getattr(got, field.name), getattr(want, field.name)
        if field.name == "costs":
            assert list(a) == list(b)
            a, b = list(a.values()), list(b.values())
        np.testing.assert_equal(a, b)


@BOTH
@pytest.mark.parametrize("name", ["tied", "forbidden", "two_budgets"])
def test_an_instance_comes_back(name, kind, tmp_path):
    problem = QUADRATIC[name]
    best = BruteForce()(problem)
    known = Known(loss=best.loss, bound=best.loss, columns=best.columns, source="all tried")
    for saved in (problem, problem.separable()):
        path = tmp_path / f"p.{kind}"
        write_instance(path, Instance(name=name, problem=saved))
        loaded = read_instance(path)
        assert (loaded.name, loaded.known) == (name, None)
        same(loaded.problem, saved)
    write_instance(path, Instance(name=name, problem=problem, known=known))
    loaded = read_instance(path)
    same(loaded.known, known)
    assert loaded.known.optimal
    assert problem.separable().interactions is None


@BOTH
def test_entries_that_may_not_be_chosen_need_no_value(kind, tmp_path):
    allowed = np.array([[True, False, True], [True, True, False]])
    losses = np.where(allowed, [[1.0, 2.0, 3.0]], np.nan)
    costs = {"a": np.where(allowed, 1.5, np.inf), "b c/d": np.where(allowed, 1.0, np.nan)}
    problem = problem_of(losses, costs, {"a": 3.5, "b c/d": 2.0}, allowed=allowed)
    write_instance(tmp_path / f"p.{kind}", Instance(name="", problem=problem))
    loaded = read_instance(tmp_path / f"p.{kind}").problem
    np.testing.assert_array_equal(loaded.allowed, allowed)
    np.testing.assert_array_equal(loaded.losses, losses)
    assert solve(loaded).loss == solve(problem).loss == 2.0


def test_candidates_may_be_any_number_of_any_names(tmp_path):
    labels = [
        "W4A8",
        "W4",
        "mxfp4",
        "w4",
        "left of it",
        *(f"candidate {k}" for k in range(500)),
    ]
    table = np.random.default_rng(0).normal(size=(2, len(labels)))
    text = {"schema": "jmpq/problem", "version": 3, "candidates": labels, "costs": {}}
    (tmp_path / "p.json").write_text(json.dumps(text | {"losses": table.tolist()}))
    loaded = read_instance(tmp_path / "p.json")
    assert loaded.name == "p"
    assert [choice.label for choice in loaded.problem.choices] == labels
    assert loaded.problem.choices[:2] == (Choice(4, 8), Choice(4))
    assert loaded.problem.choices[3] == NamedCandidate(name="w4") != Choice(4)
    solution = solve(loaded.problem)
    assert solution.loss == table.min(axis=1).sum()
    taken = [labels[k] for k in table.argmin(axis=1)]
    assert list(solution.allocation.to_json().values()) == taken
    assert "candidate" in repr(solution)
    write_instance(tmp_path / "again.json", loaded)
    assert read_instance(tmp_path / "again.json").problem.choices == loaded.problem.choices


def handmade(**fields):
    """The least that a file needs, as another program would write it, and more."""
    record = {"schema": "jmpq/problem", "version": 3, "losses": [[3, 1], [2, None], [5, 1]]}
    return json.dumps(record | {"costs": {"size": [[1, 2], [1, None], [1, 3]]}} | fields)


def test_a_file_made_by_hand_is_read(tmp_path):
    path = tmp_path / "hand.json"
    path.write_text(
        handmade(
            budgets={"size": 6},
            pairs=[[2, 1, 0, 1], [0, 0, 1, 0]],
            pair_values=[10, -4],
            known={"loss": -1, "source": "by hand", "columns": [0, 0, 0]},
        )
    )
    instance = read_instance(path)
    problem = instance.problem
    assert problem.evaluate(np.array([1, 0, 1]))[0] == 1 + 2 + 1 + 10
    assert problem.evaluate(np.array([0, 0, 1]))[0] == 3 + 2 + 1 - 4
    assert BruteForce()(problem).loss == 2.0
    assert instance.known.loss == -1.0
    assert not instance.known.optimal


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "version 2; this jmpq reads jmpq/problem version 3"),
        ({"schema": "other"}, "holds other version 3"),
        ({"loses": 1}, "unknown fields loses: expected some of"),
        ({"losses": [1, 2]}, r"losses have shape \(2,\): expected \[layers, candidates\]"),
        ({"losses": [[1], [2, 3]]}, "states no valid problem"),
        ({"costs": [1, 2]}, "states no valid problem"),
        ({"budgets": [3]}, "states no valid problem"),
        ({"budgets": {"size": 10**400}}, "states no valid problem"),
        ({"known": 5}, "states no valid problem"),
        ({"groups": [0.9, 0.2, 1.0]}, "groups hold float64: expected whole numbers"),
        ({"allowed": [["false", "true"]] * 3}, "allowed holds <U5: expected true and false"),
        ({"layers": "abc"}, "layers is the text 'abc': expected a list of texts"),
        ({"pairs": [[0, 0.5, 1, 0]], "pair_values": [1]}, "pairs hold float64: expected whole"),
        ({"budgets": {"size": "much"}}, "states no valid problem: could not convert"),
        ({"budgets": {"weight": 1}}, "states no valid problem: Budget .*'weight' has no cost"),
        ({"candidates": ["W2"]}, r"losses has shape .* = \(3, 1\)"),
        ({"pairs": [[0, 0, 0, 1]], "pair_values": [1]}, "is of one layer with itself"),
        ({"pairs": [[0, 0, 3, 1]], "pair_values": [1]}, r"\[0, 0, 3, 1\] is outside of 3 lay"),
        ({"pairs": [[0, 0, 1, 1]], "pair_values": []}, "1 pairs and 0 pair_values"),
        ({"pairs": [[0, 0, 1, 0], [1, 0, 0, 0]], "pair_values": [1, 2]}, "more than once"),
        ({"pairs": [[0, 0, 1, 0]]}, "has no 'pair_values'"),
        ({"known": {"loss": 1, "bound": 2}}, "expected a finite loss that is not below its"),
        ({"known": {"bound": 2}}, "has no 'loss'"),
        ({"budgets": {"size": 3}, "known": {"loss": 1, "columns": [1, 0, 1]}}, "by 3"),
        ({"known": {"loss": 9, "bound": 9, "columns": [1, 0, 1]}}, "has loss 4.0, below the"),
    ],
)
def test_what_states_no_problem_is_refused_in_one_line(fields, message, tmp_path):
    (tmp_path / "p.json").write_text(handmade(**fields))
    with pytest.raises(ValueError, match=message) as caught:
        read_instance(tmp_path / "p.json")
    assert "\n" not in str(caught.value)
    assert "p.json" in str(caught.value)


@BOTH
def test_a_file_that_is_no_instance_is_refused(kind, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_instance(tmp_path / f"none.{kind}")
    for text in ("nothing", "[1]", "{}", ""):
        (tmp_path / f"text.{kind}").write_text(text)
        with pytest.raises(ValueError, match="is not a problem file"):
            read_instance(tmp_path / f"text.{kind}")
    with pytest.raises(ValueError, match=r"has no format: expected .* \.json or \.npz"):
        read_instance(tmp_path / "p.csv")


@BOTH
def test_an_instance_that_was_changed_is_refused(kind, tmp_path):
    path = tmp_path / f"p.{kind}"
    write_instance(path, Instance(name="two", problem=QUADRATIC["two_budgets"]))
    if kind == "json":
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"name": "three"}))
    else:
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **(arrays | {"losses": 2 * arrays["losses"]}))
    named = "name" if kind == "json" else "losses"
    with pytest.raises(ValueError, match=rf"changed after it was written \({named}\): write"):
        read_instance(path)


@pytest.mark.parametrize("kind", ["lp", "mps"])
@pytest.mark.parametrize("name", ["two_budgets1", "tied", "three_budgets", "mixed_signs"])
def test_highs_reads_the_program_and_finds_the_optimum(name, kind, tmp_path):
    import highspy

    problem = SHORT[name]
    write_program(tmp_path / f"p.{kind}", problem)
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    model.setOptionValue("mip_rel_gap", 0.0)
    assert model.readModel(str(tmp_path / f"p.{kind}")) == highspy.HighsStatus.kOk
    model.run()
    assert model.getInfo().objective_function_value == pytest.approx(
        solve(problem).loss, rel=1e-6
    )


def test_a_budget_of_microseconds_is_met_within_the_default_tolerances(tmp_path):
    """HiGHS allows each row an error of 1e-6, which is two thirds of this budget."""
    import highspy

    rng = np.random.default_rng(0)
    seconds = np.sort(rng.uniform(1e-8, 4e-7, (12, 6)))
    problem = dataclasses.replace(
        SHORT["tied"],
        layers=tuple(f"layer{i}" for i in range(12)),
        choices=tuple(Choice(w) for w in range(3, 9)),
        losses=np.sort(rng.uniform(size=(12, 6)))[:, ::-1],
        costs={"latency_s": seconds},
        budgets={"latency_s": 1.5e-6},
        constants={},
        allowed=np.ones((12, 6), dtype=bool),
        groups=np.arange(12),
    )
    write_program(tmp_path / "p.mps", problem)
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    model.readModel(str(tmp_path / "p.mps"))
    model.run()
    assert model.getInfo().objective_function_value == pytest.approx(
        solve(problem).loss, rel=1e-4
    )
    columns = np.reshape(model.getSolution().col_value, (12, 6)).argmax(axis=1)
    assert not problem.violated(problem.evaluate(columns)[1])


@pytest.mark.parametrize("kind", ["lp", "mps"])
@pytest.mark.parametrize("name", ["tied", "forbidden", "two_budgets_indefinite"])
def test_scip_reads_the_quadratic_program_and_finds_the_optimum(name, kind, tmp_path):
    pyscipopt = pytest.importorskip("pyscipopt")
    problem = QUADRATIC[name]
    write_program(tmp_path / f"p.{kind}", problem)
    model = pyscipopt.Model()
    model.hideOutput()
    model.readProblem(str(tmp_path / f"p.{kind}"))
    model.optimize()
    assert model.getStatus() == "optimal"
    assert model.getObjVal() == pytest.approx(optimum(problem), rel=1e-5)
    columns = np.zeros(int(problem.groups.max()) + 1, dtype=int)
    for variable in model.getVars():
        if variable.name.startswith("x_") and model.getVal(variable) > 0.5:
            _, group, column = variable.name.split("_")
            columns[int(group)] = int(column)
    assert loss_of(problem, columns[problem.groups]) == pytest.approx(
        optimum(problem), rel=1e-5
    )


def test_a_program_of_another_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.lp or \.mps"):
        write_program(tmp_path / "p.txt", SHORT["tied"])
