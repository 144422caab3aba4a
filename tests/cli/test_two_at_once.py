"""Two real processes in one run folder: one works, the other is told; nothing is mixed."""

import json
import re
import shutil

import pytest

from jmpq.run.folder import RunFolder
from tests.cli.command import EVERY, FEW, SMALL, finish, process, works

pytestmark = pytest.mark.slow

PAIRS = {
    "sensitivity and sensitivity": (
        ("sensitivity", (*FEW, "--metrics", "gauss_newton", "--seed", 1)),
        ("sensitivity", (*FEW, "--metrics", "squared_error", "--seed", 2)),
    ),
    "refine and solve": (
        ("refine", ("--max-evaluations", 5)),
        ("solve", (*SMALL, "--replace", "--budget", "size_bytes=40%")),
    ),
    "evaluate and evaluate": (
        ("evaluate", (*EVERY, "--examples", 60)),
        ("evaluate", (*EVERY, "--examples", 80)),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("turned", [False, True])
def test_one_works_and_the_other_is_told(run, tmp_path, pair, turned):
    steps = PAIRS[pair][::-1] if turned else PAIRS[pair]
    serial = [shutil.copytree(run, tmp_path / name) for name in ("one", "other")]
    for folder, order in zip(serial, (steps, steps[::-1]), strict=True):
        for step, args in order:
            works(step, folder, *args)
    children = [process(step, run, *args) for step, args in steps]
    for (step, args), result in zip(steps, [finish(child) for child in children], strict=True):
        if result.code:
            assert result.code == 1
            (line,) = result.err.splitlines()
            assert re.match(
                r"jmpq: (`jmpq \w+` \(process \d+ .*|another process) writes to", line
            )
            works(step, run, *args)  # as the line says
    assert values(run) in [values(folder) for folder in serial]


def values(folder):
    """What the artifacts say, without clocks."""
    run = RunFolder(folder)
    found = {name: table.losses.tolist() for name, table in run.sensitivities.tables.items()}
    plan = json.loads((folder / "plan.json").read_text())
    names = ("name", "allocation", "costs", "predictions", "bound")
    allocations = [{name: a[name] for name in names} for a in plan["allocations"]]
    measured = json.loads((folder / "evaluation.json").read_text())["measured"]
    return found, allocations, measured
