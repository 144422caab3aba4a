"""MobileNetV1 and SqueezeNet on ImageNet images, at the size of uniform 4 and 6 bits.

Post-training, weights alone, first and last layer at 8 bits: exact and greedy allocations by
every metric, HAWQ-V2's trace among them, beside uniform, reversed and random ones. The images
are one of each class, from the training set: a part calibrates, the rest measures, and what
counts is the difference to the float network (KL divergence, agreement), not top-1 as such.

Run:     python -m experiments.imagenet --data-dir DIR      (hours on 2 cores, resumable)
         --networks squeezenet1_1, and --rounding gptq, replace their part of the result alone
Smoke:   python -m experiments.imagenet --smoke             (a minute, digits)
Writes:  experiments/results/imagenet.json
Claims:  experiments/claims/imagenet.py
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tyro

from experiments.common.arguments import NetworksArguments
from experiments.common.provenance import machine, made_by
from experiments.common.steps import Step
from jmpq.quantizers.spec import KernelSpec, Rounding
from jmpq.run.folder import EVALUATION, LAYERS, PLAN, SENSITIVITY, WEIGHTS, RunFolder
from jmpq.run.options import (
    Comparison,
    Compute,
    Evaluate,
    Layers,
    Sensitivity,
    Solve,
    Train,
)
from jmpq.sensitivity.metrics.by_name import MetricName


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
        probes: Probes a batch of hawq_trace; three take about as long as gauss_newton.
        rounding: Rounding of weights.
        random: Random allocations at each budget.
        epochs: Epochs of training where there are no weights.
        seed: Seed of calibration examples, samples and random allocations.
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
    probes: int = 3
    rounding: Rounding = "nearest"
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
        config: Configuration that is run.
        folder: Folder of the runs' artifacts.
        data_dir: Folder with the images and the weights; None for embedded data.
        done: Callback, called with the result so far after every network.

    Returns:
        The result: networks by name, those that are not rounded to nearest by name and
        rounding, as ``squeezenet1_1/gptq``.
    """
    result: dict[str, Any] = {"experiment": "imagenet", "networks": {}}
    for name, file in config.networks:
        key = name if config.rounding == "nearest" else f"{name}/{config.rounding}"
        origin = {
            "config": dataclasses.asdict(config) | {"networks": [[name, file]]},
            **made_by("experiments.imagenet", folder / key),
            "machine": machine(),
        }
        result["networks"][key] = origin | run_network(
            config, name, file, folder / key, data_dir
        )
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
        Step("train", folder, Train(model=name, data=config.data, epochs=config.epochs))()
    layers = Layers(model=name, weights=weights, data=config.data, data_dir=data_dir)
    Step("layers", folder, layers)()
    sensitivity = Step(
        "sensitivity",
        folder,
        Sensitivity(
            metrics=config.metrics,
            class_samples=config.class_samples,
            w_bits=config.w_bits,
            a_bits=(32,),
            examples=config.examples,
            batch_size=config.batch_size,
            probes=config.probes,
            seed=config.seed,
            weights=KernelSpec(rounding=config.rounding),
        ),
        {"compute": Compute(memory=config.memory)},
    )
    if not _done(folder / SENSITIVITY, sensitivity):
        sensitivity()
        _note(folder / SENSITIVITY, sensitivity)
    found: dict[str, Any] = {"budgets": {}}
    if file:
        assert data_dir is not None
        found["reference_error"] = reference_error(folder, data_dir / file)
    for number, bits in enumerate(config.budgets):
        here = folder / f"W{bits}"
        solve = Step(
            "solve",
            here,
            Solve(budget=(f"size_bytes=W{bits}",), seed=config.seed, replace=True),
            {"comparison": Comparison(random=config.random)},
        )
        if not _done(here / PLAN, (sensitivity, solve)):
            here.mkdir(exist_ok=True)
            for artifact in (LAYERS, SENSITIVITY, *([] if file else [WEIGHTS])):
                shutil.copy(folder / artifact, here)
            solve()
            _note(here / PLAN, (sensitivity, solve))
        evaluate = Step(
            "evaluate",
            here,
            Evaluate(
                # uniform allocations are the same at every budget
                roles=("solution", "baseline") if number == 0 else ("solution",),
                calibration_roles=(),
                batch_size=config.evaluation_batch,
            ),
        )
        if not _done(here / EVALUATION, (sensitivity, solve, evaluate)):
            evaluate()
            _note(here / EVALUATION, (sensitivity, solve, evaluate))
        if number == 0:
            found |= _common(folder, here)
        found["budgets"][f"W{bits}"] = _outcome(here)
    return found


def _done(path: pathlib.Path, steps: Any) -> bool:
    """Whether an artifact is there and was made by the very same steps."""
    note = path.with_name(f".{path.name}.steps")
    return path.is_file() and note.is_file() and note.read_text() == repr(steps)


def _note(path: pathlib.Path, steps: Any) -> None:
    path.with_name(f".{path.name}.steps").write_text(repr(steps))


def reference_error(folder: pathlib.Path, weights: pathlib.Path) -> dict[str, Any]:
    """Distance to the logits that came with the weights, relative to their norm.

    Args:
        folder: Run folder with the layer table.
        weights: File of the weights; beside it ``reference_logits.npz``, by the weights' name.

    Returns:
        Number of images, and the largest ‖z − reference‖ / ‖reference‖ among them.
    """
    import numpy as np

    from jmpq.run import network_of
    from jmpq.training.evaluate import logits

    wanted = np.load(weights.with_name("reference_logits.npz"))[weights.stem]
    network, dataset = network_of(RunFolder(folder))
    first = dataset.heldout.take(np.arange(len(wanted)))
    found = logits(network.apply, network.params, first, batch_size=16)
    norm = np.linalg.norm(wanted, axis=1)
    errors = np.linalg.norm(found - wanted, axis=1) / norm
    return {"images": len(wanted), "largest": float(errors.max())}


def whole(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Top-1 and top-5 of the float network on all examples, from those of its parts."""
    parts = list(parts)
    examples = sum(part["examples"] for part in parts)
    top1, top5 = (
        sum(part[key] * part["examples"] for part in parts) / examples
        for key in ("top1", "top5")
    )
    return {"examples": examples, "top1": top1, "top5": top5}


def _common(folder: pathlib.Path, here: pathlib.Path) -> dict[str, Any]:
    """What is the same at every budget."""
    import numpy as np

    from jmpq.sensitivity.table import load_sensitivities

    layers = json.loads((folder / LAYERS).read_text())
    evaluation = json.loads((here / EVALUATION).read_text())
    tables = load_sensitivities(folder / SENSITIVITY)
    sampling = {
        name: float(np.linalg.norm(table.sampling_sem) / np.linalg.norm(table.losses))
        for name, table in tables.items()
        if table.sampling_sem is not None
    }
    return {
        "weights_sha256": layers["weights_sha256"],
        "layers": [layer["name"] for layer in layers["layers"]],
        "parameters": sum(x["parameters"] for x in layers["layers"])
        + layers["other_parameters"],
        "macs": sum(layer["macs"] for layer in layers["layers"]),
        "versions": evaluation["versions"],
        "device": evaluation["device"],
        "splits": evaluation["splits"],
        "float": evaluation["float"],
        "whole": whole(evaluation["float"].values()),
        "sampling_error": sampling,
        # whose estimate is negative: no Gauss-Newton block has a negative trace
        "negative_layers": {
            name: [
                layer
                for layer, losses in zip(table.layers, table.losses, strict=True)
                if (losses < 0).any()
            ]
            for name, table in tables.items()
        },
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


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The result with the networks of another one, new ones in the place of old."""
    return {**new, "networks": old.get("networks", {}) | new["networks"]}


@dataclasses.dataclass(frozen=True)
class ImagenetArguments(NetworksArguments):
    """Allocate bits to ImageNet networks and measure the outcome. Networks that are in the
    file of the result and are not run stay there.
    """  # noqa: D205

    rounding: Rounding = "nearest"
    """How weights are rounded; every one has a table of its own."""
    examples: int | None = None
    """Another number of calibration examples."""

    def config(self) -> Config:
        """What is run.

        Raises:
            ValueError: If there is no such network.
        """
        config = dataclasses.replace(SMOKE if self.smoke else Config(), rounding=self.rounding)
        if self.examples is not None:
            config = dataclasses.replace(config, examples=self.examples)
        chosen = self.chosen({network[0]: network for network in config.networks})
        return dataclasses.replace(config, networks=chosen)


def main() -> None:
    """Run, and write the result after every network."""
    from jmpq.files import write_json

    given = tyro.cli(ImagenetArguments, description=__doc__)
    config, output = given.config(), given.result("imagenet")

    def keep(result: dict[str, Any]) -> None:
        old = json.loads(output.read_text()) if output.is_file() else {}
        write_json(output, merged(old, result))
        print(f"Wrote {output}: {', '.join(result['networks'])}")

    run(config, given.work("imagenet"), given.data(), done=keep)


if __name__ == "__main__":
    main()
