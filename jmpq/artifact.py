"""Kinds of artifacts: the header that every file carries, and one way to refuse a wrong one.

An artifact is what a step leaves in a run folder. Its header names its schema and version, and
has a hash of every field and array. A file of another version, or one that was changed after it
was written, is refused in one line that says what changed and which step to run again.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import struct
import types
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from jmpq.files import atomic_file, json_sha256, write_json

# What a spoilt npz file makes zipfile, zlib, NumPy and json raise.
_SPOILT = (
    EOFError, KeyError, MemoryError, NotImplementedError, RecursionError, TypeError, ValueError,
    struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

PLANS = "plans"  # folder of a run with a folder for every plan that has a name
CONTENT, _DIGITS = "content_sha256", 16  # field of the hashes; digits that are kept of each


@dataclasses.dataclass(frozen=True)
class ArtifactKind:
    """One kind of artifact.

    Attributes:
        name: Name of the schema, without ``jmpq/``.
        version: Version that this jmpq writes and reads.
        step: Step of the command line that writes it.
        flags: Options that the step has to be given to write it.
    """

    name: str
    version: int
    step: str
    flags: tuple[str, ...] = ()

    @property
    def header(self) -> dict[str, Any]:
        """Schema and version, as the file carries them."""
        return {"schema": f"jmpq/{self.name}", "version": self.version}

    def existing(self, path: pathlib.Path) -> pathlib.Path:
        """The path itself.

        Raises:
            FileNotFoundError: If there is no such file; it says which step writes it.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found: {self.command(path)} first.")
        return path

    def check(self, path: pathlib.Path, header: Any) -> None:
        """Refuse what is not of this kind and version.

        Raises:
            ValueError: If it is not; it says which step to run again.
        """
        known = isinstance(header, Mapping)
        schema, version = (header.get(k) if known else None for k in self.header)
        if (schema, version) != tuple(self.header.values()):
            raise ValueError(
                f"{path} has schema {schema!r} version {version!r}; this jmpq reads "
                f"'jmpq/{self.name}' version {self.version}: {self.command(path, anew=True)} "
                "again."
            )

    def read_json(self, path: pathlib.Path) -> dict[str, Any]:
        """The content of a JSON file of this kind, without its header.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not JSON, of another kind or version, or was changed after it
                was written; the fields are named.
        """
        record, changed = self.read_edited(path)
        self.refuse_changed(path, changed)
        return record

    def read_edited(self, path: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
        """As `read_json`, with the names of changed fields in the place of an error.

        For readers that can say more about a changed field; `refuse_changed` comes after them.
        """
        try:
            record = json.loads(self.existing(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise self.unusable(path, f"not readable JSON: {error}") from error
        self.check(path, record)
        stored = record.pop(CONTENT, None)
        fields = {key: value for key, value in record.items() if key not in self.header}
        return fields, changed_names(stored, content_hashes(fields))

    def write_json(
        self,
        path: pathlib.Path,
        fields: Mapping[str, Any],
        default: Callable[[Any], Any] | None = None,
    ) -> None:
        """Write a JSON file of this kind, whole or not at all.

        Args:
            path: The file.
            fields: Content of the artifact.
            default: JSON values of what JSON does not know, as of `json.dumps`.

        Raises:
            OSError: If the file cannot be written.
            TypeError: If a value is not JSON.
            ValueError: If a number is NaN or infinite.
        """
        plain = json.loads(json.dumps(fields, default=default, allow_nan=False))
        write_json(path, self.header | plain | {CONTENT: content_hashes(plain)})

    def read_npz(
        self, path: pathlib.Path, what: str
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The header of an npz file of this kind, and its other arrays.

        Args:
            path: The file.
            what: Name of the kind of file, for messages.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it cannot be read, is of another kind or version, or was changed
                after it was written; the arrays are named.
        """
        self.existing(path := pathlib.Path(path))
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
            header = json.loads(str(arrays.pop("header")))
        except _SPOILT as error:
            raise self.unusable(path, f"not {what}") from error
        self.check(path, header)
        written = header.pop(CONTENT, None)
        fields = {key: value for key, value in header.items() if key not in self.header}
        self.refuse_changed(path, changed_names(written, content_hashes(fields, arrays)))
        return fields, arrays

    def write_npz(
        self,
        path: pathlib.Path,
        fields: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        *,
        compress: bool = False,
    ) -> None:
        """Write an npz file of this kind, whole or not at all.

        Args:
            path: The file.
            fields: JSON values of its header, by names that no array has.
            arrays: Arrays of the artifact.
            compress: Whether arrays are compressed.

        Raises:
            OSError: If the file cannot be written.
        """
        plain = json.loads(json.dumps(fields))
        header = self.header | plain | {CONTENT: content_hashes(plain, arrays)}
        save = np.savez_compressed if compress else np.savez
        with atomic_file(path) as file:
            save(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]

    def refuse_changed(self, path: pathlib.Path, changed: Sequence[str]) -> None:
        """Refuse a file of which some fields or arrays are not those that were written.

        Raises:
            ValueError: If there are any; it names them.
        """
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            names = ", ".join(changed[:3]) + more
            raise self.edited(path, f"changed after it was written: {names}")

    def edited(self, path: pathlib.Path, reason: object) -> ValueError:
        """The error for a file that does not agree with itself, as one edited by hand."""
        error = str(self.unusable(path, reason))
        if self.step != "solve":
            return ValueError(error)
        run, plan = _run_of(path)
        option = f" --plan {plan}" if plan else ""
        advice = f"`jmpq evaluate {run}{option} --allocation FILE` measures bits of your own."
        return ValueError(f"{error} {advice}")

    def unusable(self, path: pathlib.Path, reason: object) -> ValueError:
        """The error for a file that cannot be used."""
        why = f"{reason} is missing" if isinstance(reason, KeyError) else str(reason)
        why = why.rstrip(".")
        command = self.command(path, anew=True)
        return ValueError(f"{path} cannot be used ({why}): {command} again.")

    def command(self, path: pathlib.Path, *, anew: bool = False) -> str:
        """What to do about a file, but for when.

        Args:
            path: The file.
            anew: Whether what lies there is written over, which `jmpq solve` has to be told.
        """
        run, plan = _run_of(path)
        solves = self.step == "solve"
        words = ["jmpq", self.step, str(run)]
        words += ["--name" if solves else "--plan", plan] if plan else []
        words += [*self.flags, *(["--replace"] if solves and anew else [])]
        return f"run `{' '.join(words)}`"


def _run_of(path: pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """Run folder of an artifact, and the name of its plan, if it has one."""
    folder = path.parent
    return (
        (folder.parent.parent, folder.name) if folder.parent.name == PLANS else (folder, None)
    )


def content_hashes(
    fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray] = types.MappingProxyType({})
) -> dict[str, str]:
    """Hash of every JSON field, and of dtype, shape and bytes of every array, by name."""
    hashes = {name: json_sha256(value)[:_DIGITS] for name, value in fields.items()}
    for name, array in arrays.items():
        digest = hashlib.sha256(json.dumps([array.dtype.str, array.shape]).encode())
        plain = array.dtype.kind in "biufc"  # others, as text, have no buffer to hash
        digest.update(np.ascontiguousarray(array).data if plain else array.tobytes())
        hashes[name] = digest.hexdigest()[:_DIGITS]
    return hashes


def changed_names(written: Any, found: Mapping[str, str]) -> list[str]:
    """Names of what is not as it was written: changed, added or removed."""
    if not isinstance(written, Mapping):
        return [CONTENT]
    names = dict.fromkeys((*found, *written))
    return [name for name in names if written.get(name) != found.get(name)]


def fields_of(
    kind: type, record: Any, what: str, ignore: Collection[str] = ()
) -> dict[str, Any]:
    """The fields of a dataclass in a JSON object.

    A field of plain JSON values is checked against its annotation; what else a dataclass holds
    is made, and checked, by whoever reads the file.

    Args:
        kind: The dataclass.
        record: The JSON value.
        what: Name of the value, for messages.
        ignore: Keys that are no fields and may be there.

    Raises:
        ValueError: If it is not an object, fields are missing or unknown, or a value has
            another type than its field; the message names the field and both types.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{what} is {type(record).__name__}, expected a JSON object.")
    fields = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    required = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    if lacking := [name for name in required if name not in record]:
        raise ValueError(f"{what} lacks {', '.join(lacking)}.")
    known = {field.name for field in fields}
    if unknown := sorted(set(record) - known - set(ignore)):
        raise ValueError(f"{what} has unknown fields: {', '.join(unknown)}.")
    hints = _hints(kind)
    for name in known & set(record):
        check_json(hints[name], record[name], f"{name} of {what}")
    return {key: value for key, value in record.items() if key in known}


_hints = functools.cache(get_type_hints)


def check_json(annotation: Any, value: Any, what: str) -> None:
    """Refuse a JSON value that is not of an annotated type.

    Numbers must be finite. Classes that JSON does not know are not looked at.

    >>> check_json(dict[str, float], {"bops": "many"}, "costs")
    Traceback (most recent call last):
    ValueError: bops of costs is a string ('many'), expected a number.

    Raises:
        ValueError: If it is not; the message names the value, its type and the expected one.
    """
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{what} is {_shown(value)}, expected one of {arguments}.")
    elif origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return
        rest = [kind for kind in arguments if kind is not type(None)]
        if len(rest) == 1:
            check_json(rest[0], value, what)
    elif origin in _NAMES:
        if not _is(value, origin):
            raise ValueError(f"{what} is {_shown(value)}, expected {_NAMES[origin]}.")
        if isinstance(value, Mapping):
            kinds = arguments[1:] or (Any,)
            parts: Iterable[tuple[Any, Any]] = value.items()
        elif isinstance(value, list | tuple):
            kinds = [kind for kind in arguments if kind is not Ellipsis] or (Any,)
            fixed = origin is tuple and Ellipsis not in arguments and arguments
            if fixed and len(value) != len(arguments):
                raise ValueError(f"{what} has {len(value)} values, expected {len(arguments)}.")
            parts = enumerate(value)
        else:
            return
        for position, (key, part) in enumerate(parts):
            check_json(kinds[position % len(kinds)], part, f"{key} of {what}")


_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    Mapping: "an object",
}


def _is(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a kind: a whole number is a number, a truth value is not."""
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float)
        return number and not isinstance(value, bool) and math.isfinite(value)
    accepted = {list: list | tuple, tuple: list | tuple, dict: Mapping}
    return isinstance(value, accepted.get(kind, kind))


def _shown(value: Any) -> str:
    """A JSON value's kind, and the value itself where it is short."""
    if value is None:
        return "null"
    kind = next((name for kind, name in _NAMES.items() if _is(value, kind)), "a value")
    return f"{kind} ({value!r})" if len(repr(value)) <= 40 else kind


def check_array(array: Any, shape: tuple[int, ...], what: str, *, finite: bool = True) -> None:
    """Raise `ValueError` where a stored array is not of real numbers of a shape, or NaN."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        kind = getattr(array, "dtype", "missing")
        raise ValueError(f"{what} is {kind}, expected an array of numbers")
    if array.shape != shape:
        raise ValueError(f"{what} has shape {array.shape}, expected {shape}")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"{what} has NaN or infinite values")
