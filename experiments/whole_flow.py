"""The whole flow on other kinds of networks: a decoder, EfficientNet-Lite0 and a small ViT.

Weights of 2, 3, 4, 6 and 8 bits at the size of uniform 3, 4 and 6 bits, with inputs at 8 bits
and with float ones; kernels rounded to nearest and by GPTQ; several draws of calibration
examples. Exact and greedy allocations by Gauss-Newton and by HAWQ-V2's traces beside
uniform, reversed and random ones: predicted and measured KL divergence and loss (perplexity is
its exponential), and what every step takes in memory, each in a process of its own.

Run:     python -m experiments.whole_flow --data-dir DIR    (hours on 2 cores, resumable)
         --networks stories260k --draws 0 1 replace their part of the result alone
Smoke:   python -m experiments.whole_flow --smoke           (a minute, digits)
Writes:  experiments/results/whole_flow.json
Claims:  experiments/claims/choosing/whole_flow.py
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import pathlib
import re
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tyro

from experiments.common.arguments import NetworksArguments
from experiments.common.networks import Subject, weights_file
from experiments.common.provenance import machine, made_by
from experiments.common.steps import Step
from jmpq.files import write_json
from jmpq.quantizers.spec import KernelSpec, Rounding
from jmpq.run.folder import WEIGHTS, RunFolder
from jmpq.run.options import Comparison, Evaluate, Layers, Sensitivity, Solve, Train
from jmpq.sensitivity.metrics.by_name import MetricName

FLOAT = 32  # bits of inputs that are not quantized
PROCESSES = multiprocessing.get_context("spawn")  # nothing of the parent is inherited


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        subjects: The networks.
        metrics: Metrics, the first leading.
        w_bits: Candidate bits of kernels.
        a_bits: Candidate bits of inputs, beside float ones.
        budgets: Uniform bits whose size is the budget.
        roundings: Roundings of kernels.
        draws: Seeds of the calibration examples and of random allocations.
        random: Random allocations at each budget.
        epochs: Epochs of training where there are no weights.
    """

    subjects: tuple[Subject, ...] = (
        Subject(
            model="stories260k",
            weights="tinystories/stories260K.safetensors",
            data="text",
            data_dir="tinystories/stories.txt",
            evaluation=64,
            class_samples=8,
        ),
        Subject(
            model="efficientnet_lite0",
            weights="imagenet/efficientnet_lite0.safetensors",
            data="imagenet_sample",
            data_dir="imagenet",
            examples=32,
            batch_size=8,
            evaluation=100,
            class_samples=8,
            probes=3,
        ),
        Subject(
            model="vit_cifar",
            weights="vit_cifar.safetensors",
            data="cifar10",
            data_dir="cifar10",
            examples=128,
            batch_size=64,
            evaluation=500,
        ),
    )
    metrics: tuple[MetricName, ...] = ("gauss_newton", "hawq_trace")
    w_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    a_bits: int = 8
    budgets: tuple[int, ...] = (3, 4, 6)
    roundings: tuple[Rounding, ...] = ("nearest", "gptq")
    draws: tuple[int, ...] = (0, 1, 2)
    random: int = 3
    epochs: int = 15


SMOKE = Config(
    subjects=(Subject("digits_resnet", None, "digits", examples=32, evaluation=100, probes=1),),
    w_bits=(2, 4, 8),
    budgets=(4,),
    roundings=("nearest",),
    draws=(0,),
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
    """All networks, draws and roundings; if interrupted, it resumes from `folder`.

    Args:
        config: Configuration that is run.
        folder: Folder of the runs.
        data_dir: Folder with the data and the weights; None for embedded data.
        done: Callback, called with the result so far after every cell.

    Returns:
        The result: cells by network, rounding and draw.
    """
    result: dict[str, Any] = {"experiment": "whole_flow", "cells": {}}
    for draw in config.draws:
        for subject in config.subjects:
            for rounding in config.roundings:
                name = f"{subject.model}/{rounding}/{draw}"
                path = folder / name / "cell.json"
                asked = json.loads(json.dumps(_asked(config, subject)))
                cell = json.loads(path.read_text()) if path.is_file() else {}
                if cell.get("asked") != asked:
                    cell = run_cell(config, subject, rounding, draw, path.parent, data_dir)
                    write_json(path, cell)
                result["cells"][name] = cell
                done(result)
    return result


def _asked(config: Config, subject: Subject) -> dict[str, Any]:
    """What decides a cell, besides its rounding and draw."""
    whole = dataclasses.asdict(config)
    left_out = ("subjects", "roundings", "draws")
    return {k: v for k, v in whole.items() if k not in left_out} | dataclasses.asdict(subject)


def run_cell(
    config: Config,
    subject: Subject,
    rounding: Rounding,
    draw: int,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
) -> dict[str, Any]:
    """One network, rounding and draw: sensitivities once, a plan for each budget and inputs."""
    made = made_by("experiments.whole_flow", folder)
    memory: dict[str, int] = {}

    def step(name: str, options: Any, **others: Any) -> None:
        peak = peak_bytes(Step(name, folder, options, others))
        memory[name] = max(memory.get(name, 0), peak)

    weights = folder / WEIGHTS
    if subject.weights is not None:
        weights = weights_file(subject.weights, data_dir)
    elif not weights.is_file():
        step("train", Train(model=subject.model, data=subject.data, epochs=config.epochs))
    data = None if data_dir is None else data_dir / subject.data_dir
    step(
        "layers",
        Layers(model=subject.model, weights=weights, data=subject.data, data_dir=data),
    )
    step(
        "sensitivity",
        Sensitivity(
            metrics=config.metrics,
            class_samples=subject.class_samples,
            probes=subject.probes,
            w_bits=config.w_bits,
            a_bits=(config.a_bits, FLOAT),
            examples=subject.examples,
            batch_size=subject.batch_size,
            seed=draw,
            weights=KernelSpec(rounding=rounding),
        ),
    )
    names = RunFolder(folder).layers.names
    ends = [re.escape(name) for name in dict.fromkeys((names[0], names[-1]))]
    rows, name = [], None
    for budget in config.budgets:
        for a_bits in (config.a_bits, FLOAT):
            inputs = "" if a_bits == FLOAT else f"A{a_bits}"
            name = f"W{budget}{inputs}"
            allowed = ",".join(f"W{bits}{inputs}" for bits in config.w_bits)
            step(
                "solve",
                Solve(
                    name=name,
                    replace=True,
                    budget=(f"size_bytes=W{budget}",),
                    rule=(*(f"pin {end}=W8{inputs}" for end in ends), f"allow .*={allowed}"),
                    first_last_bits=0,  # they are pinned above, to the inputs of the others
                    seed=draw,
                ),
                comparison=Comparison(random=config.random),
            )
            step(
                "evaluate",
                Evaluate(
                    plan=name,
                    roles=("solution", "baseline"),
                    calibration_roles=("solution", "baseline"),
                    examples=subject.evaluation,
                    batch_size=50,
                ),
            )
            rows += _rows(folder, name, budget, inputs)
    evaluation = RunFolder(folder, plan=name).evaluation
    tables = RunFolder(folder).sensitivities.tables
    return {
        "asked": _asked(config, subject),
        **made,
        "weights_sha256": RunFolder(folder).layers.weights_sha256,
        "machine": machine(),
        "versions": dict(evaluation.versions),
        "splits": {name: dict(split) for name, split in evaluation.splits.items()},
        "float": {name: dict(values) for name, values in evaluation.float.items()},
        "memory_bytes": memory,
        "seconds": {name: table.provenance["seconds"] for name, table in tables.items()},
        "allocations": rows,
    }


def _rows(folder: pathlib.Path, plan: str, budget: int, inputs: str) -> list[dict[str, Any]]:
    """The allocations of one plan, prediction beside measurement; uniform ones of its size."""
    run = RunFolder(folder, plan=plan)
    measured = run.evaluation.measured
    other = re.compile(rf"uniform/(?!W{budget}{inputs}$)")
    return [
        {
            "budget": budget,
            "inputs": inputs,
            "name": each.name,
            "role": each.role,
            "metric": each.metric,
            "predicted_loss": each.predicted_loss,
            "bound": each.bound,
            "predictions": dict(each.predictions),
            "costs": dict(each.costs),
            "measured": measured[each.name],
        }
        for each in run.plan.allocations
        if each.name in measured and not other.match(each.name)
    ]


def peak_bytes(step: Step) -> int:
    """Run a step in a process of its own; return the most memory that was resident there.

    The process starts anew, so that nothing of an earlier step is counted.
    """
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
        return pool.submit(_measured, step).result()


def _measured(step: Step) -> int:
    step()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The result with the cells of another one, new ones in the place of old."""
    return {**new, "cells": old.get("cells", {}) | new["cells"]}


@dataclasses.dataclass(frozen=True)
class WholeFlowArguments(NetworksArguments):
    """Allocate bits to networks of other kinds and measure the outcome. Cells that are in the
    file of the result and are not run stay there.
    """  # noqa: D205

    draws: tuple[int, ...] = ()
    """Draws to run; all by default."""
    roundings: tuple[Rounding, ...] = ()
    """Roundings to run; all by default."""

    def config(self) -> Config:
        """What is run.

        Raises:
            ValueError: If there is no such network.
        """
        config = SMOKE if self.smoke else Config()
        return dataclasses.replace(
            config,
            subjects=self.chosen({subject.model: subject for subject in config.subjects}),
            draws=self.draws or config.draws,
            roundings=self.roundings or config.roundings,
        )


def main() -> None:
    """Run, and write the result after every cell."""
    given = tyro.cli(WholeFlowArguments, description=__doc__)
    config, output = given.config(), given.result("whole_flow")

    def keep(result: dict[str, Any]) -> None:
        old = json.loads(output.read_text()) if output.is_file() else {}
        write_json(output, merged(old, result))
        print(f"Wrote {output}: {list(result['cells'])[-1]}")

    run(config, given.work("whole_flow"), given.data(), done=keep)


if __name__ == "__main__":
    main()
