"""Interrupted steps keep what is finished, and end in the result of an undisturbed run."""

import contextlib
import json
import shutil
import signal
import time

import numpy as np
import pytest

from jmpq.artifact import CONTENT
from jmpq.run import progress
from jmpq.sensitivity.logits import measure, superposed
from jmpq.sensitivity.table import load_sensitivities
from tests import helpers
from tests.cli.command import EVERY, FEW, TINY, contents, finish, jmpq, process, works

METRICS = ("--metrics", "gauss_newton", "squared_error")


class Bars:
    """Stands for the progress bars: remembers their moves, interrupts at one of them."""

    def __init__(self, monkeypatch):
        self.moves, self.at = [], None
        reporter = progress.Reporter(say=print, bar=self.bar)
        monkeypatch.setattr(progress, "TERMINAL", reporter)

    @contextlib.contextmanager
    def bar(self, description, unit=""):
        def move(done, total, note=""):
            self.moves.append((description.strip(), done, total))
            if self.at == (description.strip(), done):
                raise KeyboardInterrupt

        yield move

    def interrupts(self, description, done, *args):
        self.moves, self.at = [], (description, done)
        result = jmpq(*args)
        self.moves, self.at = [], None
        assert result.code == 130
        assert result.err == "jmpq: interrupted; rerun the command to resume.\n"


@pytest.fixture
def bars(monkeypatch):
    return Bars(monkeypatch)


def assert_same_sensitivities(path, other):
    found, expected = load_sensitivities(path), load_sensitivities(other)
    assert list(found) == list(expected)
    for name, sensitivity in found.items():
        for field in ("first", "second", "batch_first", "batch_second", "batch_examples"):
            np.testing.assert_array_equal(
                getattr(sensitivity, field), getattr(expected[name], field)
            )


@pytest.mark.parametrize(
    ("metric", "done", "moves"),
    [
        ("gauss_newton", 2, [("gauss_newton", 2, 3), ("gauss_newton", 3, 3)]),
        ("squared_error", 1, [("gauss_newton", 3, 3), ("squared_error", 1, 3)]),
    ],
)
def test_sensitivity_goes_on_from_the_last_finished_batch(
    tiny_run, tmp_path, bars, metric, done, moves
):
    shutil.copy(tiny_run / "layers.json", tmp_path)
    before = contents(tmp_path)
    args = ("sensitivity", tmp_path, *FEW, *METRICS)
    bars.interrupts(metric, done, *args)
    left = contents(tmp_path)
    wanted = ("gauss_newton", "squared_error")
    started = wanted[: wanted.index(metric) + 1]
    kinds = ("quantizers", "float", *(f"losses-{name}" for name in started))
    assert set(left) - set(before) == {"store", *(stored(tmp_path, kind) for kind in kinds)}
    seconds = helpers.batch_seconds(tmp_path / stored(tmp_path, f"losses-{metric}"))
    assert len(seconds) == done
    works(*args)
    assert bars.moves[:2] == moves
    kinds = ("quantizers", "float", *(f"losses-{name}" for name in wanted))
    kept = {"store", *(stored(tmp_path, kind) for kind in kinds)}
    assert set(contents(tmp_path)) == {"layers.json", "sensitivity.npz", *kept}
    assert_same_sensitivities(tmp_path / "sensitivity.npz", tiny_run / "sensitivity.npz")
    found = load_sensitivities(tmp_path / "sensitivity.npz")[metric]
    assert found.provenance["batch_seconds"][:done] == seconds


def stored(run, kind):
    """The only journal of a kind in the store."""
    (path,) = (run / "store").glob(f"{kind}-*.journal")
    return str(path.relative_to(run))


def interrupt(*args, **options):
    raise KeyboardInterrupt


def test_logit_changes_go_on_from_the_last_finished_batch(tiny_run, tmp_path, bars):
    shutil.copy(tiny_run / "layers.json", tmp_path)
    args = ("sensitivity", tmp_path, *FEW, "--metrics", "composed")
    bars.interrupts("composed", 2, *args)
    journal = tmp_path / stored(tmp_path, "moves")
    kinds = ("moves", "quantizers", "float")
    kept = {"layers.json", "store", *(stored(tmp_path, kind) for kind in kinds)}
    assert set(contents(tmp_path)) == kept
    before = journal.read_bytes()
    real = measure._changes
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_changes", lambda *a: made.append(a) or real(*a))
        patch.setattr(superposed.Superposed, "save", lambda *a: interrupt())
        assert jmpq(*args).code == 130
    batches = {np.asarray(inputs).tobytes() for _, _, _, inputs, _ in made}
    assert len(batches) == 1  # the last one, once for every bit-width
    assert len(made) == len({np.asarray(bits).tobytes() for _, _, bits, _, _ in made})
    assert journal.read_bytes()[: len(before)] == before
    works(*args)
    assert set(contents(tmp_path)) == {*kept, "sensitivity.npz", "superposed.npz"}


def test_other_options_do_not_go_on_from_an_interrupted_run(tiny_run, tmp_path, bars):
    shutil.copy(tiny_run / "layers.json", tmp_path)
    bars.interrupts("gauss_newton", 2, "sensitivity", tmp_path, *FEW, *METRICS)
    works("sensitivity", tmp_path, *FEW, *METRICS[:2], "--seed", 1)
    assert bars.moves[0] == ("gauss_newton", 0, 3)


def interrupted(folder, args):
    """A process that is interrupted as soon as it keeps losses."""
    store = folder / "store"
    child, end = process(*args), time.monotonic() + 60
    while not list(store.glob("losses-*")) and child.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    return finish(child)


def test_sensitivity_goes_on_in_another_process(tiny_run, tmp_path):
    shutil.copy(tiny_run / "layers.json", tmp_path)
    many = ("--w-bits", 2, 4, "--a-bits", 8, "--examples", 100, "--batch-size", 1)
    args = ("sensitivity", tmp_path, *many, "--metrics", "empirical_fisher")
    for _ in range(5):
        result = interrupted(tmp_path, args)
        if "_xla_gc_callback" not in result.err:  # where JAX swallows an interrupt, it is lost
            break
        shutil.rmtree(tmp_path / "store")
        (tmp_path / "sensitivity.npz").unlink(missing_ok=True)
    assert result.code == 130, result.err
    assert result.err.splitlines()[-1].startswith("jmpq: interrupted")
    assert "Traceback" not in result.err
    partial = stored(tmp_path, "losses-empirical_fisher")
    others = (stored(tmp_path, "quantizers"), stored(tmp_path, "float"))
    kept = {"layers.json", "store", partial, *others}
    assert set(contents(tmp_path)) == kept  # no lock
    seconds = helpers.batch_seconds(tmp_path / partial)
    assert 0 < len(seconds) < 100
    works(*args)
    found = load_sensitivities(tmp_path / "sensitivity.npz")["empirical_fisher"]
    assert found.provenance["batch_seconds"][: len(seconds)] == seconds
    assert set(contents(tmp_path)) == {*kept, "sensitivity.npz"}


@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_evaluate_goes_on_from_the_last_finished_allocation(run, bars, split):
    expected = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    for journal in (run / "store").glob("outcomes-*"):
        journal.unlink()
    before = contents(run)
    args = ("evaluate", run, *EVERY, "--examples", 100)
    bars.interrupts(f"Measuring on {split}", 5, *args)
    left = set(contents(run)) - set(before)
    assert len(left) == ("calibration", "evaluation").index(split) + 1
    assert all(name.startswith("store/outcomes-") for name in left)
    works(*args)
    counts = {description: total for description, done, total in bars.moves if done == 0}
    all_of_it = {
        name: len({json.dumps(a["allocation"]) for a in allocations(run, expected, name)})
        for name in ("calibration", "evaluation")
    }
    finished = {"calibration": all_of_it["calibration"], "evaluation": 5}
    if split == "calibration":
        finished = {"calibration": 5, "evaluation": 0}
    assert counts == {
        f"Measuring on {name}": all_of_it[name] - finished[name] for name in finished
    }
    found = json.loads((run / "evaluation.json").read_text())
    assert found.pop("timing").keys() == expected.pop("timing").keys()
    assert found.pop(CONTENT).keys() == expected.pop(CONTENT).keys()
    assert found == expected
    stores = {name for name in contents(run) if name.startswith("store/outcomes-")}
    assert len(stores) == 2
    assert set(contents(run)) == {*before, "evaluation.json", *stores}


def allocations(run, evaluation, split):
    plan = json.loads((run / "plan.json").read_text())
    measured = {name for name, found in evaluation["measured"].items() if split in found}
    return [a for a in plan["allocations"] if a["name"] in measured]


@pytest.mark.parametrize("text", ["", '{"of"', "[]", '{"of": "another plan", "outcomes": {}}'])
def test_evaluate_starts_anew_where_the_journal_does_not_fit(run, bars, text):
    journals = list((run / "store").glob("outcomes-*"))
    assert len(journals) == 2
    for journal in journals:
        journal.write_text(text)
    works("evaluate", run, "--roles", "solution", "--calibration-roles", "solution")
    assert next(total for name, _, total in bars.moves if "calibration" in name) > 0
    assert not list(run.glob(".*"))


def test_interrupting_a_step_without_memory_leaves_nothing(run, monkeypatch):
    before = contents(run)
    monkeypatch.setattr("jmpq.run.steps.solve.make_solver", interrupt)
    assert jmpq("solve", run, "--replace").code == 130
    assert contents(run) == before


def test_layers_interrupted_leaves_nothing(tmp_path, monkeypatch):
    from tests.cli import networks

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(networks, "tiny", interrupt)
    assert jmpq("layers", tmp_path / "run", *TINY).code == 130
    assert contents(tmp_path) == {}
