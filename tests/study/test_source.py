"""Which code stands behind a result, on a project of a few files."""

import ast
import pathlib

import pytest

import jmpq
from jmpq.study import source

FILES = {
    "jmpq/__init__.py": "",
    "jmpq/top.py": '"""Prose."""\nimport numpy\nfrom jmpq.part import middle\n',
    "jmpq/part/__init__.py": "from jmpq.part.names import name\n",
    "jmpq/part/names.py": "name = 1\n",
    "jmpq/part/middle.py": "def f():\n    from jmpq import late\n    return late.x\n",
    "jmpq/late.py": "x = 1  # one\n",
    "jmpq/aside.py": "y = 2\n",
    "jmpq/of_package.py": "from jmpq.part import name\n",
}


def sha256(files, *modules):
    return source.sources_sha256(modules, lambda path: files.get(path))


def test_imports_count_wherever_they_stand_and_nothing_else():
    found = source.imported(("jmpq.top",), lambda path: FILES.get(path))
    assert set(found) == {"jmpq/top.py", "jmpq/part/middle.py", "jmpq/late.py"}
    package = source.imported(("jmpq.of_package",), lambda path: FILES.get(path))
    assert "jmpq/part/names.py" in package  # through the package's own page
    changed = FILES | {"jmpq/aside.py": "y = 3\n"}
    assert sha256(changed, "jmpq.top") == sha256(FILES, "jmpq.top")


@pytest.mark.parametrize("path", ["jmpq/top.py", "jmpq/part/middle.py", "jmpq/late.py"])
def test_a_changed_line_anywhere_behind_a_result_changes_its_hash(path):
    changed = FILES | {path: FILES[path] + "z = 3\n"}
    assert sha256(changed, "jmpq.top") != sha256(FILES, "jmpq.top")


def test_prose_does_not_count():
    late = '"""Other\nprose."""\n# A comment.\n\nx = 1  # one\n"""Documents x."""\n'
    top = FILES["jmpq/top.py"].replace("Prose", "Better prose")
    assert sha256(FILES | {"jmpq/late.py": late, "jmpq/top.py": top}, "jmpq.top") == sha256(
        FILES, "jmpq.top"
    )


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no module 'jmpq\.nothing'"):
        source.source_sha256("jmpq.nothing")


def test_the_step_of_sensitivities_depends_on_its_metrics_and_quantizers():
    found = source.imported(("jmpq.run.steps.sensitivity",))
    for name in ("taylor.py", "gptq.py", "walk.py"):
        assert any(path.endswith(f"/{name}") for path in found), name
    assert "jmpq/report/report.py" not in found


def test_no_stage_asks_a_lazy_package_for_a_name():
    """Such an import would hide from `source.imported` which file the name comes from."""
    root = pathlib.Path(jmpq.__file__).parent
    lazy = {p.parent for p in root.rglob("__init__.py") if "attach(" in p.read_text()}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            package = root.parent / node.module.replace(".", "/")
            if package in lazy and path.relative_to(root).parts[0] != "cli":
                for alias in node.names:
                    file = package / alias.name
                    assert file.is_dir() or file.with_suffix(".py").is_file(), (
                        path,
                        alias.name,
                    )
