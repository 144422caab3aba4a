"""Latency predicted and measured, and int8 or float per layer under a budget of it (T10, F21).

Whole networks at a designed set of allocations are timed in a runtime on one thread, a model
with one term a layer is fitted, and networks that the fit did not see tell its error beside
how well a measurement repeats. Then every layer is W8A8 or float: solved under a budget on
latency, again around what was measured until the measured time meets it, and under a budget on
size that the same allocation just meets, beside uniform W8A8. Activations are quantized where
a runtime fuses them. Three draws of calibration images.

Run:     python -m experiments.latency --data-dir DIR  (20 min on 2 cores, resumable)
         --networks resnet20 --runtimes onnxruntime replace their part of the result alone
Smoke:   python -m experiments.latency --smoke            (half a minute, digits)
Writes:  experiments/results/latency.json
Claims:  experiments/claims/latency.py
"""

import dataclasses
import json
import pathlib
import shutil
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Literal

import tyro

from experiments.common.arguments import NetworksArguments
from experiments.common.provenance import machine, made_by
from experiments.common.steps import Step
from jmpq.problem import Infeasible
from jmpq.quantizers.spec import InputSpec, Placement
from jmpq.run.folder import LATENCY, LATENCY_TABLE, WEIGHTS, RunFolder
from jmpq.run.options import (
    Comparison,
    Evaluate,
    Latency,
    Layers,
    Sensitivity,
    Solve,
    Train,
)
from jmpq.sensitivity.metrics.by_name import MetricName

CHOICES = ("W8A8", "W32A32")
RuntimeName = Literal["onnxruntime", "openvino"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        networks: Built-in networks, the files of their weights below the data folder (an
            empty name for weights that are trained here), and their data sets.
        runtimes: Runtimes of the networks.
        metric: Metric of the sensitivities.
        placement: Placement of activation quantizers.
        budget: Budget on latency.
        solves: Most times that the budget is solved: as long as the solution measures above
            it, again with the table around what was measured.
        rounds: Times that every network is opened and timed.
        held_out: Networks that are predicted, not fitted.
        fitted: Networks that are fitted; None for two a layer.
        examples: Calibration images.
        batch_size: Calibration images per batch.
        evaluation_examples: Images measured on; None for all others.
        evaluation_batch: Images measured on per batch.
        draws: Draws of calibration images; 0 for predictions of latency alone.
        epochs: Epochs of training where there are no weights.
    """

    networks: tuple[tuple[str, str, str], ...] = (
        ("resnet20", "cifar10/resnet20.safetensors", "cifar10"),
        (
            "mobilenet_v1_0.75",
            "imagenet/mobilenet_v1_0.75_224.safetensors",
            "imagenet_sample",
        ),
        (
            "efficientnet_lite0",
            "imagenet/efficientnet_lite0.safetensors",
            "imagenet_sample",
        ),
    )
    runtimes: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
    metric: MetricName = "measured_kl"
    placement: Placement = "stream"
    budget: str = "0.6x"
    solves: int = 4
    rounds: int = 6
    held_out: int = 24
    fitted: int | None = None
    examples: int = 64
    batch_size: int = 32
    evaluation_examples: int | None = None
    evaluation_batch: int = 124
    draws: int = 3
    epochs: int = 15


SMOKE = Config(
    networks=(("digits_resnet", "", "digits"),),
    runtimes=("onnxruntime",),
    metric="squared_error",
    budget="60%",
    solves=2,
    rounds=2,
    held_out=3,
    examples=32,
    batch_size=32,
    evaluation_examples=64,
    evaluation_batch=64,
    draws=1,
    epochs=1,
)


def run(
    config: Config,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    *,
    done: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """All networks in all runtimes; interrupted, it goes on from what is in `folder`.

    Args:
        config: Configuration that is run.
        folder: Folder of the runs' artifacts.
        data_dir: Folder with images and weights; None for embedded data.
        done: Callback, called with the result so far after every network and runtime.

    Returns:
        The result: rows by name of the network and runtime, as ``resnet20/onnxruntime``.
    """
    result: dict[str, Any] = {"experiment": "latency", "networks": {}}
    for network in config.networks:
        for runtime in config.runtimes:
            origin = {
                "config": dataclasses.asdict(config)
                | {"networks": [list(network)], "runtimes": [runtime]},
                **made_by("experiments.latency", folder / network[0]),
                "machine": machine(),
            }
            found = run_network(config, network, runtime, folder / network[0], data_dir)
            result["networks"][f"{network[0]}/{runtime}"] = origin | found
            done(result)
    return result


def run_network(
    config: Config,
    network: tuple[str, str, str],
    runtime: RuntimeName,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
) -> dict[str, Any]:
    """The table of the first draw, then the budgets of every draw."""
    found: dict[str, Any] = {"draws": []}
    first = prepared(config, network, folder, data_dir, 0)
    options = Latency(
        runtime=runtime,
        rounds=config.rounds,
        held_out=config.held_out,
        networks=config.fitted,
    )
    Step("latency", first, options)()
    record = RunFolder(first).latency
    assert record is not None
    found["latency"] = record.to_json()
    kept = folder / runtime
    kept.mkdir(exist_ok=True)
    for file in (LATENCY_TABLE, LATENCY):
        shutil.copy(first / file, kept / file)
    for draw in range(config.draws):
        here = prepared(config, network, folder, data_dir, draw)
        for file in (LATENCY_TABLE, LATENCY):  # layers are the same, and so are their seconds
            shutil.copy(kept / file, here / file)
        found["draws"].append(outcome(config, runtime, here))
    return found


def prepared(
    config: Config,
    network: tuple[str, str, str],
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    draw: int,
) -> pathlib.Path:
    """The run folder of a draw, with its sensitivities."""
    name, file, data = network
    here, weights = folder / f"draw{draw}", folder / WEIGHTS
    if file:
        assert data_dir is not None
        weights = data_dir / file
    elif not weights.is_file():
        Step("train", folder, Train(model=name, data=data, epochs=config.epochs))()
    layers = Layers(model=name, weights=weights, data=data, data_dir=data_dir)
    sensitivity = Sensitivity(
        metrics=(config.metric if config.draws else "squared_error",),  # which takes no pass
        w_bits=(8, 32),
        a_bits=(8, 32),
        examples=config.examples,
        batch_size=config.batch_size,
        seed=draw,
        activations=InputSpec(placement=config.placement),
    )
    note, steps = here / ".steps", repr((layers, sensitivity))
    if not (note.is_file() and note.read_text() == steps):
        Step("layers", here, layers)()
        Step("sensitivity", here, sensitivity)()
        note.write_text(steps)
    return here


def outcome(config: Config, runtime: RuntimeName, here: pathlib.Path) -> dict[str, Any]:
    """Solutions under both budgets, predicted and measured."""
    budget, found = f"latency_s={config.budget}", dict[str, Any]()
    try:
        planned = solved(here, "latency", budget)
    except Infeasible as error:
        budget, found["infeasible"] = "latency_s=30%", str(error)
        planned = solved(here, "latency", budget)
    limit = RunFolder(here, plan="latency").plan.budgets["latency_s"].limit
    found["solves"] = []
    while True:
        found["latency"] = measured(config, runtime, here, "latency", budget)
        each = found["latency"]["allocations"][planned.name]
        found["solves"].append({key: each[key] for key in ("allocation", "costs", "cpu_s")})
        if each["cpu_s"] <= limit or len(found["solves"]) == config.solves:
            break
        around = Latency(runtime=runtime, plan="latency", around=planned.name)
        Step("latency", here, around)()
        budget = f"latency_s={limit!r}"
        try:
            planned = solved(here, "latency", budget)
        except Infeasible as error:
            found["infeasible"] = str(error)
            break
    size = f"size_bytes={each['costs']['size_bytes']:.0f}"
    solved(here, "size", size)
    found["size"] = measured(config, runtime, here, "size", size)
    return found


def measured(
    config: Config, runtime: RuntimeName, here: pathlib.Path, plan: str, budget: str
) -> dict[str, Any]:
    """The exact solution of a plan and the uniform allocations, evaluated and timed."""
    evaluate = Evaluate(
        plan=plan,
        examples=config.evaluation_examples,
        batch_size=config.evaluation_batch,
        calibration_roles=(),
    )
    Step("evaluate", here, evaluate)()
    check = Latency(runtime=runtime, plan=plan, check=True, rounds=config.rounds)
    Step("latency", here, check)()
    opened = RunFolder(here, plan=plan)
    evaluation, timed = opened.evaluation, opened.latency_check
    assert timed is not None
    return {
        "budget": budget,
        "limits": {k: b.limit for k, b in opened.plan.budgets.items()},
        "float": {
            "cpu_s": timed.allocations["float"].cpu_s,
            "wall_s": timed.allocations["float"].wall_s,
            "measured": evaluation.float["evaluation"],
        },
        "repeatability": timed.repeatability,
        "allocations": {
            a.name: {
                "allocation": a.allocation.to_json(),
                "costs": a.costs,
                "predicted_s": timed.allocations[a.name].predicted_s,
                "cpu_s": timed.allocations[a.name].cpu_s,
                "wall_s": timed.allocations[a.name].wall_s,
                "measured": evaluation.measured[a.name]["evaluation"],
            }
            for a in opened.plan.allocations
            if a.asked in ("exact", "uniform")
        },
    }


def solved(here: pathlib.Path, name: str, budget: str) -> Any:
    """The exact solution of a budget, every layer W8A8 or float."""
    options = Solve(
        name=name,
        replace=True,
        budget=(budget,),
        solvers=("exact",),
        rule=(f"allow .*={','.join(CHOICES)}",),
        first_last_bits=0,
    )
    Step("solve", here, options, {"comparison": Comparison(random=0)})()
    return RunFolder(here, plan=name).planned(None)


def summary(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a network and runtime: errors, and the means of the draws.

    Milliseconds of processor time at batch 1; top-1 in percent.
    """
    rows = []
    for key, found in result["networks"].items():
        latency, draws = found["latency"], found["draws"]
        if not draws:
            continue

        def mean(read: Callable[[Any], float], draws: Any = draws) -> float:
            return statistics.mean(read(draw["latency"]) for draw in draws)

        def best(draw: Any) -> Any:
            return next(v for k, v in draw["allocations"].items() if k.startswith("exact"))

        size = [best(draw["size"]) for draw in draws]
        rows.append(
            {
                "network": key,
                "held_out_error": latency["held_out_error"],
                "repeatability": latency["repeatability"],
                "float_ms": 1e3 * mean(lambda d: d["float"]["cpu_s"]),
                "W8A8_ms": 1e3 * mean(lambda d: d["allocations"]["uniform/W8A8"]["cpu_s"]),
                "limit_ms": 1e3 * mean(lambda d: d["limits"]["latency_s"]),
                "solution_ms": 1e3 * mean(lambda d: best(d)["cpu_s"]),
                "size_ms": 1e3 * statistics.mean(x["cpu_s"] for x in size),
                "W8A8_kl": mean(lambda d: d["allocations"]["uniform/W8A8"]["measured"]["kl"]),
                "solution_kl": mean(lambda d: best(d)["measured"]["kl"]),
                "size_kl": statistics.mean(x["measured"]["kl"] for x in size),
                "float_top1": 100 * mean(lambda d: d["float"]["measured"]["top1"]),
                "W8A8_top1": 100
                * mean(lambda d: d["allocations"]["uniform/W8A8"]["measured"]["top1"]),
                "solution_top1": 100 * mean(lambda d: best(d)["measured"]["top1"]),
            }
        )
    return rows


@dataclasses.dataclass(frozen=True)
class LatencyArguments(NetworksArguments):
    """Measure and predict latency. Networks that are in the file of the result and are not run
    stay there.
    """  # noqa: D205

    runtimes: tuple[RuntimeName, ...] = ()
    """Runtimes to run in; all by default."""
    draws: int | None = None
    """Draws of calibration images; 0 predicts and times networks, and chooses none."""

    def config(self) -> Config:
        """What is run.

        Raises:
            ValueError: If there is no such network.
        """
        config = SMOKE if self.smoke else Config()
        return dataclasses.replace(
            config,
            networks=self.chosen({network[0]: network for network in config.networks}),
            runtimes=self.runtimes or config.runtimes,
            draws=config.draws if self.draws is None else self.draws,
        )


def main() -> None:
    """Run, and write the result after every network and runtime."""
    from jmpq.files import write_json

    given = tyro.cli(LatencyArguments, description=__doc__)
    config, output = given.config(), given.result("latency")

    def keep(result: dict[str, Any]) -> None:
        old = json.loads(output.read_text()) if output.is_file() else {}
        networks = old.get("networks", {}) | result["networks"]
        whole = {**result, "networks": networks}
        write_json(output, whole | {"summary": summary(whole)})
        print(f"Wrote {output}: {', '.join(result['networks'])}")

    run(config, given.work("latency"), given.data(), done=keep)


if __name__ == "__main__":
    main()
