"""The command line as a user has it, in this process or in one of its own."""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

import jax

from jmpq.cli.main import main

ROOT = pathlib.Path(__file__).parents[2]
# Interruptible even where the tests run in the background, with interrupts ignored.
MAIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from jmpq.cli.main import main; main()"
)
TINY = ("--model", "tests.cli.networks:tiny", "--data", "digits")
FEW = (
    "--w-bits",
    "2",
    "4",
    "8",
    "--a-bits",
    "4",
    "8",
    "--examples",
    "40",
    "--batch-size",
    "16",
)
EVERY = (
    "--roles",
    "solution",
    "baseline",
    "sweep",
    "--calibration-roles",
    "solution",
    "baseline",
    "sweep",
    "random",
    "single",
)
SMALL = ("--comparison", "full", "--random", "2", "--joint", "3", "--sweep", "2")


@dataclasses.dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def jmpq(*args) -> Result:
    """A step in this process, under the settings users have instead of the tests'."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        try:
            main([str(arg) for arg in args])
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def works(*args) -> Result:
    result = jmpq(*args)
    assert result.code == 0, result.err
    return result


def process(*args, code: str = MAIN, environment: Mapping[str, str] = {}) -> subprocess.Popen:
    """A step in a process of its own, started in the repository."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen) -> Result:
    out, err = child.communicate(timeout=120)
    return Result(child.returncode, out, err)


def contents(folder: pathlib.Path) -> dict[str, tuple[int, str]]:
    """Every file and folder below, hidden ones too: time of the last change and hash."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def opened(path):
    """Network and data set of a run folder, as the command line opens it."""
    from jmpq.run import RunFolder, network_of

    with jax.enable_x64(False):
        return network_of(RunFolder(path))
