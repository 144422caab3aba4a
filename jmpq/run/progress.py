"""How a step tells what it does: lines of text, and bars with the time left."""

import contextlib
import dataclasses
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
        say: Called with a line of text.
        bar: Called with a description and a unit for a bar.
    """

    say: Callable[[str], None]
    bar: OpenBar


@contextlib.contextmanager
def bar(description: str, unit: str = "") -> Iterator[MoveBar]:
    """A bar on the error stream, moved by calling it with (done, total, note)."""
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
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=None, note="")

        def move(done: int, total: int, note: str = "", /) -> None:
            progress.update(task, completed=done, total=total, note=note)

        try:
            yield move
        except Exception:
            progress.live.transient = True  # the error's one line stands alone
            raise


@contextlib.contextmanager
def no_bar(description: str, unit: str = "") -> Iterator[MoveBar]:
    """Nothing, in the place of a bar."""
    yield lambda done, total, note="", /: None


QUIET = Reporter(say=lambda text: None, bar=no_bar)
TERMINAL = Reporter(say=print, bar=bar)
