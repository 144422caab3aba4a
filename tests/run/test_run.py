"""The steps as functions: the lines of the guide, and the command line that does the same."""

import contextlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from jmpq import run
from tests import pages
from tests.cli.command import works

PAGE = pages.ROOT / "docs" / "guides" / "steps.md"
CLOCK = ("content_sha256", "created", "wall_s", "timing", "plan_sha256", "sensitivity_sha256")


@contextlib.contextmanager
def as_users_have_it():
    """JAX without float64 and without the strictness of the other tests."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two run folders: by the guide's lines of Python, and by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    (code,) = pages.snippets(PAGE)
    assert len([line for line in code.splitlines() if line]) <= 10
    names = {"folder": folder / "python"}
    with as_users_have_it():
        exec(code, names)
    here = folder / "command"
    works("train", here, "--epochs", 1)
    works("layers", here, "--model", "digits_resnet", "--data", "digits")
    works("sensitivity", here, "--metrics", "gauss_newton", "--examples", 64)
    works("solve", here, "--budget", "size_bytes=W4A4")
    works("evaluate", here, "--examples", 100)
    return folder / "python", here, names


def without_clock(value):
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in CLOCK}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["layers.json", "plan.json", "evaluation.json"])
def test_ten_lines_of_python_and_the_command_line_write_the_same(both, name):
    python, command, _ = both
    one, other = (json.loads((folder / name).read_text()) for folder in (python, command))
    assert without_clock(one) == without_clock(other)


def test_steps_return_what_they_write(both):
    folder, _, names = both
    written = run.RunFolder(folder)
    assert names["plan"] == written.plan
    assert names["evaluation"] == written.evaluation
    first = names["plan"].allocations[0]
    assert first.name == "exact/gauss_newton"
    assert written.planned(None) == written.planned(first.name) == first
    assert written.finetuning is None
    assert written.superposed is None


def test_differences_to_the_recommended_allocation_are_paired_by_example(both):
    """Means are those of the outcomes; measured a second time, their errors are the same."""
    folder, _, _ = both
    found = run.RunFolder(folder).evaluation
    kl = {name: rows["evaluation"]["kl"] for name, rows in found.measured.items()}
    assert found.reference == found.recommendation.name
    assert set(found.differences) == set(kl) - {found.reference}
    for name, row in found.differences.items():
        assert row["kl"] == pytest.approx(kl[name] - kl[found.reference], rel=1e-4, abs=1e-7)
    plan, other = run.RunFolder(folder).plan, "uniform/W2A4"
    chosen = {a.name: a.allocation for a in plan.allocations}
    options = run.Evaluate(examples=100)
    with as_users_have_it():
        again = run.measure(folder, [chosen[found.reference], chosen[other]], options)
    own, others = again.scores[:, 1]
    error = (others - own).std(ddof=1) / np.sqrt(100)
    assert found.differences[other]["kl_sem"] == pytest.approx(error, rel=1e-5)


def test_steps_are_quiet_unless_somebody_listens(both, capfd):
    folder, _, _ = both
    said = []
    plan = run.solve(folder, run.Solve(budget=("size_bytes=W4A4",)))
    assert capfd.readouterr() == ("", "")
    reporter = run.Reporter(say=said.append, bar=run.QUIET.bar)
    again = run.solve(folder, run.Solve(budget=("size_bytes=W4A4",)), reporter=reporter)
    assert said[-1] == f"Wrote {folder / 'plan.json'}"
    assert [a.allocation for a in again.allocations] == [a.allocation for a in plan.allocations]


def test_names_resolve_and_the_options_need_no_jax():
    for name in run.__all__:
        assert getattr(run, name) is not None
    with pytest.raises(AttributeError, match=r"jmpq.run' has no attribute 'quantize'"):
        run.quantize
    code = (
        "import sys\nfrom jmpq import run\nrun.Solve, run.Finetune, run.RunFolder, run.solve\n"
        "assert not {'jax', 'flax', 'scipy', 'cvxpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
