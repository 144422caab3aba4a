"""Progress bars with time left, on the error stream."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Move(Protocol):
    """Moves a bar."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


@contextlib.contextmanager
def bar(description: str, unit: str = "", *, hidden: bool = False) -> Iterator[Move]:
    """A bar that is moved by calling it with (done, total), and a note if there is one."""
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
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as progress:
        task = progress.add_task(description, total=None, note="")

        def move(done: int, total: int, note: str = "", /) -> None:
            progress.update(task, completed=done, total=total, note=note)

        try:
            yield move
        except Exception:
            progress.live.transient = True  # the error's one line stands alone
            raise
