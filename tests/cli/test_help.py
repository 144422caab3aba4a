"""Help comes at once: without JAX and all that takes seconds to import."""

import json
import os
import re
import subprocess
import sys

import pytest

from jmpq import __version__
from tests.cli.command import ROOT, finish, jmpq, process

STEPS = (
    "train", "layers", "sensitivity", "latency", "solve", "instance", "race", "refine", "floor",
    "evaluate", "finetune", "export", "report", "study", "demo",
)  # fmt: skip
HELP = """
import contextlib, io, json, sys
from jmpq.cli.main import main
found = {}
for step in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(["--help"] if step == "jmpq" else [step, "--help"])
        except SystemExit as end:
            assert end.code == 0, (step, end.code)
    found[step] = out.getvalue()
slow = "jax flax optax orbax scipy cvxpy sklearn matplotlib tensorflow_datasets".split()
found["slow"] = [name for name in slow if name in sys.modules]
print(json.dumps(found))
"""


def test_help_of_every_step_names_units_and_imports_nothing_slow():
    result = finish(process("jmpq", *STEPS, code=HELP))
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found.pop("slow") == []
    overview = " ".join(found.pop("jmpq").split())
    assert all(step in overview for step in STEPS)
    assert "nats per example" in overview
    for step, text in found.items():
        assert "RUN" in text, step
        assert f"For example: jmpq {step} runs/" in " ".join(text.split()), step
    assert "Bytes" in found["solve"] or "bytes" in found["solve"]
    assert "bit operations per example" in " ".join(found["solve"].replace("│", " ").split())


def test_options_stand_in_groups():
    result = finish(process("sensitivity", "solve", code=HELP))
    found = json.loads(result.out)
    titles = re.compile(r"^ (\S.*?) *\n -{20,}", re.MULTILINE)
    assert titles.findall(found["sensitivity"]) == [
        "positional arguments", "options", "weights options", "activations options",
        "compute options",
    ]  # fmt: skip
    assert titles.findall(found["solve"]) == [
        "positional arguments", "options", "comparison options", "inverse options",
    ]  # fmt: skip
    assert "--comparison.random" not in found["solve"]


@pytest.mark.parametrize("command", [[sys.executable, "-m", "jmpq"], ["jmpq"]])
def test_the_version_is_told(command):
    if command == ["jmpq"]:
        result = jmpq("--version")
        assert (result.code, result.out) == (0, f"jmpq {__version__}\n")
        return
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"jmpq {__version__}\n", "")


def test_compiled_programs_stay_in_the_run_folder_unless_the_user_says_where(tmp_path):
    code = (
        "import os, sys; from jmpq.cli import main\n"
        "try:\n    main.main(['report', sys.argv[1]])\n"
        "except SystemExit:\n    print(os.environ['JAX_COMPILATION_CACHE_DIR'])"
    )
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    for own in ({}, {"JAX_COMPILATION_CACHE_DIR": "elsewhere"}):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=env | own, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        wanted = own.get("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compilations"))
        assert done.stdout.strip() == wanted, done.stderr
