"""The stores of a run folder: only what is missing is computed, nothing measured is lost."""

import contextlib
import importlib
import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest

from jmpq import run
from jmpq.deploy.measure import Evaluator
from jmpq.quantizers.scales import Quantizers
from jmpq.run.folder import RunFolder
from jmpq.run.progress import Reporter
from jmpq.run.steps import sensitivity as step
from jmpq.sensitivity.logits import measure
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.sensitivity.table import load_arrays, load_sensitivities

BOTH = ("gauss_newton", "composed")
ALL = ("solution", "baseline")


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def options(w_bits=(2, 8), **others):
    return run.Sensitivity(
        **({"metrics": BOTH, "w_bits": w_bits, "a_bits": (8,), "examples": 24,
            "batch_size": 16} | others)
    )  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Sensitivities, a plan and its outcomes; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        run.layers(folder, run.Layers(model="tests.cli.networks:tiny", data="digits"))
        run.sensitivity(folder, options())
        run.solve(folder, solving("size_bytes=50%"), comparison=run.Comparison(random=2))
        run.evaluate(folder, run.Evaluate(examples=50))
    return folder


def solving(budget, **others):
    free = {"search_evaluations": 100, "first_last_bits": 0}
    return run.Solve(budget=(budget,), **(free | others))


@pytest.fixture
def folder(first, tmp_path):
    return shutil.copytree(first, tmp_path / "run")


@pytest.fixture
def counts(monkeypatch):
    """Moves whose logits were computed, batches analysed by metric, allocations measured."""
    seen = {"moves": [], "analysed": [], "measured": []}
    changes, call, terms = measure._changes, Evaluator.__call__, step.analyse

    def count_moves(network, quantizers, bits, *others):
        least = np.asarray(bits).min(axis=(0, 2))  # 32 of the kind that is not moved
        made = [(kind, b) for kind, b in zip("wa", least.tolist(), strict=True) if b < 32]
        seen["moves"].append(made)
        return changes(network, quantizers, bits, *others)

    def count_measured(self, allocations, **others):
        seen["measured"] += [a.label for a in allocations]
        return call(self, allocations, **others)

    def count_analysed(moves, metric, *args, **others):
        seen["analysed"].append(metric.about.name)
        return terms(moves, metric, *args, **others)

    monkeypatch.setattr(measure, "_changes", count_moves)
    monkeypatch.setattr(Evaluator, "__call__", count_measured)
    monkeypatch.setattr(step, "analyse", count_analysed)
    return seen


def test_new_bits_compute_only_the_new_moves_and_leave_the_old_ones_as_they_are(
    folder, first, counts
):
    run.sensitivity(folder, options((2, 4, 8)))
    assert {width for moves in counts["moves"] for width in moves} == {("w", 4)}
    assert len(counts["moves"]) == 2  # batches
    old, new = (Superposed.load(path / "superposed.npz") for path in (first, folder))
    at = [new.moves.index(move) for move in old.moves]
    np.testing.assert_array_equal(new.changes[:, at], old.changes)
    np.testing.assert_array_equal(new.logits, old.logits)
    before, after = (
        Quantizers.from_arrays(load_arrays(path / "sensitivity.npz"))
        for path in (first, folder)
    )
    assert after.weights.bits == (2, 4, 8)
    for one, other in zip(before.weights.scale, after.weights.scale, strict=True):
        np.testing.assert_array_equal(one, np.asarray(other)[[0, 2]])
    assert before.sha256_at([2, 8], [8]) == after.sha256_at([2, 8], [8])


def test_bits_that_were_added_are_those_of_a_run_that_had_them_from_the_start(folder, tmp_path):
    run.sensitivity(folder, options((2, 4, 8)))
    (tmp_path / "fresh").mkdir()
    shutil.copy(folder / "layers.json", tmp_path / "fresh")
    run.sensitivity(tmp_path / "fresh", options((2, 4, 8)))
    one, other = (load_sensitivities(p / "sensitivity.npz")
                  for p in (folder, tmp_path / "fresh"))  # fmt: skip
    for metric in BOTH:
        np.testing.assert_allclose(
            one[metric].losses, other[metric].losses, rtol=1e-4, atol=1e-7
        )
    # Logit changes come from one program for all bit-widths.
    made, fresh = (Superposed.load(p / "superposed.npz") for p in (folder, tmp_path / "fresh"))
    np.testing.assert_array_equal(made.changes, fresh.changes)
    np.testing.assert_array_equal(one["composed"].losses, other["composed"].losses)


def test_bits_that_were_there_before_compute_nothing(folder, first, counts):
    run.sensitivity(folder, options((2, 4, 8)))
    counts["moves"].clear()
    run.sensitivity(folder, options())
    assert counts["moves"] == []
    old, new = (load_sensitivities(path / "sensitivity.npz") for path in (first, folder))
    for metric in BOTH:
        np.testing.assert_array_equal(new[metric].losses, old[metric].losses)
    assert RunFolder(folder).superposed is not None


def test_another_metric_is_computed_alone_and_the_others_stay(folder, first, counts):
    run.sensitivity(folder, options(metrics=("squared_error",)))
    assert (counts["analysed"], counts["moves"]) == (["squared_error"], [])
    tables = RunFolder(folder).sensitivities.tables
    assert list(tables) == ["squared_error", *BOTH]
    old = load_sensitivities(first / "sensitivity.npz")
    for metric in BOTH:
        np.testing.assert_array_equal(tables[metric].losses, old[metric].losses)


def test_metrics_of_other_examples_are_not_kept_beside_new_ones(folder):
    run.sensitivity(folder, options(metrics=("squared_error",), seed=1))
    assert list(RunFolder(folder).sensitivities.tables) == ["squared_error"]


def test_rivals_are_computed_when_asked_for():
    default, asked = run.Sensitivity(), run.Sensitivity(rivals=True)
    assert step._metrics(default) == list(BOTH)
    rivals = ["empirical_fisher", "hawq_trace", "squared_error"]
    assert step._metrics(asked) == [*BOTH, *rivals]


def test_a_second_budget_measures_only_allocations_that_are_new(folder, counts):
    before = (folder / "plan.json").read_bytes(), (folder / "evaluation.json").read_bytes()
    old = run.RunFolder(folder).evaluation
    run.solve(folder, solving("size_bytes=40%", name="tight"))
    evaluation = run.evaluate(folder, run.Evaluate(plan="tight", examples=50))
    known = {a.allocation for a in RunFolder(folder).plan.allocations if a.name in old.measured}
    plan = RunFolder(folder, plan="tight").plan
    wanted = {a.allocation for a in plan.allocations
              if a.role == "solution" or a.asked == "uniform"}  # fmt: skip
    assert len(counts["measured"]) == 2 * len(wanted - known)  # on two splits
    assert len(counts["measured"]) == len(set(counts["measured"])) * 2
    for name in ("uniform/W2A8", "uniform/W8A8"):
        assert evaluation.measured[name] == old.measured[name]
    after = (folder / "plan.json").read_bytes(), (folder / "evaluation.json").read_bytes()
    assert after == before


def test_a_partial_evaluation_keeps_the_other_outcomes(folder, counts):
    old = run.RunFolder(folder).evaluation
    assert any(name.startswith("exact/") for name in old.measured)
    new = run.evaluate(
        folder, run.Evaluate(roles=(), calibration_roles=("random",), examples=50)
    )
    assert counts["measured"] == []
    assert (new.measured, new.float) == (old.measured, old.float)


def test_equal_allocations_are_measured_once(folder, counts):
    shutil.rmtree(folder / "store")
    evaluation = run.evaluate(
        folder, run.Evaluate(roles=ALL, calibration_roles=ALL, examples=50)
    )
    plan = run.RunFolder(folder).plan
    distinct = {a.allocation for a in plan.allocations}
    assert len(counts["measured"]) == 2 * len(distinct)
    assert len(distinct) < len(plan.allocations) == len(evaluation.measured)


def test_outcomes_survive_new_bits(folder, counts):
    run.sensitivity(folder, options((2, 4, 8)))
    run.solve(folder, solving("size_bytes=50%", name="more"))
    evaluation = run.evaluate(folder, run.Evaluate(plan="more", examples=50))
    assert "W2A8" not in counts["measured"]
    assert "W4A8" in counts["measured"]
    assert {"uniform/W2A8", "uniform/W4A8"} <= set(evaluation.measured)


def test_an_allocation_written_by_hand_is_measured_alone(folder, counts, tmp_path):
    plan = RunFolder(folder).plan
    mixed = {layer: "W2A8" if i else "W8A8" for i, layer in enumerate(plan.layers)}
    (tmp_path / "mine.json").write_text(json.dumps(mixed))
    mine = run.Evaluate(allocation=tmp_path / "mine.json", examples=50)
    evaluation = run.evaluate(folder, mine)
    assert len(set(counts["measured"])) <= 1
    assert set(evaluation.measured["given/mine"]) == {"calibration", "evaluation"}
    added = RunFolder(folder).planned("given/mine")
    assert added.allocation.to_json() == mixed
    assert set(added.predictions) == set(plan.allocations[0].predictions)
    for text, match in (
        ('{"nose": "W8A8"}', "names layer 'nose'"),
        ('{"stem": "W5A8"}', "takes W5A8"),
        ("[]", "it is list"),
        ("{", "Expecting"),
    ):
        (tmp_path / "mine.json").write_text(text)
        before = (folder / "plan.json").read_bytes()
        with pytest.raises(ValueError, match=rf"mine.json holds no allocation .*{match}"):
            run.evaluate(folder, mine)
        assert (folder / "plan.json").read_bytes() == before


def test_a_plan_is_written_over_only_when_asked(folder):
    before = (folder / "plan.json").read_bytes()
    other = solving("size_bytes=40%")
    with pytest.raises(ValueError, match=r"\(--budget\).* --name NAME, .* --replace\."):
        run.solve(folder, other, comparison=run.Comparison(random=2))
    assert (folder / "plan.json").read_bytes() == before
    plan = run.solve(
        folder, solving("size_bytes=40%", replace=True), comparison=run.Comparison(random=2)
    )
    assert plan.budgets["size_bytes"].asked == "40%"


def test_what_steps_added_stays_when_the_same_plan_is_solved_again(folder):
    added = run.refine(folder, run.Refine(max_evaluations=3))
    plan = run.solve(folder, solving("size_bytes=50%"), comparison=run.Comparison(random=2))
    assert plan.named(added.name) == added
    run.sensitivity(folder, options(seed=1, weights=run_spec("minmax")))
    with pytest.raises(ValueError, match=rf"holds {added.name}, made with other .*--replace"):
        run.solve(folder, solving("size_bytes=50%"), comparison=run.Comparison(random=2))


def run_spec(clipping):
    from jmpq.quantizers.spec import KernelSpec

    return KernelSpec(clipping=clipping)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_names_of_plans_are_names_of_folders(tmp_path, name):
    with pytest.raises(ValueError, match="cannot name a plan"):
        run.solve(tmp_path, run.Solve(name=name))


def test_a_plan_that_is_missing_is_named_with_the_command_that_makes_it(folder):
    with pytest.raises(FileNotFoundError, match=r"run `jmpq solve .*run --name tight` first"):
        run.evaluate(folder, run.Evaluate(plan="tight"))
    run.solve(folder, solving("size_bytes=40%", name="tight"))
    with pytest.raises(FileNotFoundError, match=r"jmpq evaluate .*run --plan tight` first"):
        RunFolder(folder, plan="tight").evaluation


def test_refine_and_floor_measure_what_no_step_has_measured(folder, counts):
    run.floor(folder, run.Floor(max_drop=100.0))
    run.refine(folder, run.Refine(max_evaluations=4))
    run.race(folder)
    seen = list(counts["measured"])
    assert len(seen) == len(set(seen))
    run.evaluate(folder, run.Evaluate(roles=(), examples=50))
    assert counts["measured"] == seen


STEPS = {
    "sensitivity": lambda folder, other, **listen: run.sensitivity(
        folder, options((2, 4, 8) if other else (4, 8)), **listen
    ),
    "solve": lambda folder, other, **listen: run.solve(
        folder, solving("size_bytes=40%", replace=True), **listen
    ),
    "refine": lambda folder, other, **listen: run.refine(
        folder, run.Refine(max_evaluations=3), **listen
    ),
    "evaluate": lambda folder, other, **listen: run.evaluate(
        folder, run.Evaluate(roles=ALL, examples=40 if other else 30), **listen
    ),
}


@pytest.mark.parametrize(
    ("one", "other"),
    [("sensitivity", "sensitivity"), ("refine", "solve"), ("solve", "refine"),
     ("evaluate", "evaluate")],
)  # fmt: skip
def test_a_step_beside_another_is_refused_and_changes_nothing(folder, tmp_path, one, other):
    alone = shutil.copytree(folder, tmp_path / "alone")
    STEPS[one](alone, False)
    match = rf"`jmpq {one}` \(process {os.getpid()} on .*: wait until it has finished"
    refused = []

    @contextlib.contextmanager
    def bar(description, unit=""):
        before = files_of(folder)
        with pytest.raises(RuntimeError, match=match) as error:
            STEPS[other](folder, True)
        refused.append(str(error.value))
        assert files_of(folder) == before
        yield lambda done, total, note="": None

    STEPS[one](folder, False, reporter=Reporter(say=lambda text: None, bar=bar))
    assert refused
    assert values(folder) == values(alone)
    STEPS[other](folder, True)  # as it was told


def files_of(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def values(folder):
    """What the artifacts say, without clocks."""
    here = RunFolder(folder)
    found = [table.losses.tolist() for table in here.sensitivities.tables.values()]
    try:
        plan = here.plan
        found += [(a.name, a.allocation, a.costs, a.predictions) for a in plan.allocations]
        found.append(here.evaluation.measured)
    except ValueError as error:  # made stale by the step
        found.append(str(error).replace(str(folder), "RUN"))
    return found


def test_a_plan_that_changed_meanwhile_is_not_written_over(folder):
    here = RunFolder(folder)
    first = here.planned(None)
    run.solve(
        folder, solving("size_bytes=40%", replace=True), comparison=run.Comparison(random=2)
    )
    before = (folder / "plan.json").read_bytes()
    with pytest.raises(ValueError, match="was changed while this step worked"):
        here.add_to_plan(first)
    assert (folder / "plan.json").read_bytes() == before


LOSS = """
from jmpq.training.losses import cross_entropy

def loss(logits, label):
    return {} * cross_entropy(logits, label)
"""


def test_a_loss_that_was_edited_is_computed_again(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "superposed.npz").unlink()  # of another loss
    found = []
    for scale in (1, 10):
        (tmp_path / "edited_loss.py").write_text(LOSS.format(scale))
        sys.modules.pop("edited_loss", None)
        importlib.invalidate_caches()
        asked = options(metrics=("empirical_fisher",), loss="edited_loss:loss")
        run.sensitivity(folder, asked)
        run.solve(folder, solving("size_bytes=50%", replace=True))
        run.evaluate(folder, run.Evaluate(examples=20, roles=("solution",)))
        table = load_sensitivities(folder / "sensitivity.npz")["empirical_fisher"]
        found.append((table.losses, RunFolder(folder).evaluation.float["evaluation"]["loss"]))
    (one, before), (ten, after) = found
    np.testing.assert_allclose(ten, 100 * one, rtol=1e-4)
    assert after == pytest.approx(10 * before, rel=1e-5)


def test_what_was_added_to_a_plan_is_counted_by_a_new_latency_table(folder):
    names = RunFolder(folder).layers.names
    (folder / "given.json").write_text(json.dumps(dict.fromkeys(names, "W8A8")))
    for seconds in (0.001, 0.002):
        rows = [f"{n},{c},{seconds}" for n in names for c in ("W2A8", "W8A8")]
        (folder / "latency.csv").write_text("\n".join(["layer,choice,seconds", *rows]) + "\n")
        run.solve(folder, solving("size_bytes=50%", replace=seconds == 0.001))
        if seconds == 0.001:
            run.evaluate(folder, run.Evaluate(examples=20, allocation=folder / "given.json"))
    planned = RunFolder(folder).planned("given/given")
    assert planned.costs["latency_s"] == pytest.approx(0.002 * len(names))


def test_weights_of_a_network_that_makes_itself_are_refused(tmp_path):
    own = run.Layers(model="tests.cli.networks:tiny", data="digits", weights=tmp_path / "w")
    with pytest.raises(ValueError, match="is for built-in networks"):
        run.layers(tmp_path / "run", own)


def test_the_problem_of_logit_changes_has_the_losses_of_the_plan(folder):
    made = run.instance(folder)["composed"]
    planned = next(a for a in RunFolder(folder).plan.allocations if a.metric == "composed")
    assert planned.predicted_loss > 0
    loss, _ = made.problem.evaluate(planned.allocation)
    assert loss == pytest.approx(planned.predicted_loss, rel=1e-12)
