"""How a step tells what it does: lines of text, and bars with the time left."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

QUIET_S = 10  # seconds that a log goes without a line


@runtime_checkable
class MoveBar(Protocol):
    """Moves a bar."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


@runtime_checkable
class OpenBar(Protocol):
    """Opens a bar for some work, which is moved until the block ends."""

    def __call__(
        self, description: str, unit: str = ""
    ) -> contextlib.AbstractContextManager[MoveBar]: ...


@dataclasses.dataclass(frozen=True)
class Reporter:
    """Listens to a step.

    Attributes:
        say: Function that prints a line of text.
        bar: Function that opens a progress bar, given a description and a unit.
    """

    say: Callable[[str], None]
    bar: OpenBar


@contextlib.contextmanager
def bar(description: str, unit: str = "") -> Iterator[MoveBar]:
    """A bar on the error stream, moved by calling it with (done, total, note).

    Where the error stream is neither a terminal nor a notebook, lines (`log_lines`).
    """
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        with log_lines(description, unit) as move:
            yield move
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=None, note="")

        def move(done: int, total: int, note: str = "", /) -> None:
            progress.update(task, completed=done, total=total, note=note)

        try:
            yield move
        except Exception:
            progress.live.transient = True  # the error's one line stands alone
            raise


@contextlib.contextmanager
def log_lines(
    description: str,
    unit: str = "",
    *,
    write: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[MoveBar]:
    """Lines for a log, without control characters, in the place of a bar.

    Work of less than ten seconds has none. After that a line comes ten seconds after the last;
    sooner, but not within a second, where another tenth of the work is done; one at the end.

    Args:
        description: Name of the work.
        unit: Unit of the work.
        write: Function that writes a line.
        clock: Seconds.
    """
    start = last = clock()
    first = tenths = None  # what was done before, by an interrupted run; the last tenth

    def move(done: int, total: int, note: str = "", /) -> None:
        nonlocal last, first, tenths
        first = done if first is None else first
        now, reached = clock(), 10 * done // max(total, 1)
        tenths = reached if tenths is None else tenths
        wait = 1 if reached > tenths else QUIET_S
        early = now - last < wait and not (done >= total and reached > tenths)
        if early or now - start < QUIET_S:
            return
        last, tenths = now, reached
        left = "?" if done == first else _clock((now - start) / (done - first) * (total - done))
        text = f"{description.strip()}: {done}/{total} {unit}".rstrip()
        text += f", {_clock(now - start)} passed, {left} left {note}".rstrip()
        write("".join(c if c.isprintable() else " " for c in text))

    yield move


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(3725.4)
    '1:02:05'
    """
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


@contextlib.contextmanager
def no_bar(description: str, unit: str = "") -> Iterator[MoveBar]:
    """Nothing, in the place of a bar."""
    yield lambda done, total, note="", /: None


QUIET = Reporter(say=lambda text: None, bar=no_bar)
TERMINAL = Reporter(say=print, bar=bar)
