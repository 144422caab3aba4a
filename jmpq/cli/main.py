"""The command ``jmpq``."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from jmpq.cli.demo import Demo
from jmpq.cli.evaluate import Evaluate
from jmpq.cli.finetune import Finetune
from jmpq.cli.layers import Layers
from jmpq.cli.refine import Refine
from jmpq.cli.report import Report
from jmpq.cli.sensitivity import Sensitivity
from jmpq.cli.solve import Solve
from jmpq.cli.train import Train

DESCRIPTION = """Mixed-precision quantization: bits per layer with a proven bound.

Steps, in order: train (built-in networks), layers, sensitivity, solve, refine (if wanted),
evaluate, finetune (if wanted), report. Each writes one artifact into the run folder and can be
restarted there; demo runs them all on embedded data. Losses are mean nats per example, sizes
bytes (MB = 10^6)."""

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Layers, tyro.conf.subcommand("layers")]
    | Annotated[Sensitivity, tyro.conf.subcommand("sensitivity")]
    | Annotated[Solve, tyro.conf.subcommand("solve")]
    | Annotated[Refine, tyro.conf.subcommand("refine")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Finetune, tyro.conf.subcommand("finetune")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)


def main(args: Sequence[str] | None = None) -> None:
    """Run one step; errors are one line and exit code 1 (JMPQ_DEBUG=1: with traceback)."""
    _cache_compilations()
    command: Any = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="jmpq",
        description=DESCRIPTION,
        args=args,
    )
    try:
        command()
    except KeyboardInterrupt:
        print("jmpq: interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("JMPQ_DEBUG"):
            raise
        print(f"jmpq: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _cache_compilations() -> None:
    """Keep compiled programs between processes, unless the user decided otherwise."""
    folder = os.path.join(os.path.expanduser("~"), ".cache", "jmpq", "jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
