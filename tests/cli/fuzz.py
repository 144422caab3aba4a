"""Spoilt artifacts and wrong options, case by case, and what the command line does with them.

A case ends in one of four ways: *refused* (one line, an exit code that is not 0, no file
changed), *accepted*, *unclear* (more than a line, or a file changed) or *traceback*.
"""

import copy
import dataclasses
import functools
import json
import pathlib
import re
import typing
from collections.abc import Callable, Iterator

import numpy as np

from jmpq.cli import commands
from jmpq.run import options
from tests.cli.command import contents, jmpq

# Options of every command, by the prefix of their flags.
GROUPS = {
    "train": {"": options.Train},
    "layers": {"": options.Layers},
    "sensitivity": {
        "": options.Sensitivity,
        "weights.": options.KernelSpec,
        "activations.": options.InputSpec,
        "compute.": options.Compute,
    },
    "solve": {
        "": options.Solve,
        "comparison.": options.Comparison,
        "inverse.": options.Inverse,
    },
    "race": {"": options.Race},
    "refine": {"": options.Refine},
    "floor": {"": options.Floor},
    "evaluate": {"": options.Evaluate},
    "finetune": {"": options.Finetune},
}
BARE = ("compute.", "comparison.", "inverse.")  # groups whose flags have no prefix
VALUES = {
    "nothing": [],
    "zero": ["0"],
    "negative": ["-1"],
    "NaN": ["nan"],
    "infinite": ["inf"],
    "huge": ["1" + 30 * "0"],
    "wrong kind": ["many"],
    "empty text": [""],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One attempt: what it spoils and how, and the call that must be refused."""

    what: str
    kind: str
    args: tuple[str, ...]
    spoil: Callable[[pathlib.Path], None] | None = None


@dataclasses.dataclass(frozen=True)
class End:
    """How a case ended, and the line that said so."""

    way: str
    line: str = ""


def attempt(case: Case, run: pathlib.Path) -> End:
    """Run a case on a folder, which may be spoilt by it."""
    if case.spoil is not None:
        case.spoil(run)
    before = contents(run)
    try:
        result = jmpq(case.args[0], run, *case.args[1:])
    except BaseException as error:  # what a user would see as a traceback
        return End("traceback", f"{type(error).__name__}: {error}")
    if result.code == 0:
        return End("accepted")
    lines = [line for line in result.err.splitlines() if line.strip()]
    clear = len(lines) == 1 and lines[0].startswith("jmpq: ") and contents(run) == before
    return End("refused" if clear else "unclear", result.err)


def flags() -> Iterator[tuple[str, str, dataclasses.Field]]:
    """Every option of every command: command, flag, field."""
    for command, groups in GROUPS.items():
        for prefix, kind in groups.items():
            start = "" if prefix in BARE else prefix
            for field in dataclasses.fields(kind):
                if not dataclasses.is_dataclass(field.type):
                    yield command, f"--{start}{field.name.replace('_', '-')}", field


def is_text(annotation: object) -> bool:
    """Whether an option takes any text, which only its step can refuse."""
    kinds = {annotation, *typing.get_args(annotation)}
    return bool({str, pathlib.Path} & kinds)


def option_cases() -> Iterator[Case]:
    """Every option with every wrong value, and given twice."""
    for command, flag, field in flags():
        if field.type is bool:
            yield Case(flag, "duplicate", (command, flag, flag))
            yield Case(flag, "wrong kind", (command, flag, "many"))
            continue
        for kind, values in VALUES.items():
            if not (kind != "nothing" and is_text(field.type)):
                yield Case(flag, kind, (command, flag, *values))
        yield Case(flag, "duplicate", (command, flag, "1", flag, "2"))


def stand_in(name: str) -> Callable[..., None]:
    """A command with the same options that does nothing."""
    return functools.wraps(getattr(commands, name))(lambda *args, **kwargs: None)


def json_cases(path: pathlib.Path) -> Iterator[Case]:
    """Every field of a JSON artifact removed, retyped, cut short, NaN; another version."""
    record = json.loads(path.read_text())
    for place in _places(record):
        label = f"{path.name} {'/'.join(map(str, place))}"
        value = functools.reduce(lambda node, key: node[key], place, record)
        yield Case(label, "removed", ("report",), _edit_json(path.name, place, None, True))
        for kind, other in _spoilt(value):
            yield Case(label, kind, ("report",), _edit_json(path.name, place, other, False))


def _places(value: object, place: tuple = ()) -> Iterator[tuple]:
    """Paths of the fields: every key of an object, the first element of a list."""
    if isinstance(value, dict):
        keys = list(value)
        free = place and place[-1] in ("measured", "allocation", "costs", "predictions")
        for key in keys[:1] if free else keys:
            yield (*place, key)
            yield from _places(value[key], (*place, key))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*place, 0))


def _spoilt(value: object) -> Iterator[tuple[str, object]]:
    yield "retyped", 7 if isinstance(value, str | list | dict | None) else "seven"
    yield "retyped", [value]
    if isinstance(value, list):
        yield "reshaped", [*value, value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield "NaN", float("nan")
        yield "number", -value - 1
    if isinstance(value, str):
        yield "text", f"{value}?"


def _edit_json(
    name: str, place: tuple, value: object, remove: bool
) -> Callable[[pathlib.Path], None]:
    def spoil(run: pathlib.Path) -> None:
        record = json.loads((run / name).read_text())
        node = functools.reduce(lambda node, key: node[key], place[:-1], record)
        if remove:
            del node[place[-1]]
        else:
            node[place[-1]] = value
        (run / name).write_text(json.dumps(record))

    return spoil


def npz_cases(path: pathlib.Path) -> Iterator[Case]:
    """Every array of an npz artifact, and every field of its header, spoilt."""
    with np.load(path) as stored:
        arrays = dict(stored)
    header = json.loads(str(arrays["header"]))
    for name, array in arrays.items():
        label = f"{path.name} {name}"
        changes = {"removed": None, "retyped": np.array(["text"] * max(array.size, 1))}
        if name != "header":
            changes["reshaped"] = np.append(array.ravel(), array.ravel()[:1])
            if array.dtype.kind == "f":
                changes["NaN"] = np.full_like(array, np.nan)
        for kind, other in changes.items():
            yield Case(label, kind, ("report",), _edit_npz(path.name, name, other))
    for place in _places(header):
        label = f"{path.name} header {'/'.join(map(str, place))}"
        value = functools.reduce(lambda node, key: node[key], place, header)
        for kind, other in (("removed", None), *_spoilt(value)):
            changed = copy.deepcopy(header)
            node = functools.reduce(lambda node, key: node[key], place[:-1], changed)
            if kind == "removed":
                del node[place[-1]]
            else:
                node[place[-1]] = other
            text = np.array(json.dumps(changed))
            yield Case(label, kind, ("report",), _edit_npz(path.name, "header", text))


def _edit_npz(
    name: str, array: str, value: np.ndarray | None
) -> Callable[[pathlib.Path], None]:
    def spoil(run: pathlib.Path) -> None:
        with np.load(run / name) as stored:
            arrays = dict(stored)
        arrays.pop(array)
        np.savez(run / name, **arrays, **({} if value is None else {array: value}))

    return spoil


def table(ends: list[tuple[Case, End]]) -> str:
    """Cases by kind, and how they ended."""
    ways = ("refused", "accepted", "unclear", "traceback")
    kinds = dict.fromkeys(case.kind for case, _ in ends)
    rows = [["kind", "cases", *ways]]
    for kind in (*kinds, "all"):
        own = [end.way for case, end in ends if kind in (case.kind, "all")]
        rows.append([kind, str(len(own)), *(str(own.count(way)) for way in ways)])
    return "\n".join("  ".join(f"{cell:>10s}" for cell in row) for row in rows)


def allowed(case: Case, patterns: typing.Iterable[str]) -> bool:
    """Whether a case may be accepted: its value makes sense, or nothing depends on it."""
    return any(re.fullmatch(pattern, f"{case.what}: {case.kind}") for pattern in patterns)
