"""Engines: where the cells of a wave are done. Each is a call of an engine that exists.

``process`` does one after another here. ``pool`` spreads them over processes of this machine
(`concurrent.futures`). ``slurm`` hands them to Slurm as a job array through submitit, and
``local`` to submitit's executor without Slurm. All call `jmpq.study.cells.done`, so that any
engine goes on where another stopped.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jmpq.run.progress import QUIET, Reporter
from jmpq.study.cells import Cell, done

EngineName = Literal["process", "pool", "slurm", "local"]
Engine = Callable[[pathlib.Path, Sequence[Cell], Callable[[], None]], None]


def make_engine(
    name: EngineName | str, jobs: int = 1, *, slurm: Mapping[str, Any] | None = None
) -> Engine:
    """An engine: called with the folder, cells, and what to call when one is done.

    Args:
        name: Name of the engine.
        jobs: Cells at a time.
        slurm: Resources of a task, as submitit's ``update_parameters`` takes them.

    Raises:
        ImportError: If submitit is asked for and not installed.
        ValueError: If there is no such engine.
    """
    match name:
        case "process":
            return in_process
        case "pool":
            return functools.partial(in_pool, jobs)
        case "slurm" | "local":
            try:
                import submitit  # noqa: F401
            except ImportError as error:
                raise ImportError(
                    f"Engine {name!r} needs submitit: pip install 'jmpq[sweep]'."
                ) from error
            return functools.partial(through_submitit, name, jobs, dict(slurm or {}))
        case _:
            raise ValueError(
                f"There is no engine {name!r}: choose process, pool, slurm or local."
            )


def in_process(root: pathlib.Path, cells: Sequence[Cell], tick: Callable[[], None]) -> None:
    """One cell after another in this process; compiled programs serve them all.

    Raises:
        RuntimeError: If cells fail, after all others are done.
    """
    failed: list[str] = []
    for cell in cells:
        failed += _attempt(root, cell)
        tick()
    _raise(failed, len(cells))


def in_pool(
    jobs: int, root: pathlib.Path, cells: Sequence[Cell], tick: Callable[[], None]
) -> None:
    """Cells in processes of this machine.

    Raises:
        RuntimeError: If cells fail, after all others are done.
    """
    failed: list[str] = []
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=min(jobs, len(cells)),
        mp_context=multiprocessing.get_context("spawn"),  # JAX does not survive a fork
        initializer=_end_with,
        initargs=(os.getpid(),),
    ) as pool:
        futures = [pool.submit(_attempt, root, cell) for cell in cells]
        for future in concurrent.futures.as_completed(futures):
            failed += future.result()
            tick()
    _raise(failed, len(cells))


def through_submitit(
    cluster: str,
    jobs: int,
    parameters: Mapping[str, Any],
    root: pathlib.Path,
    cells: Sequence[Cell],
    tick: Callable[[], None],
) -> None:
    """Cells as tasks of submitit, an array of at most `jobs` at a time under Slurm.

    Raises:
        RuntimeError: If cells fail, after all others are done.
    """
    import submitit

    executor = submitit.AutoExecutor(folder=root / "submitit", cluster=cluster)
    limit = {"slurm_array_parallelism": jobs} if cluster == "slurm" else {}
    executor.update_parameters(**{"name": "jmpq-study", **limit, **parameters})
    failed: list[str] = []
    step = len(cells) if cluster == "slurm" else jobs  # the local executor has no limit
    for start in range(0, len(cells), step):
        part = cells[start : start + step]
        for task in executor.map_array(_attempt, [root] * len(part), part):
            failed += task.result()
            tick()
    _raise(failed, len(cells))


def _attempt(root: pathlib.Path, cell: Cell, reporter: Reporter = QUIET) -> list[str]:
    """Do a cell; what went wrong as a line, so that no other cell is kept from being done."""
    try:
        done(cell, root, reporter)
    except (ValueError, OSError, RuntimeError, ImportError, FloatingPointError) as error:
        return [f"{cell.folder(root).name}: {' '.join(str(error).split())}"]
    return []


def _raise(failed: Sequence[str], count: int) -> None:
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {count} cells failed, the first {failed[0]} What is done is "
            "kept: mend the study and run it again."
        )


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however it ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
