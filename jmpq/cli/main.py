"""The command ``jmpq``."""

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tyro.extras import subcommand_cli_from_dict

from jmpq.cli import commands
from jmpq.files import versions

DESCRIPTION = """Mixed-precision quantization: bits per layer with a proven bound.

Steps, in order: train (built-in networks), layers, sensitivity, solve, then if wanted race,
refine or floor, evaluate, if wanted finetune, report. Each writes one artifact into the run
folder and can be restarted there; demo runs them all on embedded data. Losses are mean nats
per example, sizes bytes (MB = 10^6). `jmpq --version` tells the version."""

STEPS = (
    commands.train,
    commands.layers,
    commands.sensitivity,
    commands.solve,
    commands.race,
    commands.refine,
    commands.floor,
    commands.evaluate,
    commands.finetune,
    commands.report,
    commands.demo,
)


def main(args: Sequence[str] | None = None) -> None:
    """Run one step; errors are one line and exit code 1 (JMPQ_DEBUG=1: with traceback)."""
    args = sys.argv[1:] if args is None else list(args)
    if args == ["--version"]:
        print(f"jmpq {versions()['jmpq']}")
        return
    try:
        subcommand_cli_from_dict(
            {step.__name__: _keeping_compilations(step) for step in STEPS},
            prog="jmpq",
            description=DESCRIPTION,
            args=args,
        )
    except KeyboardInterrupt:
        print("jmpq: interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("JMPQ_DEBUG"):
            raise
        print(f"jmpq: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _keeping_compilations(step: Callable[..., None]) -> Callable[..., None]:
    """The step, its compiled programs kept in the run folder unless the user says where."""

    @functools.wraps(step)
    def keeping(run: pathlib.Path, *args: Any, **kwargs: Any) -> None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(run / "compilations"))
        step(run, *args, **kwargs)

    return keeping
