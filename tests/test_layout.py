"""The folders tell the data flow: a stage imports only stages before it."""

import ast
import graphlib
import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

import jmpq

ROOT = pathlib.Path(jmpq.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
STAGES = (
    "network",
    "zoo",
    "data",
    "training",
    "quantizers",
    "curvature",
    "sensitivity",
    "problem",
    "solvers",
    "deploy",
    "export",
    "latency",
    "run",
    "study",
    "report",
    "cli",
)
OWN = ("jmpq", "experiments")
FREE = (
    "allocation",
    "artifact",
    "devices",
    "files",
    "formats",
    "journal",
    "kinds",
    "lazy",
    "text",
)  # for all stages
WITHOUT_JAX = (
    "allocation",
    "artifact",
    "files",
    "formats",
    "journal",
    "kinds",
    "lazy",
    "text",
    "latency.design",
    "latency.fit",
    "latency.hardware",
    "latency.record",
    "latency.table",
    "network.layers",
    "quantizers.spec",
    "sensitivity.logits.joint_predictors",
    "run.artifacts",
    "run.planning.comparisons",
    "run.folder",
    "run.planning.inverse",
    "run.options",
    "run.planning.predictions",
    "run.planning.problems",
    "run.progress",
    "run.ranges",
    "run.planning.recommendation",
    "run.planning.searches",
    "run.steps.solve",
    "sensitivity.metrics.by_name",
    "sensitivity.table",
    "study.grid",
    "study.layout",
    "study.pivot",
    "study.statistics",
    *(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in MODULES
        if path.relative_to(ROOT).parts[0] in ("problem", "solvers", "report")
        and path.stem != "__init__"
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
        found |= {n.removeprefix("jmpq.") for n in names if n.split(".")[0] in OWN}
    return found


def test_every_folder_is_a_stage():
    folders = {path.relative_to(ROOT).parts[0] for path in MODULES if path.parent != ROOT}
    files = {path.stem for path in MODULES if path.parent == ROOT}
    assert folders == set(STAGES)
    assert files == {"__init__", "__main__", *FREE}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != ROOT], ids=name)
def test_stage_imports_only_stages_before_it(path):
    stage = path.relative_to(ROOT).parts[0]
    allowed = {*STAGES[: STAGES.index(stage) + 1], *FREE}
    wrong = {module for module in imported(path) if module.split(".")[0] not in allowed}
    assert not wrong


SOURCES = sorted(
    [*MODULES, *(ROOT.parent / "experiments").rglob("*.py")]
    if (ROOT.parent / "experiments").is_dir()
    else MODULES
)


def test_no_circle_of_files():
    """Imports inside functions count: a file that needs one to break a circle is in one."""
    of = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in SOURCES
    }
    after = {}
    for module, path in of.items():
        if path == ROOT / "__init__.py":
            continue
        names = {n if n.startswith("experiments") else f"jmpq.{n}" for n in imported(path)}
        files = {n if n in of else n.rpartition(".")[0] for n in names}
        after[module] = {n for n in files if n in of and n not in ("jmpq", module)}
    order = graphlib.TopologicalSorter(after)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in SOURCES}), ids=lambda f: f.name
)
def test_no_folder_is_crowded(folder):
    assert len(list(folder.glob("*.py"))) <= 15 + 1  # its page beside fifteen files


def test_helpers_of_all_stages_import_none():
    for module in FREE:
        assert {name.split(".")[0] for name in imported(ROOT / f"{module}.py")} <= {*FREE}


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


@pytest.mark.parametrize(
    "folder",
    [folder for folder in sorted({path.parent for path in MODULES}) if folder != ROOT],
    ids=lambda folder: str(folder.relative_to(ROOT)),
)
def test_page_of_a_stage_names_all_its_files(folder):
    page = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert 20 <= len(page.splitlines()) <= 40
    named = {word.split(".")[0] for word in re.findall(r"`([a-z0-9_.]+)`", page)}
    named |= {word.split(".")[-1] for word in re.findall(r"`(jmpq[a-z0-9_.]+)`", page)}
    inside = {path.parent if path.stem == "__init__" else path for path in folder.glob("*.py")}
    inside |= {path.parent for path in folder.glob("*/__init__.py")}
    assert {path.stem for path in inside} - {folder.stem} <= named


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_modules_that_are_imported_exist(path):
    """Also inside functions and in experiments, where no test may come."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OWN:
            assert importlib.util.find_spec(str(node.module)), node.module


def test_public_names_resolve():
    assert len(set(jmpq.__all__)) == len(jmpq.__all__)
    for public in jmpq.__all__:
        assert getattr(jmpq, public) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module("jmpq").nothing
