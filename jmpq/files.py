"""Artifacts on disk: whole or not at all."""

import contextlib
import csv
import errno
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any


@contextlib.contextmanager
def atomic_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends without an error.

    Raises:
        OSError: One line, if the folder cannot be made or written, the disk is full, or `path`
            is a folder. What lay there stays as it was.
    """
    path = pathlib.Path(path)
    # The name is known before the file is there: an interrupt at any moment removes it.
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with name.open("xb") as file:
                yield file
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            name.unlink()
        raise


def check_writable(path: pathlib.Path) -> None:
    """Raise now what writing `path` would raise after hours of work; nothing is left.

    Raises:
        OSError: One line, if no file can be made in the folder of `path`.
    """
    with named_errors(path), tempfile.TemporaryFile(dir=path.parent):
        pass


@contextlib.contextmanager
def named_errors(path: pathlib.Path) -> Iterator[None]:
    """Errors that say which file could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        reason, advice = error.strerror or str(error), "Choose another folder for the results."
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = "there is a file in the place of its folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "Free some space and run this step again; what was there is as it was."
        raise OSError(f"Cannot write {path}: {reason}. {advice}") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: pathlib.Path, value: Any, *, compact: bool = False) -> None:
    """Write JSON (no NaN), whole or not at all; compact, for long tables, without spaces."""
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
    write_text(path, json.dumps(value, allow_nan=False, **layout) + "\n")


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a table, whole or not at all; columns in the order they appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def file_sha256(path: pathlib.Path) -> str:
    """Hash of a file's bytes, which need not fit into memory."""
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Hash of a JSON value; keys in any order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, jmpq, NumPy and the `packages` that a result depends on."""
    known = {name: importlib.metadata.version(name) for name in ("jmpq", "numpy", *packages)}
    return {"python": platform.python_version(), **known}
