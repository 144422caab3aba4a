"""The command ``jmpq``.

What takes long to import is imported inside, where an interruption is one line.
"""

import contextlib
import functools
import io
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

DESCRIPTION = """Mixed-precision quantization: bits per layer with a proven bound.

Steps, in order: train (built-in networks), layers, sensitivity, solve, then if wanted race,
refine or floor, evaluate, if wanted finetune or export, report. Each writes one artifact into
the run folder and can be restarted there; demo runs them all on embedded data. Losses are mean
nats per example, sizes bytes (MB = 10^6). `jmpq --version` tells the version."""

STEPS = (
    "train",
    "layers",
    "sensitivity",
    "solve",
    "race",
    "refine",
    "floor",
    "evaluate",
    "finetune",
    "export",
    "report",
    "demo",
)


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
        print("jmpq: interrupted; the same command goes on from here.", file=sys.stderr)
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
        sys.exit(1)


def _run(args: list[str]) -> None:
    from jmpq.cli.arguments import check_arguments
    from jmpq.files import versions

    if args == ["--version"]:
        print(f"jmpq {versions()['jmpq']}")
        return
    check_arguments(args)
    _parsed(args)()


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
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(run / "compilations"))
        return functools.partial(step, run, *args, **options)

    return call
