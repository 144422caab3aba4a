"""The run folder by itself: artifacts read back, and one made from another one is refused."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from jmpq.files import file_sha256
from jmpq.problem import read_plan, write_plan
from jmpq.report.report import write_report
from jmpq.run import folder as run_folder
from jmpq.run.artifacts import Evaluation, Finetuning, LayerTable
from jmpq.run.folder import RunFolder
from tests.helpers import rewritten
from tests.report import synthetic_run

STEPS = {
    "layers": "layers",
    "sensitivities": "sensitivity",
    "plan": "solve",
    "evaluation": "evaluate",
}
FILES = ("layers.json", "sensitivity.npz", "plan.json", "evaluation.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    synthetic_run.write_run(folder, synthetic_run.sensitivities(5), count=5)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def edit(path, **changes):
    rewritten(path, lambda record: record.update(changes))


def finetuning(folder):
    first = RunFolder(folder).planned(None)
    outcome = json.loads((folder / "evaluation.json").read_text())["float"]["evaluation"]
    return Finetuning(
        weights_sha256=synthetic_run.WEIGHTS_SHA256,
        code_sha256=synthetic_run.CODE_SHA256, quantizers_sha256="q",
        finetuned_sha256="f", name=first.name, allocation=first.allocation, costs=first.costs,
        config={"method": "lsq"}, seed=0, devices=1, device="cpu", versions={}, splits={},
        loss="cross_entropy", steps=1, curve=[{"step": 1, "loss": 0.5}], seconds=1.5,
        outcomes=dict.fromkeys(("float", "post_training", "finetuned"), outcome),
    )  # fmt: skip


def test_artifacts_read_back_as_written(folder):
    run = RunFolder(folder)
    assert run.layers == synthetic_run.layer_table(5)
    assert list(run.sensitivities.tables) == ["gauss_newton", "empirical_fisher"]
    assert run.plan.layers == synthetic_run.layer_names(5)
    before = json.loads((folder / "evaluation.json").read_text())
    layers, plan, evaluation = run.layers, run.plan, run.evaluation
    layers.write(folder / "layers.json")
    write_plan(folder / "plan.json", plan)
    evaluation.write(folder / "evaluation.json")
    assert LayerTable.read(folder / "layers.json") == layers
    assert read_plan(folder / "plan.json") == plan
    assert json.loads((folder / "evaluation.json").read_text()) == before
    made = finetuning(folder)
    made.write(folder / "finetuning.json")
    assert RunFolder(folder).finetuning == made


@pytest.mark.parametrize("number", range(4))
def test_what_is_missing_is_named_with_the_step_that_writes_it(folder, number):
    (folder / FILES[number]).unlink()
    step = list(STEPS.values())[number]
    for name in list(STEPS)[number:]:
        match = f"{FILES[number]} not found: run `jmpq {step} .*run` first"
        with pytest.raises(FileNotFoundError, match=match):
            getattr(RunFolder(folder), name)
    for name in list(STEPS)[:number]:
        assert getattr(RunFolder(folder), name) is not None


@pytest.mark.parametrize(
    ("name", "changes", "made_from", "step", "readers"),
    [
        ("plan.json", {"sensitivity_sha256": "other"}, "sensitivity.npz", "solve", 2),
        ("plan.json", {"weights_sha256": "other"}, "layers.json", "solve", 2),
        ("evaluation.json", {"plan_sha256": "other"}, "plan.json", "evaluate", 3),
    ],
)
def test_an_artifact_made_from_another_one_is_refused(
    folder, name, changes, made_from, step, readers
):
    edit(folder / name, **changes)
    match = (
        rf"{name} was made from another .*{made_from} \(.* differ\): run `jmpq {step} "
        ".*run` again, and the steps after it"
    )
    for reader in list(STEPS)[readers:]:
        with pytest.raises(ValueError, match=match):
            getattr(RunFolder(folder), reader)


def test_other_weights_make_everything_after_them_stale(folder):
    finetuning(folder).write(folder / "finetuning.json")
    edit(folder / "layers.json", weights_sha256="other")
    match = r"npz was made from another .*layers.json .*: run `jmpq sensitivity .*run` again"
    for reader in ("sensitivities", "plan", "evaluation"):
        with pytest.raises(ValueError, match=match):
            getattr(RunFolder(folder), reader)
    with pytest.raises(ValueError, match=r"finetuning.json was made .*run `jmpq finetune"):
        RunFolder(folder).finetuning


@pytest.mark.parametrize("name", ["layers.json", "plan.json", "evaluation.json"])
@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda record: record.update(version=1), "version 1; this jmpq reads 'jmpq/.*' versi"),
        (lambda record: record.update(schema="x"), "has schema 'x'"),
        (lambda record: record.update(colour=3), "unknown fields: colour"),
        (lambda record: record.pop(list(record)[3]), "lacks "),
        (lambda record: record.clear(), "has schema None version None"),
    ],
)
def test_a_file_of_another_kind_or_version_names_the_step_to_run_again(
    folder, name, spoil, match
):
    rewritten(folder / name, spoil)
    reader, step = {
        "layers.json": ("layers", "layers"),
        "plan.json": ("plan", "solve"),
        "evaluation.json": ("evaluation", "evaluate"),
    }[name]
    with pytest.raises(ValueError, match=rf"{name} .*{match}.*run `jmpq {step} .*` again") as e:
        getattr(RunFolder(folder), reader)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [LayerTable, Evaluation, Finetuning])
def test_artifacts_of_no_json_are_refused(tmp_path, kind):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"not readable JSON: .*\): run `jmpq .*` again"):
        kind.read(tmp_path / "a.json")


def test_an_allocation_is_added_to_the_plan_in_the_place_of_its_name(folder):
    run = RunFolder(folder)
    first = run.planned(None)
    for seed in (1, 2):
        new = dataclasses.replace(first, name="new", seed=seed)
        RunFolder(folder).add_to_plan(new)
    after = RunFolder(folder).plan
    assert after.named("new") == new
    assert len(after.allocations) == len(run.plan.allocations) + 1
    with pytest.raises(ValueError, match="made from another"):  # measured before
        RunFolder(folder).evaluation
    with pytest.raises(ValueError, match="Did you mean 'new'"):
        RunFolder(folder).planned("neww")


def test_a_plan_with_a_name_has_its_own_evaluation_and_report(folder):
    here = folder / "plans" / "tight"
    here.mkdir(parents=True)
    for name in ("plan.json", "evaluation.json"):
        shutil.copy(folder / name, here)
    assert RunFolder(folder, plan="tight").plan == RunFolder(folder).plan
    assert write_report(folder, plan="tight") == here / "report.html"
    assert (here / "report.html").is_file()
    assert not (folder / "report.html").exists()
    edit(here / "evaluation.json", plan_sha256="other")
    with pytest.raises(ValueError, match=r"`jmpq evaluate .*run --plan tight` again"):
        RunFolder(folder, plan="tight").evaluation
    assert RunFolder(folder).evaluation is not None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"allocation": {"head/dense": "W8A8"}},
            r"cost size_bytes \d+, expected \d+ for its bits: layer 'head/dense' has W8A8, "
            "stated is the cost of W",
        ),
        ({"allocation": {"head/dense": "W5A5"}}, "layer 'head/dense' W5A5, expected a candida"),
        ({"allocation": {"nose": "W8A8"}}, "the plan disagree on layers: nose"),
        ({"costs": {"size_bytes": 1.0}}, r"cost size_bytes 1, expected \d+ for its bits"),
        ({"budgets": {"size_bytes": 9.0}}, r"cost size_bytes \d+, expected at most its budget"),
        ({"bound": 1e3}, r"bound 1000, expected at most its predicted loss"),
        ({"bound": 0.0}, r"gap 0, expected at least 0\.\d+ for its loss and bound"),
        ({"gap": 0.5}, r"gap 0\.5, expected 0 to 0 for its loss and bound"),
        ({"status": "feasible"}, "status feasible, expected optimal for a gap of 0"),
        ({"predicted_loss": 0.0}, r"predicted_loss 0, expected [\d.]+, as it is predicted"),
        ({"predictions": {"gauss_newton": 0.0}}, r"predicted_loss \d\S+, expected 0, as it"),
        ({"wall_s": 5.0}, r"changed after it was written: allocations\)"),
    ],
)
def test_a_plan_edited_by_hand_is_refused_with_both_values(folder, changes, match):
    path = folder / "plan.json"
    record = json.loads(path.read_text())
    first = record["allocations"][0]
    for key, value in changes.items():
        first[key] = first[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=match) as error:
        RunFolder(folder).plan
    advice = r"run `jmpq solve .*run --replace` again\."
    if "nose" not in str(changes):
        advice += r" `jmpq evaluate .*run --allocation FILE` measures bits of your own\.$"
    assert re.search(advice, str(error.value))
    assert "\n" not in str(error.value)


def test_what_is_written_while_it_is_read_is_refused(folder, monkeypatch):
    real = run_folder.read_plan

    def read_slowly(path, check):
        plan = real(path, check)
        write_plan(path, dataclasses.replace(plan, seed=plan.seed + 1))
        return plan

    monkeypatch.setattr(run_folder, "read_plan", read_slowly)
    with pytest.raises(ValueError, match=r"plan.json was written by another process while it"):
        RunFolder(folder).plan


def test_an_evaluation_of_a_newer_plan_does_not_go_with_the_plan_that_was_read(folder):
    run = RunFolder(folder)
    write_plan(folder / "plan.json", dataclasses.replace(run.plan, seed=5))
    sha256 = file_sha256(folder / "plan.json")
    edit(folder / "evaluation.json", plan_sha256=sha256)
    assert RunFolder(folder).evaluation.plan_sha256 == sha256
    with pytest.raises(ValueError, match=r"evaluation.json was made from another .*plan.json"):
        run.evaluation


def test_a_plan_with_a_name_need_not_be_evaluated(folder):
    (folder / "plans" / "tight").mkdir(parents=True)
    shutil.copy(folder / "plan.json", folder / "plans" / "tight")
    assert RunFolder(folder).is_evaluated
    assert not RunFolder(folder, plan="tight").is_evaluated
    assert RunFolder(folder, plan="tight").recommendation is not None


def test_a_plan_without_solutions_says_what_to_do(folder):
    plan = json.loads((folder / "plan.json").read_text())
    kept = [a for a in plan["allocations"] if a["role"] == "baseline"]
    edit(folder / "plan.json", allocations=kept)
    with pytest.raises(ValueError, match=r"no solution to start from: run `jmpq solve .*name"):
        RunFolder(folder).planned(None)


def test_predictions_are_those_of_the_tables(folder):
    from jmpq.run.planning.predictions import all_predictors, predict_all

    run = RunFolder(folder)
    allocations = [a.allocation for a in run.plan.allocations]
    rows = predict_all(all_predictors(run), allocations)
    for name, table in run.sensitivities.tables.items():
        for allocation, row in zip(allocations, rows, strict=True):
            want = sum(
                table.losses[table.layers.index(layer), table.choices.index(choice)]
                for layer, choice in allocation.items()
                if choice in table.choices
            )
            np.testing.assert_allclose(row[name], want, rtol=1e-12)
