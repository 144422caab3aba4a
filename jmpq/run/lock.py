"""One writer at a time in a run folder; a second one is refused and told who the first is."""

import contextlib
import datetime
import functools
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

LOCK = ".lock"
COMPILATIONS = "compilations"  # folder of compiled programs, where no other one is named
P = ParamSpec("P")
R = TypeVar("R")
Folder = str | os.PathLike[str]


def writes(
    step: Callable[Concatenate[Folder, P], R],
) -> Callable[Concatenate[Folder, P], R]:
    """A step that locks its run folder, its first argument, while it works."""

    @functools.wraps(step)
    def locked(folder: Folder, *args: P.args, **kwargs: P.kwargs) -> R:
        with writer_lock(folder, step.__name__):
            return step(folder, *args, **kwargs)

    return locked


@contextlib.contextmanager
def writer_lock(folder: Folder, step: str) -> Iterator[None]:
    """Lock a run folder until the block ends.

    The operating system drops the lock of a process that dies, however it dies: what such a
    process leaves is an empty claim that the next one takes over. Folders that are made for
    the lock and stay empty, compiled programs aside, are removed. Where no lock can be made (a
    folder that cannot be written, a file system without locks) there is none, and the step
    itself says what is wrong.

    Args:
        folder: The run folder.
        step: Name of the step that is going to write.

    Raises:
        RuntimeError: If another process writes there; it names process, step and time.
    """
    path = pathlib.Path(folder)
    made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = _locked(path / LOCK)
    except OSError:
        file = None
    try:
        if file is not None:
            with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
                file.truncate(0)
                os.write(file.fileno(), json.dumps(_claim(step)).encode())
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                (path / LOCK).unlink()  # while it is locked: nobody else's
            file.close()
        with contextlib.suppress(OSError):
            if path in made and [each.name for each in path.iterdir()] == [COMPILATIONS]:
                shutil.rmtree(path / COMPILATIONS)
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def _locked(path: pathlib.Path) -> Any:
    """The lock file, opened and locked; None where the system has no locks.

    Raises:
        RuntimeError: If another process holds it.
    """
    while fcntl is not None:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file after it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError as error:
            file.seek(0)
            told = file.read()
            file.close()
            raise RuntimeError(_refusal(path.parent, told)) from error
        file.close()
    return None


def _claim(step: str) -> dict[str, Any]:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"step": step, "pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _refusal(folder: pathlib.Path, told: str) -> str:
    try:
        holder = json.loads(told)
        who = (
            f"`jmpq {holder['step']}` (process {holder['pid']} on {holder['host']}, since "
            f"{holder['since']})"
        )
    except (ValueError, KeyError, TypeError):  # it has not written yet who it is
        who = "another process"
    return f"{who} writes to {folder}: wait until it has finished, then run this step again."
