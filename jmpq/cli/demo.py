"""`jmpq demo`: every step on the embedded data."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jmpq.cli.evaluate import Evaluate
from jmpq.cli.layers import Layers
from jmpq.cli.report import Report
from jmpq.cli.sensitivity import Sensitivity
from jmpq.cli.solve import Solve
from jmpq.cli.train import Train


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train a small residual network on handwritten digits, quantize it, and report."""

    run: Annotated[pathlib.Path, tyro.conf.Positional] = pathlib.Path("runs/demo")
    """Folder of the run."""
    epochs: int = 15
    """Passes over the training examples."""
    seed: int = 0
    """Of training, calibration examples and random allocations."""

    def __call__(self) -> None:
        everything = ("solution", "baseline", "sweep", "random", "single")
        steps = (
            Train(self.run, epochs=self.epochs, seed=self.seed),
            Layers(self.run, model="digits_resnet", data="digits"),
            Sensitivity(self.run, seed=self.seed),
            Solve(self.run, seed=self.seed),
            Evaluate(self.run, roles=everything),
            Report(self.run),
        )
        for number, step in enumerate(steps, start=1):
            print(f"\n[{number}/{len(steps)}] jmpq {type(step).__name__.lower()} {self.run}")
            step()
        print(f"\nThe report is at {(self.run / 'report.html').resolve()}")
