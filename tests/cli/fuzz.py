"""Wrong options, case by case, and what the command line does with them.

A case ends in one of four ways: *refused* (one line, an exit code that is not 0, no file
changed), *accepted*, *unclear* (more than a line, or a file changed) or *traceback*.
"""

import dataclasses
import functools
import pathlib
import re
import typing
from collections.abc import Callable, Iterator, Sequence

from jmpq.cli import commands
from jmpq.run import options
from jmpq.study import options as study_options
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
    "instance": {"": options.Instance},
    "race": {"": options.Race},
    "refine": {"": options.Refine},
    "floor": {"": options.Floor},
    "evaluate": {"": options.Evaluate},
    "finetune": {"": options.Finetune},
    "export": {"": options.Export},
    "study": {"": study_options.Options},
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
    """One attempt: what is wrong and how, and the call that must be refused."""

    what: str
    kind: str
    args: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class End:
    """How a case ended, and the line that said so."""

    way: str
    line: str = ""


def attempt(case: Case, run: pathlib.Path) -> End:
    """Run a case on a folder."""
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


def table(ends: Sequence[tuple[str, str]]) -> str:
    """Cases by kind (or whatever stands first), and in which way they ended."""
    ways = ("refused", "accepted", "unclear", "traceback")
    rows = [["kind", "cases", *ways]]
    for kind in (*dict.fromkeys(kind for kind, _ in ends), "all"):
        own = [way for each, way in ends if kind in (each, "all")]
        rows.append([kind, str(len(own)), *(str(own.count(way)) for way in ways)])
    wide = max(len(row[0]) for row in rows)
    return "\n".join(
        f"{row[0]:{wide}s}" + "".join(f"{x:>11s}" for x in row[1:]) for row in rows
    )


def allowed(case: Case, patterns: typing.Iterable[str]) -> bool:
    """Whether a case may be accepted: its value makes sense, or nothing depends on it."""
    return any(re.fullmatch(pattern, f"{case.what}: {case.kind}") for pattern in patterns)
