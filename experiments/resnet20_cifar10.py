"""ResNet-20 on CIFAR-10 at the size and bit operations of uniform 4-bit.

Greedy and exact allocations by every metric against uniform, HAWQ-V2's trace, random and
reversed ones: predicted and measured loss and top-1, weights and activations searched. Once
with calibration examples from the training set (accuracy on all test images), once with
examples set aside from the test set (accuracy on the others).

Run:     python -m experiments.resnet20_cifar10 --data-dir DIR     (about 45 min on 2 cores)
Smoke:   python -m experiments.resnet20_cifar10 --smoke            (a minute, digits)
Writes:  experiments/results/resnet20_cifar10.json
Claims:  experiments/claims/choosing/resnet20_cifar10.py
"""

import dataclasses
import json
import os
import pathlib
from typing import Any, Literal

import tyro

from experiments.common.arguments import RESULTS, data_folder
from experiments.common.provenance import made_by
from jmpq import run as steps
from jmpq.run.folder import EVALUATION, PLAN, SENSITIVITY, WEIGHTS
from jmpq.sensitivity.metrics.by_name import MetricName

Source = Literal["train", "heldout"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        model: Built-in network.
        weights: Weights, below the data folder; None to train it first.
        data: Data set.
        sources: Sources of calibration examples, one run each.
        metrics: Metrics, the first leading.
        w_bits: Candidate bits of weights.
        a_bits: Candidate bits of activations.
        examples: Calibration examples.
        batch_size: Calibration examples per batch.
        budget: Budgets.
        random: Random baselines, one seed each.
        joint: Random joint allocations without budget (calibration examples only).
        sweep: Further budgets.
        epochs: Epochs of training where there are no weights.
        evaluation_examples: Evaluation examples; None for all.
        seed: Seed of calibration examples and random allocations.
    """

    model: str = "resnet20"
    weights: str | None = "cifar10/resnet20.safetensors"
    data: str = "cifar10"
    sources: tuple[Source, ...] = ("heldout", "train")
    metrics: tuple[MetricName, ...] = (
        "gauss_newton",
        "composed",
        "gauss_newton_difference",
        "empirical_fisher",
        "first_order",
        "hawq_trace",
        "squared_error",
    )
    w_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    a_bits: tuple[int, ...] = (4, 8)
    examples: int = 1024
    batch_size: int = 64
    budget: tuple[str, ...] = ("size_bytes=W4A4", "bops=W4A4")
    random: int = 10
    joint: int = 60
    sweep: int = 4
    epochs: int = 15
    evaluation_examples: int | None = None
    seed: int = 0


SMOKE = Config(
    model="digits_resnet",
    weights=None,
    data="digits",
    sources=("train",),
    metrics=("composed", "empirical_fisher"),
    w_bits=(2, 4, 8),
    examples=64,
    batch_size=32,
    random=2,
    joint=4,
    sweep=1,
    epochs=1,
    evaluation_examples=64,
)


def run(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """All runs of a configuration; interrupted, it goes on from what is in `folder`."""
    made = made_by("experiments.resnet20_cifar10", folder)
    result: dict[str, Any] = {
        "experiment": "resnet20_cifar10",
        "config": dataclasses.asdict(config),
        **made,
        "cores": os.cpu_count(),
        "runs": {},
    }
    for source in config.sources:
        here = folder / source
        weights = None
        if config.weights is None:
            train = steps.Train(model=config.model, data=config.data, epochs=config.epochs)
            steps.train(here, train, reporter=steps.TERMINAL)
            weights = here / WEIGHTS
        elif data_dir is not None:
            weights = data_dir / config.weights
        layers = steps.Layers(
            model=config.model, weights=weights, data=config.data, data_dir=data_dir
        )
        steps.layers(here, layers, reporter=steps.TERMINAL)
        sensitivity = steps.Sensitivity(
            metrics=config.metrics,
            traces="probes",
            w_bits=config.w_bits,
            a_bits=config.a_bits,
            calibration_from=source,
            examples=config.examples,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        steps.sensitivity(here, sensitivity, reporter=steps.TERMINAL)
        comparison = steps.Comparison(
            comparison="full",
            random=config.random,
            sweep=config.sweep,
            joint=config.joint,
            singles=False,
        )
        solve = steps.Solve(budget=config.budget, seed=config.seed, replace=True)
        steps.solve(here, solve, comparison=comparison, reporter=steps.TERMINAL)
        evaluate = steps.Evaluate(
            roles=("solution", "baseline", "sweep"),
            calibration_roles=("solution", "baseline", "sweep", "random", "single"),
            examples=config.evaluation_examples,
        )
        steps.evaluate(here, evaluate, reporter=steps.TERMINAL)
        result["runs"][source] = collect(here)
    return result


def collect(folder: pathlib.Path) -> dict[str, Any]:
    """What one run folder says: allocations with prediction beside measurement, timings."""
    from jmpq.run.folder import RunFolder
    from jmpq.sensitivity.table import load_sensitivities

    plan = json.loads((folder / PLAN).read_text())
    evaluation = json.loads((folder / EVALUATION).read_text())
    found = load_sensitivities(folder / SENSITIVITY)
    rows = [
        {**row, "measured": evaluation["measured"].get(row["name"], {})}
        for row in plan["allocations"]
    ]
    return {
        "weights_sha256": RunFolder(folder).layers.weights_sha256,
        "versions": evaluation["versions"],
        "device": evaluation["device"],
        "splits": evaluation["splits"],
        "float": evaluation["float"],
        "budgets": plan["budgets"],
        "rules": plan["rules"],
        "allocations": rows,
        "timing": {
            "evaluation": evaluation["timing"],
            "sensitivity": {
                name: {
                    "examples": int(s.batch_examples.sum()),
                    "seconds": s.provenance["seconds"],
                    "first_batch_seconds": next(iter(_batch_seconds(s)), None),
                    "seconds_per_further_batch": _mean(_batch_seconds(s)[1:]),
                }
                for name, s in found.items()
            },
        },
        "sensitivities": {
            name: {"unit": s.unit, "losses": s.losses.tolist(), "sem": s.sem.tolist()}
            for name, s in found.items()
        },
        "layers": plan["layers"],
        "choices": plan["choices"],
    }


def _batch_seconds(sensitivity: Any) -> list[float]:
    return list(sensitivity.provenance.get("batch_seconds", ()))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def main(
    smoke: bool = False,
    data_dir: pathlib.Path | None = None,
    folder: pathlib.Path = pathlib.Path("runs/resnet20_cifar10"),
    output: pathlib.Path = RESULTS / "resnet20_cifar10.json",
) -> None:
    """Run the experiment.

    Args:
        smoke: The same on a tiny configuration, with embedded data.
        data_dir: Folder with the data set and the weights.
        folder: Folder of the runs' artifacts.
        output: JSON file of the result.
    """
    from jmpq.files import write_json

    config = SMOKE if smoke else Config()
    result = run(config, folder, data_folder(data_dir, smoke))
    write_json(output, result)
    print(f"Wrote {output}")


if __name__ == "__main__":
    tyro.cli(main)
