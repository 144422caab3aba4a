"""Studies on a network of three layers: equal work once, stale work never."""

import csv
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jmpq import run
from jmpq.study import cells, engines
from jmpq.study.grid import StudiedNetwork, Study
from jmpq.study.layout import lines, with_parents
from jmpq.study.study import run_study
from tests.cli.command import ROOT, works

TINY = Study(
    networks={
        "tiny": StudiedNetwork(
            layers=run.Layers(model="tests.cli.networks:tiny", data="digits")
        )
    },
    draws=(0, 1),
    examples=(24,),
    bits=("W2,4,8",),
    metrics=("gauss_newton", "squared_error"),
    budgets=("size_bytes=40%",),
    random=2,
    sensitivity=run.Sensitivity(batch_size=12),
    solve=run.Solve(first_last_bits=0),
    evaluate=run.Evaluate(examples=50),
)
FILE = """
draws = [0, 1]
examples = [24]
bits = ["W2,4,8"]
metrics = ["gauss_newton", "squared_error"]
budgets = ["size_bytes=40%"]
random = 2
[networks.tiny]
model = "tests.cli.networks:tiny"
data = "digits"
[sensitivity]
batch_size = 12
[solve]
first_last_bits = 0
[evaluate]
examples = 50
"""


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


class Count:
    """The engine of this process, and what it was asked to do; it may end after some cells."""

    def __init__(self, most: int | None = None) -> None:
        self.seen: list[cells.Cell] = []
        self.most = most

    def __call__(self, root, wave, tick):
        for cell in wave:
            if self.most is not None and len(self.seen) == self.most:
                raise KeyboardInterrupt
            self.seen.append(cell)
            engines.in_process(root, [cell], tick)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The study, done once."""
    root, engine = tmp_path_factory.mktemp("study"), Count()
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return root, run_study(TINY, root, engine=engine), engine


def no_work(root, wave, tick):
    raise AssertionError(f"{[cell.step for cell in wave]} are done again")


def test_a_study_is_its_steps_done_by_hand(first, tmp_path):
    _, table, _ = first
    run.layers(tmp_path, run.Layers(model="tests.cli.networks:tiny", data="digits"))
    run.sensitivity(tmp_path, run.Sensitivity(
        metrics=("gauss_newton",), w_bits=(2, 4, 8), a_bits=(32,), examples=24, batch_size=12,
        seed=1,
    ))  # fmt: skip
    solving = run.Solve(
        budget=("size_bytes=40%",), first_last_bits=0, solvers=("exact", "greedy"), seed=2
    )
    plan = run.solve(tmp_path, solving, comparison=run.Comparison(random=2))
    every = ("solution", "baseline")
    evaluation = run.evaluate(tmp_path, run.Evaluate(examples=50, roles=every))
    names = {
        ("gauss_newton", 0): "exact/gauss_newton",
        ("reversed", 0): "reversed",
        ("random", 0): "random/0",
        ("random", 1): "random/1",
    }
    rows = {(r["metric"], r["number"]): r for r in table.rows if r["draw"] == 1}
    assert len(rows) == 6
    for place, name in names.items():
        want = evaluation.measured[name]["evaluation"]
        assert rows[place]["kl"] == pytest.approx(want["kl"], rel=1e-5)
        assert rows[place]["loss"] == pytest.approx(want["loss"], rel=1e-6)
        assert rows[place]["size_bytes"] == plan.named(name).costs["size_bytes"]
        assert rows[place]["allocation"] == plan.named(name).allocation.label
    uniform = rows["uniform", 0]
    fits = [a for a in plan.allocations if a.asked == "uniform" and not plan.exceeded(a.costs)]
    assert uniform["size_bytes"] == max(a.costs["size_bytes"] for a in fits)


def test_what_every_example_became_has_the_means_of_the_table(first):
    _, table, _ = first
    for row in table.rows:
        for value in ("kl", "loss", "increase", "top1", "top5", "agreement"):
            values, indices = table.examples(row, value)
            assert len(values) == len(set(indices.tolist())) == row["evaluated"] == 50
            assert values.mean() == pytest.approx(row[value], rel=1e-5, abs=1e-7)


def test_the_table_is_one_row_for_every_place_of_the_grid(first):
    root, table, _ = first
    with (root / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(table.rows) == 2 * (2 + 1 + 1 + 2)
    assert list(rows[0])[:11] == [
        "network", "examples", "draw", "bits", "rounding", "metric", "solver", "budget",
        "refine", "correct", "finetune",
    ]  # fmt: skip
    assert float(rows[0]["kl"]) == table.rows[0]["kl"]
    with np.load(root / "examples.npz") as arrays:
        kl = arrays[f"{rows[0]['outcomes']}/kl"][int(rows[0]["row"])]
    assert kl.mean() == pytest.approx(table.rows[0]["kl"], rel=1e-5)
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert pyarrow.read_table(root / "table.parquet").to_pylist() == list(table.rows)


def test_equal_work_is_done_once(first):
    root, table, engine = first
    steps = [cell.step for cell in engine.seen]
    # A network, per draw two metrics, of which squared error calibrates too, and one plan for
    # each and one of baselines; one measurement of all allocations.
    assert {s: steps.count(s) for s in dict.fromkeys(steps)} == {
        "network": 1,
        "sensitivity": 4,
        "solve": 6,
        "measure": 2,
    }
    again = run_study(TINY, root, engine=no_work)
    assert again.rows == table.rows
    more = Count()
    wider = dataclasses.replace(TINY, metrics=("gauss_newton", "squared_error", "first_order"))
    with_more = run_study(wider, root, engine=more)
    assert [c.step for c in more.seen] == ["sensitivity"] * 2 + ["solve"] * 2 + ["measure"] * 2
    key = ("draw", "metric", "number")
    found = {tuple(r[k] for k in key): r["kl"] for r in with_more.rows}
    assert all(found[tuple(r[k] for k in key)] == r["kl"] for r in table.rows)
    run_study(TINY, root, engine=no_work)  # what follows finds the first table again


def test_only_what_a_changed_step_stands_behind_is_stale(first, monkeypatch):
    root, _, _ = first
    before = {c.key for wave in with_parents([x.plan for x in lines(TINY)]) for c in wave}
    real = cells.source_sha256

    def changed(*modules):
        return "changed" if modules == ("jmpq.run.steps.solve",) else real(*modules)

    monkeypatch.setattr(cells, "source_sha256", changed)
    waves = with_parents([x.plan for x in lines(TINY)])
    fresh = [c.step for wave in waves for c in wave if c.key not in before]
    assert set(fresh) == {"solve"}
    assert len(fresh) == 6
    todo = [c.step for wave in waves for c in wave if c.record(root) is None]
    assert sorted(todo) == sorted(fresh)


def test_a_study_that_was_interrupted_goes_on_to_the_same_table(first, tmp_path):
    root, _, engine = first
    most = 8
    with pytest.raises(KeyboardInterrupt):
        run_study(TINY, tmp_path, engine=Count(most))
    rest = Count()
    run_study(TINY, tmp_path, engine=rest)
    assert len(rest.seen) == len(engine.seen) - most
    for name in ("table.csv", "examples.npz"):
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()


def test_a_spoilt_record_is_made_again(first):
    root, table, _ = first
    cell = next(x.plan for x in lines(TINY))
    (cell.folder(root) / "cell.json").write_text("{")
    engine = Count()
    assert run_study(TINY, root, engine=engine).rows == table.rows
    assert [c.key for c in engine.seen] == [cell.key]


def test_budgets_that_nothing_meets_are_rows_with_a_note(first):
    root, _, _ = first
    study = dataclasses.replace(TINY, draws=(0,), budgets=("size_bytes=40%", "size_bytes=1B"))
    rows = run_study(study, root).rows
    impossible = [r for r in rows if r["budget"] == "size_bytes=1B"]
    assert len(impossible) == 5
    assert all("cannot be met" in r["note"] and r["kl"] is None for r in impossible)
    assert all(r["note"] is None for r in rows if r["budget"] != "size_bytes=1B")
    refined = dataclasses.replace(study, refine=(0, 2), metrics=("squared_error",))
    rows = run_study(dataclasses.replace(refined, baselines=()), root).rows
    assert [(r["budget"][-3:], r["refine"], r["kl"] is None) for r in rows] == [
        ("40%", 0, False), ("40%", 2, False), ("=1B", 0, True), ("=1B", 2, True),
    ]  # fmt: skip


def test_a_cell_that_fails_is_named_and_the_others_are_done(tmp_path):
    study = dataclasses.replace(TINY, draws=(0,), examples=(24, 10**6))
    with pytest.raises(
        RuntimeError, match=r"1 of 2 cells failed, the first sensitivity-.*1000000"
    ):
        run_study(study, tmp_path)
    done = [c.record(tmp_path) for c in with_parents([x.plan for x in lines(study)])[1]]
    assert sorted(record is None for record in done) == [False, True]


@pytest.mark.slow
def test_refinement_correction_and_fine_tuning_are_axes(first, tmp_path):
    study = dataclasses.replace(
        TINY,
        draws=(0,),
        metrics=("squared_error",),
        baselines=("uniform",),
        refine=(0, 4),
        correct=("none", "bias"),
        finetune=(0, 1),
        finetuning=run.Finetune(training_examples=64, batch_size=32, examples=50),
    )
    rows = run_study(study, tmp_path).rows
    kinds = [(r["metric"], r["refine"], r["correct"], r["finetune"]) for r in rows]
    per_allocation = [("none", 0), ("bias", 0), ("batch_norm", 1)]
    assert kinds == [
        (metric, refine, correct, epochs)
        for metric, refine in (("squared_error", 0), ("squared_error", 4), ("uniform", 0))
        for correct, epochs in per_allocation
    ]
    assert len({r["kl"] for r in rows if r["metric"] == "uniform"}) == 3
    assert all(r["outcomes"] is None for r in rows if r["finetune"])


def test_the_command_prints_and_writes_tables_and_figures(first, tmp_path):
    root, table, _ = first
    (file := tmp_path / "tiny.toml").write_text(FILE)
    out = works(
        "study", file, "--out", root, "--table", "metric", "x", "budget", "--style", "ieee"
    ).out  # fmt: skip
    assert "| gauss_newton |" in out
    for suffix in ("md", "tex", "csv"):
        assert (root / "tables" / f"metric_by_budget_kl.{suffix}").is_file()
    assert (root / "figures" / "kl_by_size_ieee.pdf").is_file()
    with (root / "table.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == len(table.rows)


def test_an_engine_that_does_not_exist_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="no engine 'cloud'"):
        engines.make_engine("cloud")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"jmpq\[sweep\]"):
        engines.make_engine("slurm")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pool", "local"])
def test_every_engine_makes_the_same_table(first, tmp_path, name):
    if name == "local":
        pytest.importorskip("submitit")
    root, _, _ = first
    run_study(TINY, tmp_path, engine=engines.make_engine(name, 2))
    assert (tmp_path / "table.csv").read_bytes() == (root / "table.csv").read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_a_study_goes_on_to_the_same_table(tmp_path):
    (file := tmp_path / "tiny.toml").write_text(FILE)
    env = os.environ | {"JAX_PLATFORMS": "cpu"}

    def command(out: pathlib.Path) -> list[str]:
        return [sys.executable, "-m", "jmpq", "study", str(file), "--out", str(out)]

    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), cwd=ROOT, env=env, check=True)
    seconds = time.monotonic() - began
    rng = np.random.default_rng(0)
    for moment in rng.uniform(0.2, 0.9, size=3) * seconds:
        child = subprocess.Popen(command(tmp_path / "killed"), cwd=ROOT, env=env)
        time.sleep(moment)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(command(tmp_path / "killed"), cwd=ROOT, env=env, check=True)
    for name in ("table.csv", "examples.npz"):
        killed, whole = ((tmp_path / d / name).read_bytes() for d in ("killed", "whole"))
        assert killed == whole
