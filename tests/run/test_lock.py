"""One writer at a time in a run folder."""

import json
import os
import subprocess
import sys

import pytest

from jmpq import run
from jmpq.run.lock import writer_lock

HOLD = """
import sys
from jmpq.run.lock import writer_lock
with writer_lock(sys.argv[1], "refine"):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that locks the folder until its input ends."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=pipe, stdout=pipe, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    yield child
    child.kill()
    child.communicate()


@pytest.mark.parametrize(
    "step",
    [run.train, run.layers, run.sensitivity, run.solve, run.race, run.refine, run.floor,
     run.evaluate, run.finetune],
)  # fmt: skip
def test_a_second_writer_is_told_who_the_first_is(tmp_path, holder, step):
    match = rf"`jmpq refine` \(process {holder.pid} on .*, since .*wait until it has finished"
    with pytest.raises(RuntimeError, match=match):
        step(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_lock_of_a_process_that_ended_or_died_is_free(tmp_path, holder):
    holder.communicate("\n")
    assert list(tmp_path.iterdir()) == []
    with writer_lock(tmp_path, "solve"):
        claim = json.loads((tmp_path / ".lock").read_text())
        assert (claim["step"], claim["pid"]) == ("solve", os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_lock_that_holds(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with writer_lock(tmp_path, "solve"):
        assert json.loads((tmp_path / ".lock").read_text())["step"] == "solve"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_made_for_the_lock_is_removed_if_it_stays_empty(tmp_path):
    with writer_lock(tmp_path / "a" / "b", "layers"):
        pass
    assert list(tmp_path.iterdir()) == []
    with writer_lock(tmp_path / "a" / "b", "layers"):
        (tmp_path / "a" / "b" / "layers.json").write_text("{}")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["layers.json"]


def test_a_step_that_fails_leaves_no_folder_that_it_made(tmp_path):
    """Compiled programs alone are no run; beside an artifact they stay."""
    run_folder = tmp_path / "runs" / "mine"
    for artifact in (None, "layers.json"):
        with writer_lock(run_folder, "layers"):
            (run_folder / "compilations").mkdir()
            (run_folder / "compilations" / "program").touch()
            if artifact:
                (run_folder / artifact).touch()
        assert run_folder.parent.exists() == (artifact is not None)
    assert sorted(p.name for p in run_folder.iterdir()) == ["compilations", "layers.json"]
    (run_folder / "layers.json").unlink()
    with writer_lock(run_folder, "layers"):  # it was there before: nobody's to remove
        pass
    assert [p.name for p in run_folder.iterdir()] == ["compilations"]
