"""The source behind a result: a hash of all code of this project that a module can run.

A result is stale when the code that made it has changed. Which code that is follows from the
imports, those inside functions too: the modules that a module imports, those that they import,
and so on. Comments, docstrings and blank lines do not count, so that prose can be mended
without making results anew.
"""

import ast
import functools
import hashlib
import pathlib
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[2]
OWN = ("jmpq", "experiments")
Read = Callable[[str], str | None]


def read_here(path: str) -> str | None:
    """The text of a file of the project, by its path below `ROOT`; None if there is none."""
    file = ROOT / path
    return file.read_text(encoding="utf-8") if file.is_file() else None


@functools.cache
def source_sha256(*modules: str) -> str:
    """Hash of the code of some modules and of all that they import of this project.

    The same at every place and on every version of Python.

    >>> source_sha256("jmpq.text") == source_sha256("jmpq.text", "jmpq.text")
    True
    """
    return sources_sha256(modules, read_here)


def sources_sha256(modules: tuple[str, ...], read: Read) -> str:
    """As `source_sha256`, of files that are read some other way, as those of a commit.

    Args:
        modules: Dotted names.
        read: Text of a file by its path, None where there is none.

    Raises:
        ValueError: If there is no such module.
    """
    digest = hashlib.sha256()
    for path, code in sorted(imported(modules, read).items()):
        digest.update(f"{path}\n{code}\n".encode())
    return digest.hexdigest()


def imported(modules: tuple[str, ...], read: Read = read_here) -> dict[str, str]:
    """Code that counts, by path, of some modules and all that they import of this project.

    Raises:
        ValueError: If there is no such module.
    """
    found: dict[str, str] = {}
    todo: list[str] = []
    for name in modules:
        if (path := _path(name, read)) is None:
            raise ValueError(f"There is no module {name!r}: give dotted names, as 'jmpq.text'.")
        todo.append(path)
    while todo:
        path = todo.pop()
        if path not in found:
            found[path], more = _parsed(path, read)
            todo += more
    return found


@functools.cache
def _parsed(path: str, read: Read) -> tuple[str, tuple[str, ...]]:
    """Code of a file that counts, and the files that it imports."""
    text = read(path) or ""
    tree = ast.parse(text)
    return _code(text, tree), tuple(_imports(tree, read))


def _path(module: str, read: Read) -> str | None:
    """File of a module or package."""
    base = module.replace(".", "/")
    paths = (f"{base}.py", f"{base}/__init__.py")
    return next((path for path in paths if read(path) is not None), None)


def _imports(tree: ast.Module, read: Read) -> list[str]:
    """Files of this project that a module imports anywhere in it.

    A name that a package makes itself comes from its ``__init__``, and what that imports
    counts; packages that import names when they are first used (`jmpq.lazy`) must not be
    asked for them inside this project, which a test sees to.
    """
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    own = [name for name in names if name.split(".")[0] in OWN]
    paths = [_path(name, read) or _path(name.rpartition(".")[0], read) for name in own]
    return [path for path in paths if path is not None]


def _code(text: str, tree: ast.Module) -> str:
    """The lines that can change what a module does."""
    prose: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # docstrings, and the strings that document fields
            for one in body:
                if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
                    if isinstance(one.value.value, str):
                        prose |= set(range(one.lineno, (one.end_lineno or one.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    kept = [line.rstrip() for number, line in lines if number not in prose]
    return "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))
