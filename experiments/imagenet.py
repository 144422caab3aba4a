"""MobileNetV1 and SqueezeNet on ImageNet images, at the size of uniform 4 and 6 bits.

Post-training, weights alone, first and last layer at 8 bits: exact and greedy allocations by
every metric, HAWQ-V2's trace among them, beside uniform, reversed and random ones. The images
are one of each class, from the training set: a part calibrates, the rest measures, and what
counts is the difference to the float network (KL divergence, agreement), not top-1 as such.

Run:     python -m experiments.imagenet --data-dir DIR      (hours on 2 cores, resumable)
Smoke:   python -m experiments.imagenet --smoke             (a minute, digits)
Writes:  experiments/results/imagenet.json
Expect:  exact <= greedy in predicted loss; second-order metrics below uniform in KL
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import tyro

from experiments.provenance import commit
from experiments.resnet20_cifar10 import RESULTS
from jmpq.cli.evaluate import Evaluate
from jmpq.cli.layers import Layers
from jmpq.cli.run_folder import EVALUATION, LAYERS, PLAN, SENSITIVITY, WEIGHTS
from jmpq.cli.sensitivity import MetricName, Sensitivity
from jmpq.cli.solve import Solve
from jmpq.cli.train import Train


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        networks: Built-in networks and the files of their weights below the data folder; an
            empty name for weights that are trained here.
        data: Data set.
        metrics: Metrics, the first leading.
        class_samples: Random directions of the logits instead of all classes (gauss_newton);
            None for all.
        w_bits: Candidate bits of weights.
        budgets: Uniform bits whose size is the budget.
        examples: Calibration examples.
        batch_size: Calibration examples per batch.
        evaluation_batch: Evaluation examples per batch.
        memory: Most that a pass may take, as --memory.
        probes: Probes a batch of hawq_trace.
        random: Random allocations at each budget.
        epochs: Epochs of training where there are no weights.
        seed: Of calibration examples, samples and random allocations.
    """

    networks: tuple[tuple[str, str], ...] = (
        ("mobilenet_v1_0.75", "imagenet/mobilenet_v1_0.75_224.safetensors"),
        ("squeezenet1_1", "imagenet/squeezenet1_1.safetensors"),
    )
    data: str = "imagenet_sample"
    metrics: tuple[MetricName, ...] = ("gauss_newton", "empirical_fisher", "hawq_trace")
    class_samples: int | None = 8
    w_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    budgets: tuple[int, ...] = (4, 6)
    examples: int = 256
    batch_size: int = 32
    evaluation_batch: int = 124
    memory: str = "4GB"
    probes: int = 1
    random: int = 3
    epochs: int = 15
    seed: int = 0


SMOKE = Config(
    networks=(("digits_resnet", ""),),
    data="digits",
    w_bits=(2, 4, 8),
    budgets=(4,),
    class_samples=4,
    examples=32,
    batch_size=16,
    evaluation_batch=113,
    probes=1,
    random=2,
    epochs=1,
)


def run(
    config: Config,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    *,
    done: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """All networks; interrupted, it goes on from what is in `folder`.

    Args:
        config: What is run.
        folder: Where the artifacts of the runs are kept.
        data_dir: Folder with the images and the weights; None for embedded data.
        done: Called with the result so far after every network.
    """
    result: dict[str, Any] = {
        "experiment": "imagenet",
        "config": dataclasses.asdict(config),
        "commit": commit(),
        "cores": os.cpu_count(),
        "networks": {},
    }
    for name, file in config.networks:
        found = run_network(config, name, file, folder / name, data_dir)
        result["networks"][name] = found
        done(result)
    return result


def run_network(
    config: Config, name: str, file: str, folder: pathlib.Path, data_dir: pathlib.Path | None
) -> dict[str, Any]:
    """Sensitivities once, then a plan and its outcome at each budget."""
    weights = folder / WEIGHTS
    if file:
        assert data_dir is not None
        weights = data_dir / file
    elif not weights.is_file():
        Train(folder, model=name, data=config.data, epochs=config.epochs)()
    Layers(folder, name, weights, config.data, data_dir)()
    sensitivity = dataclasses.replace(
        Sensitivity(folder),
        metrics=config.metrics,
        class_samples=config.class_samples,
        w_bits=config.w_bits,
        a_bits=(32,),
        examples=config.examples,
        batch_size=config.batch_size,
        probes=config.probes,
        seed=config.seed,
        scale=dataclasses.replace(Sensitivity(folder).scale, memory=config.memory),
    )
    if not _done(folder / SENSITIVITY, sensitivity):
        sensitivity()
        _note(folder / SENSITIVITY, sensitivity)
    found: dict[str, Any] = {"budgets": {}}
    for number, bits in enumerate(config.budgets):
        here = folder / f"W{bits}"
        solve = Solve(
            here,
            budget=(f"size_bytes=W{bits}",),
            random=config.random,
            joint=0,
            singles=False,
            sweep=0,
            scaling=(),
            seed=config.seed,
        )
        if not _done(here / PLAN, (sensitivity, solve)):
            here.mkdir(exist_ok=True)
            for artifact in (LAYERS, SENSITIVITY, *([] if file else [WEIGHTS])):
                shutil.copy(folder / artifact, here)
            solve()
            _note(here / PLAN, (sensitivity, solve))
        evaluate = Evaluate(
            here,
            # uniform allocations are the same at every budget
            roles=("solution", "baseline") if number == 0 else ("solution",),
            calibration_roles=(),
            batch_size=config.evaluation_batch,
        )
        if not _done(here / EVALUATION, (sensitivity, solve, evaluate)):
            evaluate()
            _note(here / EVALUATION, (sensitivity, solve, evaluate))
        found |= _common(folder, here)
        found["budgets"][f"W{bits}"] = _outcome(here)
    return found


def _done(path: pathlib.Path, steps: Any) -> bool:
    """Whether an artifact is there and was made by the very same steps."""
    note = path.with_name(f".{path.name}.steps")
    return path.is_file() and note.is_file() and note.read_text() == repr(steps)


def _note(path: pathlib.Path, steps: Any) -> None:
    path.with_name(f".{path.name}.steps").write_text(repr(steps))


def _common(folder: pathlib.Path, here: pathlib.Path) -> dict[str, Any]:
    """What is the same at every budget."""
    import numpy as np

    from jmpq.sensitivity.result import load_sensitivities

    layers = json.loads((folder / LAYERS).read_text())
    evaluation = json.loads((here / EVALUATION).read_text())
    tables = load_sensitivities(folder / SENSITIVITY)
    sampling = {
        name: float(np.linalg.norm(table.sampling_sem) / np.linalg.norm(table.losses))
        for name, table in tables.items()
        if table.sampling_sem is not None
    }
    return {
        "layers": [layer["name"] for layer in layers["layers"]],
        "parameters": sum(x["parameters"] for x in layers["layers"])
        + layers["other_parameters"],
        "macs": sum(layer["macs"] for layer in layers["layers"]),
        "versions": evaluation["versions"],
        "device": evaluation["device"],
        "splits": evaluation["splits"],
        "float": evaluation["float"],
        "sampling_error": sampling,
        "seconds": {name: table.provenance["seconds"] for name, table in tables.items()},
    }


def _outcome(here: pathlib.Path) -> dict[str, Any]:
    """The allocations of one budget, prediction beside measurement."""
    plan = json.loads((here / PLAN).read_text())
    evaluation = json.loads((here / EVALUATION).read_text())
    rows = [
        {**row, "measured": evaluation["measured"][row["name"]]["evaluation"]}
        for row in plan["allocations"]
        if row["name"] in evaluation["measured"]
    ]
    return {
        "limits": plan["budgets"],
        "rules": plan["rules"],
        "allocations": rows,
        "seconds_per_allocation": evaluation["timing"]["evaluation"],
    }


def main(
    smoke: bool = False,
    data_dir: pathlib.Path = pathlib.Path("../shared/data"),
    folder: pathlib.Path = pathlib.Path("runs/imagenet"),
    output: pathlib.Path = RESULTS / "imagenet.json",
    examples: int | None = None,
) -> None:
    """Run the experiment.

    Args:
        smoke: The same on a tiny configuration, with embedded data.
        data_dir: Folder with the images and the weights.
        folder: Where the artifacts of the runs are kept.
        output: JSON file of the result.
        examples: Another number of calibration examples.
    """
    from jmpq.files import write_json

    config = SMOKE if smoke else Config()
    if examples is not None:
        config = dataclasses.replace(config, examples=examples)

    def keep(result: dict[str, Any]) -> None:
        write_json(output, result)
        print(f"Wrote {output}: {', '.join(result['networks'])}")

    run(config, folder, None if smoke else data_dir, done=keep)


if __name__ == "__main__":
    tyro.cli(main)
