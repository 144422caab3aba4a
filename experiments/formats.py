"""Does mixing number formats pay? Integers, floats and all, at equal effective bits.

Kernels of ResNet-20 and a small vision transformer (CIFAR-10), a Llama-type decoder
(stories260K), EfficientNet-Lite0 (ImageNet images) and MiniLM (STS-B) take integers with a
scale a channel or a group, small floats, Microscaling formats and NVFP4; inputs stay float.
Candidates are the integers, the floats, or all; budgets are effective bits, scales included.
Exact, greedy and reversed allocations by Gauss-Newton beside every uniform format: KL
divergence, accuracy and loss (perplexity is its exponential), and which formats were chosen.
MiniLM has no classes: its loss is ½(similarity − that of the float network)², the KL
divergence of normal distributions of unit variance, and its accuracy the rank correlation with
people's scores. All layers are searched, first and last too; kernels are rounded to nearest.

Run:     python -m experiments.formats --data-dir DIR    (2 h on a core, resumable)
         --networks resnet20 replaces its part of the result alone
Smoke:   python -m experiments.formats --smoke           (a minute, digits)
Writes:  experiments/results/formats.json
Claims:  experiments/claims/formats/kernels.py
"""

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from experiments.common.arguments import NetworksArguments
from experiments.common.networks import Subject, weights_file
from experiments.common.provenance import machine, made_by, versions
from jmpq.allocation import Allocation
from jmpq.files import write_json
from jmpq.formats import Choice, choice_grid
from jmpq.run.folder import WEIGHTS
from jmpq.run.options import Evaluate, Layers, Sensitivity, Train

if TYPE_CHECKING:
    from jmpq.network.layers import Layer
    from jmpq.quantizers.spec import KernelSpec
    from jmpq.sensitivity.table import Sensitivity as SensitivityTable

MINILM = "minilm_l6"
INTEGERS = ("int2", "int3", "int4", "int6", "int8", "int3_g64", "int4_g64")
FLOATS = ("fp4_e2m1", "mxfp4", "nvfp4", "fp6_e2m3", "fp6_e3m2", "mxfp6_e2m3", "fp8_e4m3")
SETS = {"integers": INTEGERS, "floats": FLOATS, "all": (*INTEGERS, *FLOATS)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        subjects: The networks.
        budgets: Effective bits of the kernels.
        draws: Seeds of the calibration examples.
        epochs: Epochs of training where there are no weights.
    """

    subjects: tuple[Subject, ...] = (
        Subject(
            "resnet20", "cifar10/resnet20.safetensors", "cifar10", examples=256, batch_size=64,
            evaluation=2000,
        ),
        Subject(
            "stories260k", "tinystories/stories260K.safetensors", "text",
            "tinystories/stories.txt", examples=64, batch_size=16, evaluation=256,
            class_samples=8,
        ),
        Subject(
            "efficientnet_lite0", "imagenet/efficientnet_lite0.safetensors",
            "imagenet_sample", "imagenet", examples=32, batch_size=8, evaluation=64,
            class_samples=8,
        ),
        Subject(
            MINILM, None, "stsb", "glue/stsb", examples=32, batch_size=16, evaluation=512,
        ),
        Subject(
            "vit_cifar", "vit_cifar.safetensors", "cifar10", examples=256, batch_size=64,
            evaluation=1000,
        ),
    )  # fmt: skip
    budgets: tuple[float, ...] = (3.0, 3.5, 4.25, 4.5, 6.0, 8.0)
    draws: tuple[int, ...] = (0, 1, 2)
    epochs: int = 15


SMOKE = Config(
    subjects=(Subject("digits_resnet", None, "digits", examples=32, evaluation=100),),
    budgets=(3.0, 4.5),
    draws=(0,),
    epochs=1,
)


def run(
    config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None, output: pathlib.Path
) -> dict[str, Any]:
    """All networks and draws, written after each; finished ones are kept in `folder`.

    Cells of other networks that `output` holds, made with the same budgets, stay in it.
    """
    result: dict[str, Any] = {
        "experiment": "formats",
        "config": dataclasses.asdict(config),
        "candidates": SETS,
        "versions": versions("jax", "jaxlib", "flax", "numpy", "highspy", "ml_dtypes"),
        "cells": {},
    }
    result = with_others(json.loads(json.dumps(result)), output)
    for draw in config.draws:
        for subject in config.subjects:
            name = f"{subject.model}/{draw}"
            asked = {"config": dataclasses.asdict(config), "candidates": SETS}
            asked["config"] |= {"draws": [], "subjects": [dataclasses.asdict(subject)]}
            asked = json.loads(json.dumps(asked))
            kept = folder / name / "cell.json"
            cell = json.loads(kept.read_text()) if kept.is_file() else {}
            if cell.get("asked") != asked:
                cell = {"asked": asked} | run_cell(config, subject, draw, kept.parent, data_dir)
                write_json(kept, cell)
            result["cells"][name] = {k: v for k, v in cell.items() if k != "asked"}
            write_json(output, result)
            print(f"Wrote {output}: {name}", flush=True)
    return result


def with_others(result: dict[str, Any], output: pathlib.Path) -> dict[str, Any]:
    """The result with the networks that a file has and this run does not make."""
    old = json.loads(output.read_text()) if output.is_file() else {"config": {}}
    alike = [*result["config"], "candidates"]
    alike.remove("subjects")
    if any({**result, **result["config"]}[k] != {**old, **old["config"]}.get(k) for k in alike):
        return result
    own = {subject["model"] for subject in result["config"]["subjects"]}
    others = [s for s in old["config"]["subjects"] if s["model"] not in own]
    config = result["config"] | {"subjects": [*others, *result["config"]["subjects"]]}
    cells = {k: v for k, v in old["cells"].items() if k.split("/")[0] not in own}
    return {**result, "config": config, "cells": cells}


def run_cell(
    config: Config,
    subject: Subject,
    draw: int,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
) -> dict[str, Any]:
    """One network and draw: sensitivities of all formats, then allocations, measured."""
    make = _sentences if subject.model == MINILM else _built_in
    made = made_by("experiments.formats", folder)
    return {**made, "machine": machine()} | make(config, subject, draw, folder, data_dir)


def _built_in(
    config: Config,
    subject: Subject,
    draw: int,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
) -> dict[str, Any]:
    """A cell of a built-in network, by the steps of `jmpq.run`."""
    from jmpq import run as steps
    from jmpq.run.folder import RunFolder

    weights = folder / WEIGHTS
    if subject.weights is not None:
        weights = weights_file(subject.weights, data_dir)
    elif not weights.is_file():
        steps.train(folder, Train(model=subject.model, data=subject.data, epochs=config.epochs))
    data = None if data_dir is None else data_dir / (subject.data_dir or subject.data)
    steps.layers(
        folder,
        Layers(model=subject.model, weights=weights, data=subject.data, data_dir=data),
    )
    steps.sensitivity(
        folder,
        Sensitivity(
            metrics=("gauss_newton",),
            class_samples=subject.class_samples,
            w_formats=SETS["all"],
            a_formats=("none",),
            examples=subject.examples,
            batch_size=subject.batch_size,
            seed=draw,
        ),
        reporter=steps.TERMINAL,
    )
    opened = RunFolder(folder)
    rows = _allocations(
        config,
        opened.layers.layers,
        opened.sensitivities.tables["gauss_newton"],
        opened.sensitivities.kernels,
        opened.layers.other_parameters,
    )
    found = [Allocation.from_json(row["allocation"]) for row in rows if row["allocation"]]
    options = Evaluate(examples=subject.evaluation, batch_size=64)
    measured = steps.measure(folder, found, options, reporter=steps.TERMINAL)
    return {
        "weights_sha256": opened.layers.weights_sha256,
        "float": measured.float_outcome.to_json(),
        "examples_sha256": measured.examples_sha256,
        "rows": _with_outcomes(rows, measured.outcomes),
    }


def _sentences(
    config: Config,
    subject: Subject,
    draw: int,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
) -> dict[str, Any]:
    """The cell of MiniLM, whose output is a similarity of two sentences."""
    from experiments.bert import minilm
    from jmpq.data.batches import batches
    from jmpq.deploy.similarity import SimilarityEvaluator
    from jmpq.quantizers.calibrate import calibrate_weights
    from jmpq.quantizers.scales import Quantizers
    from jmpq.quantizers.spec import KernelSpec
    from jmpq.sensitivity.analyse import analyse
    from jmpq.sensitivity.metrics.taylor import GaussNewton
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.training.losses import squared_error

    pairs = minilm.Config(examples=subject.examples, evaluation=subject.evaluation, seed=draw)
    setting = minilm.load(pairs, data_dir)
    network, choices = setting.network, choice_grid(SETS["all"])
    spec, schemes = KernelSpec(), [choice.weights.number for choice in choices]
    quantizers = Quantizers(weights=calibrate_weights(network, spec, schemes), activations=None)
    examples = batches(setting.calibration, subject.batch_size, last="keep")
    table = analyse(
        MoveNetwork(network=network, quantizers=quantizers),
        GaussNewton(loss=squared_error),
        [(b.inputs, b.labels) for b in examples],
        choices,
    )
    rows = _allocations(config, network.layers, table, spec, network.other_parameters)
    evaluator = SimilarityEvaluator(
        network, quantizers, lambda: batches(setting.evaluation, subject.batch_size)
    )
    outcomes = {}
    for row in rows:
        label = json.dumps(row["allocation"])
        if row["allocation"] and label not in outcomes:
            allocation = Allocation.from_json(row["allocation"])
            (outcomes[label],) = evaluator([allocation])
            print(f"{len(outcomes)} allocations of {subject.model} measured", flush=True)
    found = [outcomes[json.dumps(row["allocation"])] for row in rows if row["allocation"]]
    return {
        "float": evaluator.float_outcome().to_json(),
        "examples_sha256": setting.evaluation.sha256,
        "rows": _with_outcomes(rows, found),
    }


def _with_outcomes(rows: list[dict[str, Any]], found: Iterable[Any]) -> list[dict[str, Any]]:
    """The rows with the outcomes of those that have an allocation, in their order."""
    outcomes = iter(found)
    return [
        row | {"measured": next(outcomes).to_json() if row["allocation"] else None}
        for row in rows
    ]


def _allocations(
    config: Config,
    layers: "Sequence[Layer]",
    table: "SensitivityTable",
    kernels: "KernelSpec",
    other_parameters: int,
) -> list[dict[str, Any]]:
    """Every uniform format, and what the solvers choose for every set and budget."""
    from jmpq.problem import Infeasible, Overhead, build_problem, with_budgets
    from jmpq.solvers import Exact, Greedy
    from jmpq.solvers.knapsack.baselines import reversed_search

    overhead = Overhead.of(layers, kernels)
    rows = []
    solvers: Mapping[str, Any] = {
        "exact": Exact(), "greedy": Greedy(), "reversed": reversed_search
    }  # fmt: skip
    for name, formats in SETS.items():
        problem = build_problem(
            layers,
            table,
            overhead=overhead,
            choices=choice_grid(formats),
            unquantized_parameters=other_parameters,
        )
        if name == "all":
            for choice in problem.choices:
                columns = problem.uniform(choice)
                loss, costs = problem.evaluate(columns)
                made = problem.allocation(columns), loss, costs, None
                rows.append(_row(name, None, f"uniform {choice.weights.name}", layers, *made))
        for bits in config.budgets:
            here = with_budgets(problem, {"average_bits": bits})
            for solver, solve in solvers.items():
                try:
                    best = solve(here)
                except Infeasible as error:
                    made = None, None, {}, str(error)
                else:
                    made = best.allocation, best.loss, best.costs, best.status
                rows.append(_row(name, bits, solver, layers, *made))
    return rows


def _row(
    candidates: str,
    bits: float | None,
    solver: str,
    layers: Any,
    allocation: Allocation | None,
    loss: float | None,
    costs: Mapping[str, float],
    status: str | None,
) -> dict[str, Any]:
    """One allocation as JSON; where there is none, the reason is its status."""
    weights: Counter[str] = Counter()
    for layer in layers:
        choice = (allocation or {}).get(layer.name, Choice("none"))
        weights[choice.weights.name] += layer.parameters
    total = sum(weights.values())
    return {
        "candidates": candidates,
        "effective_bits": bits,
        "solver": solver,
        "status": status,
        "predicted_loss": loss,
        "costs": dict(costs),
        "shares": {k: n / total for k, n in weights.items()} if allocation else {},
        "allocation": None if allocation is None else allocation.to_json(),
    }


def chosen(result: Mapping[str, Any], model: str, candidates: str, bits: float) -> list[Any]:
    """Rows of the exact allocations of a network, set and budget, one for each draw."""
    return [
        row
        for name, cell in result["cells"].items()
        for row in cell["rows"]
        if name.split("/")[0] == model
        and (row["candidates"], row["effective_bits"]) == (candidates, bits)
        and row["solver"] == "exact"
    ]


def mean_of(rows: list[Any], name: str) -> tuple[float, float]:
    """Mean over draws of a measurement, and its standard error."""
    values = np.array([row["measured"][name] for row in rows])
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


@dataclasses.dataclass(frozen=True)
class FormatsArguments(NetworksArguments):
    """Compare number formats. Networks that are in the file of the result and are not run
    stay there.
    """  # noqa: D205

    def config(self) -> Config:
        """What is run.

        Raises:
            ValueError: If there is no such network.
        """
        config = SMOKE if self.smoke else Config()
        chosen = self.chosen({subject.model: subject for subject in config.subjects})
        return dataclasses.replace(config, subjects=chosen)


def main() -> None:
    """Run, and write the result after every cell."""
    given = tyro.cli(FormatsArguments, description=__doc__)
    run(given.config(), given.work("formats"), given.data(), given.result("formats"))


if __name__ == "__main__":
    main()
