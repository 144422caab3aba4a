"""Formats of keys and values, chosen by the knapsack, against uniform ones at equal bytes.

A Llama-type decoder (stories260K) keeps the keys and values of every layer from token to token.
Each is a row of the layer table; kernels and inputs stay float. Candidates are integers with a
calibrated scale a channel, or these and formats whose blocks bring their scales; budgets are
bytes a token. Exact, greedy and reversed allocations by Gauss-Newton beside every uniform
format: KL divergence and loss (perplexity is its exponential) by calibration draw.

Run:     python -m experiments.decoder.kv_cache --data-dir DIR    (15 min on 2 cores, resumable)
Smoke:   python -m experiments.decoder.kv_cache --smoke --data-dir DIR    (a minute)
Writes:  experiments/results/kv_cache.json
Claims:  experiments/claims/formats/kv_cache.py
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tyro

from experiments.common.arguments import ResumableArguments, data_folder
from experiments.common.provenance import machine, made_by, versions
from jmpq.allocation import Allocation
from jmpq.files import write_json
from jmpq.formats import Choice, choice_grid
from jmpq.quantizers.spec import InputSpec
from jmpq.run.options import Evaluate, Layers, Sensitivity

INTEGERS = ("int2", "int3", "int4", "int5", "int6", "int8")
BLOCKS = ("mxfp4", "nvfp4", "mxfp6_e2m3", "mxfp8_e4m3")
SETS = {"integers": INTEGERS, "all": (*INTEGERS, *BLOCKS)}
MODEL, WEIGHTS = "stories260k", "tinystories/stories260K.safetensors"
TEXT = "tinystories/stories.txt"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        bits: Budgets: bits of a key or value, block scales included.
        draws: Seeds of the calibration examples.
        examples: Calibration windows.
        batch_size: Calibration windows per batch.
        class_samples: Random directions of the logits of Gauss-Newton.
        evaluation: Evaluation windows, the first so many.
        granularity: Calibrated scales: one a channel, or one a tensor.
    """

    bits: tuple[float, ...] = (2.5, 3.0, 3.5, 4.0, 4.25, 4.5, 5.0, 6.0, 8.0)
    draws: tuple[int, ...] = (0, 1, 2)
    examples: int = 64
    batch_size: int = 16
    class_samples: int = 8
    evaluation: int = 256
    granularity: str = "channel"


SMOKE = Config(
    bits=(3.0, 4.25), draws=(0,), examples=8, batch_size=4, class_samples=2, evaluation=8
)


def run(
    config: Config, folder: pathlib.Path, data_dir: pathlib.Path, output: pathlib.Path
) -> dict[str, Any]:
    """All draws, written after each; finished ones are kept in `folder`."""
    result: dict[str, Any] = {
        "experiment": "kv_cache",
        "model": MODEL,
        "config": dataclasses.asdict(config),
        "candidates": SETS,
        "versions": versions("jax", "jaxlib", "flax", "numpy", "highspy", "ml_dtypes"),
        "cells": {},
    }
    asked = json.loads(json.dumps([result["config"] | {"draws": []}, SETS]))
    for draw in config.draws:
        kept = folder / str(draw) / "cell.json"
        cell = json.loads(kept.read_text()) if kept.is_file() else {}
        if cell.get("asked") != asked:
            cell = {"asked": asked} | run_draw(config, draw, kept.parent, data_dir)
            write_json(kept, cell)
        result["cells"][str(draw)] = {k: v for k, v in cell.items() if k != "asked"}
        write_json(output, result)
        print(f"Wrote {output}: draw {draw}", flush=True)
    return result


def run_draw(
    config: Config, draw: int, folder: pathlib.Path, data_dir: pathlib.Path
) -> dict[str, Any]:
    """One draw: sensitivities of all formats, then allocations, measured."""
    from jmpq import run as steps
    from jmpq.run.folder import RunFolder

    made = made_by("experiments.decoder.kv_cache", folder)
    steps.layers(
        folder,
        Layers(
            model=MODEL, weights=data_dir / WEIGHTS, data="text", data_dir=data_dir / TEXT,
            kv_cache=True,
        ),
    )  # fmt: skip
    steps.sensitivity(
        folder,
        Sensitivity(
            metrics=("gauss_newton",),
            class_samples=config.class_samples,
            w_formats=("none",),
            a_formats=("none",),
            kv_formats=SETS["all"],
            activations=InputSpec(granularity=config.granularity),  # type: ignore[arg-type]
            examples=config.examples,
            batch_size=config.batch_size,
            seed=draw,
        ),
    )
    rows = _allocations(folder, config)
    found = [Allocation.from_json(row["allocation"]) for row in rows]
    measured = steps.measure(folder, found, Evaluate(examples=config.evaluation, batch_size=64))
    for row, outcome in zip(rows, measured.outcomes, strict=True):
        row["measured"] = outcome.to_json()
    return {
        **made,
        "weights_sha256": RunFolder(folder).layers.weights_sha256,
        "machine": machine(),
        "float": measured.float_outcome.to_json(),
        "examples_sha256": measured.examples_sha256,
        "rows": rows,
    }


def _allocations(folder: pathlib.Path, config: Config) -> list[dict[str, Any]]:
    """Every uniform format, and what the solvers choose for every set and budget."""
    from jmpq.problem import Exclude, Overhead, build_problem, with_budgets
    from jmpq.run.folder import RunFolder
    from jmpq.solvers import Exact, Greedy
    from jmpq.solvers.knapsack.baselines import reversed_search

    run = RunFolder(folder)
    layers, table = run.layers.layers, run.sensitivities.tables["gauss_newton"]
    overhead = Overhead.of(layers, run.sensitivities.kernels)
    solvers: Mapping[str, Any] = {
        "exact": Exact(), "greedy": Greedy(), "reversed": reversed_search
    }  # fmt: skip
    rows = []
    for name, formats in SETS.items():
        problem = build_problem(
            layers,
            table,
            overhead=overhead,
            rules=[Exclude(r"[^:]*")],  # layers with a kernel
            choices=choice_grid(["none"], formats),
            unquantized_parameters=run.layers.other_parameters,
        )
        _, four = problem.evaluate(problem.uniform(Choice("none", "int4")))
        if name == "all":
            for choice in problem.choices:
                columns = problem.uniform(choice)
                loss, costs = problem.evaluate(columns)
                label = f"uniform {choice.activations.name}"
                rows.append(_row(name, None, label, problem.allocation(columns), loss, costs))
        for bits in config.bits:
            limited = with_budgets(problem, {"kv_bytes": four["kv_bytes"] * bits / 4})
            for solver, solve in solvers.items():
                best = solve(limited)
                rows.append(_row(name, bits, solver, best.allocation, best.loss, best.costs))
    return rows


def _row(
    candidates: str,
    bits: float | None,
    solver: str,
    allocation: Allocation,
    loss: float,
    costs: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "candidates": candidates,
        "bits": bits,
        "solver": solver,
        "predicted_loss": loss,
        "kv_bytes": costs["kv_bytes"],
        "allocation": allocation.to_json(),
    }


def main() -> None:
    """Run, and write the result after every draw."""
    given = tyro.cli(ResumableArguments, description=__doc__)
    config = SMOKE if given.smoke else Config()
    folder = data_folder(given.data_dir, smoke=False)  # there is no embedded text
    assert folder is not None
    run(config, given.work("kv_cache"), folder, given.result("kv_cache"))


if __name__ == "__main__":
    main()
