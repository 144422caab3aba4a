"""The folders tell the data flow: a stage imports only stages before it."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

import jmpq

ROOT = pathlib.Path(jmpq.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
STAGES = (
    "models",
    "data",
    "training",
    "quantizers",
    "curvature",
    "sensitivity",
    "problem",
    "solvers",
    "deploy",
    "report",
    "cli",
)
FREE = ("devices", "files")  # helpers of all stages
WITHOUT_JAX = (
    "files",
    "models.layers",
    "quantizers.choice",
    "quantizers.spec",
    "sensitivity.joint",
    "sensitivity.result",
    "sensitivity.saturation",
    *(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in MODULES
        if path.parent.name in ("problem", "solvers", "report") and path.stem != "__init__"
    ),
)


def name(path):
    return str(path.relative_to(ROOT))


def imported(path):
    """Modules of jmpq that a file imports anywhere in it, as dotted names without ``jmpq``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {n.removeprefix("jmpq.") for n in names if n.split(".")[0] == "jmpq"}
    return found


def test_every_folder_is_a_stage():
    folders = {path.relative_to(ROOT).parts[0] for path in MODULES if path.parent != ROOT}
    files = {path.stem for path in MODULES if path.parent == ROOT}
    assert folders == set(STAGES)
    assert files == {"__init__", *FREE}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != ROOT], ids=name)
def test_stage_imports_only_stages_before_it(path):
    stage = path.relative_to(ROOT).parts[0]
    allowed = {*STAGES[: STAGES.index(stage) + 1], *FREE}
    wrong = {module for module in imported(path) if module.split(".")[0] not in allowed}
    assert not wrong


def test_helpers_of_all_stages_import_none():
    for module in FREE:
        assert imported(ROOT / f"{module}.py") == set()


def test_stages_that_stand_alone_import_no_jax():
    modules = [f"jmpq.{module}" for module in WITHOUT_JAX]
    code = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        "    assert not {'jax', 'flax', 'optax'} & set(sys.modules), module\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_public_names_resolve():
    assert len(set(jmpq.__all__)) == len(jmpq.__all__)
    for public in jmpq.__all__:
        assert getattr(jmpq, public) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module("jmpq").nothing
