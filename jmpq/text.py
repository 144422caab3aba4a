"""Text for people: how objects print themselves, and what a mistyped name may have meant."""

import difflib
import shutil
import textwrap
from collections.abc import Iterable, Sequence

MOST_COLUMNS = 100  # of a printed object; fewer in a narrower terminal


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> str:
    """A sentence with the names nearest to one that is not known; empty where none is near.

    >>> did_you_mean("gaus_newton", ["gauss_newton", "hessian"])
    " Did you mean 'gauss_newton'?"
    >>> did_you_mean("x", ["gauss_newton"])
    ''
    >>> did_you_mean("resnet21", ["resnet20", "resnet32"])  # as like; the longer beginning
    " Did you mean 'resnet20'?"

    Args:
        name: Name that was asked for.
        known: The names that there are.
        most: Names to tell.
        cutoff: Least similarity, 0 to 1.
    """
    asked = name.lower()
    ranks = {}
    for other in known:
        lower = other.lower()
        alike = difflib.SequenceMatcher(None, lower, asked).ratio()
        if alike >= cutoff:
            begins = sum(asked.startswith(lower[:n]) for n in range(1, len(lower) + 1))
            ranks[other] = (-alike, -begins, lower)
    close = sorted(ranks, key=ranks.__getitem__)[:most]
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def some(names: Sequence[str], most: int = 12) -> str:
    """Names for a message, the first of many.

    >>> some(["a", "b", "c"], 2)
    'a, b, ...'
    """
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """A count with its noun; `nouns` where an s does not make it several.

    >>> plural(1, "layer"), plural(1000, "layer")
    ('1 layer', '1,000 layers')
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def quantity(value: float | int, unit: str = "") -> str:
    """A number with three digits and its unit.

    >>> quantity(0.012345, "nats"), quantity(1.5e6, "bytes")
    ('0.0123 nats', '1.5e+06 bytes')
    """
    return f"{value:.3g} {unit}".rstrip()


def printed(title: str, *facts: str) -> str:
    """How an object prints itself: a title, and facts below it, wrapped in the terminal."""
    columns = min(shutil.get_terminal_size((MOST_COLUMNS, 24)).columns, MOST_COLUMNS)
    wrapped = textwrap.TextWrapper(columns, subsequent_indent="    ", break_on_hyphens=False)
    lines = [wrapped.fill(title)]
    wrapped.initial_indent = "  "
    lines += [wrapped.fill(" ".join(fact.split())) for fact in facts if fact]
    return "\n".join(lines)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column to the left; columns that do not fit are left out."""
    columns = min(shutil.get_terminal_size((MOST_COLUMNS, 24)).columns, MOST_COLUMNS)
    cells = [list(heads), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    while len(widths) > 2 and 2 + sum(widths) + 2 * (len(widths) - 1) > columns:
        widths.pop()
    return [
        "  "
        + "  ".join(
            f"{text:<{width}}" if i == 0 else f"{text:>{width}}"
            for i, (text, width) in enumerate(zip(row, widths, strict=False))
        )
        for row in cells
    ]
