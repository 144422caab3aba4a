"""The command ``jmpq``.

What takes long to import is imported inside, where an interruption is one line.
"""

import contextlib
import functools
import io
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

DESCRIPTION = """Mixed-precision quantization: bits per layer with a proven bound.

Steps, in order: train (built-in networks), layers, sensitivity, solve, then if wanted race,
refine or floor, evaluate, if wanted finetune or export, report. latency comes before solve,
for budgets on it; instance writes the problems of a plan for other solvers. Each writes one
artifact into the run folder and can be restarted there; demo runs them all on embedded data,
study a grid of runs. Losses are mean nats per example, sizes bytes (MB = 10^6). `jmpq
--version` tells the version."""

STEPS = (
    "train",
    "layers",
    "sensitivity",
    "latency",
    "solve",
    "instance",
    "race",
    "refine",
    "floor",
    "evaluate",
    "finetune",
    "export",
    "report",
    "study",
    "demo",
)


class ArgumentError(ValueError):
    """Arguments that cannot be read, before any step is called."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one step.

    Errors are one line (JMPQ_DEBUG=1: with traceback), with exit code 2 if the arguments are
    at fault, else 1. Where nobody reads the output any more, as after ``| head``, the step
    ends as it does for other programs, with code 141.
    """
    try:
        _run(sys.argv[1:] if args is None else list(args))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("jmpq: interrupted; rerun the command to resume.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Python writes what is left when it ends, which would fail once more.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("JMPQ_DEBUG"):
            raise
        print(f"jmpq: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)


def _run(args: list[str]) -> None:
    from jmpq.cli.arguments import check_arguments
    from jmpq.files import versions

    if args == ["--version"]:
        print(f"jmpq {versions()['jmpq']}")
        return
    try:
        check_arguments(args)
        step = _parsed(args)
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    with warnings.catch_warnings():
        warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
        step()


def _show_warning(
    others: Callable[..., None], message: Warning | str, kind: type[Warning], *where: Any
) -> None:
    """A warning for people in one line; those for programmers as Python prints them."""
    if issubclass(kind, UserWarning):
        print(f"jmpq: {' '.join(str(message).split())}", file=sys.stderr)
    else:
        others(message, kind, *where)


def _parsed(args: list[str]) -> Callable[[], None]:
    """The call that the arguments ask for."""
    from tyro.extras import subcommand_cli_from_dict

    from jmpq.cli import commands
    from jmpq.cli.arguments import one_line

    steps = {name: _deferred(getattr(commands, name)) for name in STEPS}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return subcommand_cli_from_dict(
                steps, prog="jmpq", description=DESCRIPTION, args=args
            )
    except SystemExit as end:
        if end.code:
            step = f"{args[0]} " if args and args[0] in STEPS else ""
            line = one_line(said.getvalue())
            print(f"jmpq: {line} See `jmpq {step}--help`.", file=sys.stderr)
        raise


def _deferred(step: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The step with the same arguments, to be called later.

    Its compiled programs are kept in the run folder unless the user says where.
    """

    @functools.wraps(step)
    def call(run: pathlib.Path, *args: object, **options: object) -> Callable[[], None]:
        if step.__name__ != "study":  # which has a folder of its own
            from jmpq.run.lock import COMPILATIONS

            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(run / COMPILATIONS))
            # JAX keeps what took a second to compile; an evaluation has several smaller ones.
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        return functools.partial(step, run, *args, **options)

    return call
