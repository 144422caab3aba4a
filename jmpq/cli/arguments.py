"""What is wrong with a command line before a step is called, in one line."""

import dataclasses
import re
from collections.abc import Sequence
from typing import get_origin

from jmpq.run import options
from jmpq.study import options as study_options
from jmpq.text import did_you_mean

_BOX = re.compile(
    r"[│╭╮╰╯]|─ .* ─+|^Value error\s+-+\s*$"
)  # what the parser draws around its messages
_RULE = re.compile("[─-]{3,}")
_CONSTRUCTED = re.compile(r"Error parsing [\w.-]*(dummy|options)[\w.-]*: ")
_QUOTED = re.compile("'([^']*)'")
_CHOICE = re.compile(r"invalid choice '(.*?)' for argument .* Expected one of (\(.*\))")
_NUMBER = {
    re.compile(r"invalid literal for int\(\) with base 10: (.*)"): r"\1 is not a whole number.",
    re.compile(r"could not convert string to float: (.*)"): r"\1 is not a number.",
}


def check_arguments(args: Sequence[str]) -> None:
    """Refuse what the parser would take without a word.

    Raises:
        ValueError: If an option is given twice, of which the parser keeps the last, or a list
            is given without a value, as from an unset shell variable.
    """
    seen: set[str] = set()
    for argument, following in zip(args, [*args[1:], "--"], strict=True):
        if not argument.startswith("--") or argument == "--":
            continue
        option, equals, _ = argument.partition("=")
        name = option[2:].replace("_", "-").removeprefix("no-")
        if name in seen:
            raise ValueError(
                f"{option} is given twice: give it once. An option of several values takes "
                f"them all at once, as in {option} ONE TWO."
            )
        seen.add(name)
        if name in _lists() and not equals and following.startswith("--"):
            raise ValueError(
                f"{option} is given without a value: give at least one, or leave the option "
                "out for its default."
            )


def one_line(panel: str) -> str:
    r"""The parser's message without its frame, its help texts and the names it made up.

    >>> one_line("╭─ Value error ─╮\n│ Wrong number. │\n│ ───────────── │\n│ Help. │")
    'Wrong number.'
    """
    lines = [_BOX.sub("", line).strip() for line in panel.splitlines()]
    text = " ".join(line or "\n" if _RULE.fullmatch(line) is None else "\n" for line in lines)
    parts = [part.strip() for part in text.split("\n") if part.strip()]
    said, *rest = [part for part in parts if part != "Value error"] or parts
    said = _CONSTRUCTED.sub("", " ".join(said.split()))
    for pattern, meaning in _NUMBER.items():
        said = pattern.sub(meaning, said)
    if choice := _CHOICE.search(said):
        said = said.rstrip(".") + f".{did_you_mean(choice[1], re.findall(_QUOTED, choice[2]))}"
    for part in rest:
        if part.startswith("Perhaps you meant:"):
            return f"{said}. Perhaps you meant {part.split()[3]}."
        if part.startswith("Available subcommands:"):
            unknown, known = said.partition(": ")[2].split(",")[0], part.partition(":")[2]
            hint = did_you_mean(unknown, re.findall(r"\w+", known))
            return f"{said}.{hint} {' '.join(part.split())}."
    return said


def _lists() -> set[str]:
    """Names of the options that take any number of values."""
    every = (*vars(options).values(), *vars(study_options).values())
    kinds = [kind for kind in every if dataclasses.is_dataclass(kind)]
    fields = [field for kind in kinds for field in dataclasses.fields(kind)]
    return {f.name.replace("_", "-") for f in fields if get_origin(f.type) is tuple}
