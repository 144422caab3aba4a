"""Artifacts on disk: whole or not at all."""

import contextlib
import csv
import hashlib
import io
import json
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any


@contextlib.contextmanager
def atomic_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends without an error.

    Raises:
        OSError: One line, if the folder cannot be made or written, or `path` is a folder.
    """
    path = pathlib.Path(path)
    # The name is known before the file is there: an interrupt at any moment removes it.
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = name.open("xb")
        with file:
            yield file
        with _named(path):
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
    with _named(path), tempfile.TemporaryFile(dir=path.parent):
        pass


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Errors that say which file could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = "there is a file in the place of its folder"
        raise OSError(
            f"Cannot write {path}: {reason}. Choose another folder for the results."
        ) from error


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


def finished_lines(path: pathlib.Path, header: Any) -> list[Any]:
    """What an interrupted run appended to a file of JSON lines; the file is ready for more.

    The header says what the run is of. A file of another run, or none, is begun anew; a last
    line that was cut off is dropped.
    """
    try:
        lines = pathlib.Path(path).read_text().split("\n")[:-1]
        first, *rows = (json.loads(line) for line in lines)
        found = rows if first == json.loads(json.dumps(header)) else []  # tuples are lists
    except (FileNotFoundError, ValueError):
        found = []
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in (header, *found)))
    return found


def append_line(path: pathlib.Path, row: Any) -> None:
    """Append a JSON value (no NaN) to a file of JSON lines."""
    with _named(path), pathlib.Path(path).open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def file_sha256(path: pathlib.Path) -> str:
    """Hash of a file's bytes."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def json_sha256(value: Any) -> str:
    """Hash of a JSON value; keys in any order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
