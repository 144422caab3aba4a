"""The whole flow on ImageNet-size networks: seconds and memory of every stage, one core.

Random weights, 224x224 images, weights {2, 3, 4, 6, 8} bits; every stage by the command line's
own class in a process of its own, imports and compilation included. Parameters and
multiply-accumulates of the layer table must be the published ones before anything is timed.
With PyTorch (extra `bench`) also one Hessian-vector product of ResNet-18 there: what per-layer
traces by 50 Hutchinson probes, HAWQ-V2's way to its table, would take is that times 50.

Run:     python -m experiments.bench.flow --data-dir DIR    (an hour on one core, resumable)
         without --data-dir on images of noise
Smoke:   python -m experiments.bench.flow --smoke           (seconds, digits)
Writes:  experiments/results/bench_flow.json
Claims:  experiments/claims/bench_others.py
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from experiments.bench.flow_part import RandomImages, RandomWeights, measure
from experiments.bench.flow_torch import Product
from experiments.common.arguments import ResumableArguments
from experiments.common.provenance import machine, made_by, versions
from experiments.common.steps import Step
from jmpq.files import write_json
from jmpq.run.folder import EVALUATION, LAYERS, RunFolder
from jmpq.run.options import Comparison, Compute, Evaluate, Layers, Sensitivity, Solve
from jmpq.sensitivity.metrics.by_name import MetricName

# torchvision's documentation of its weights: parameters, and 10⁹ multiply-accumulates at
# 224x224 (GFLOPS there), two decimals; layers with a kernel.
PUBLISHED = {
    "mobilenet_v2": (3_504_872, 0.30, 53),
    "resnet18": (11_689_512, 1.81, 21),
    "resnet50": (25_557_032, 4.09, 54),
}
STAGES = {
    "layers": "layers",
    "gauss_newton": "sensitivity, Gauss–Newton",
    "empirical_fisher": "sensitivity, empirical Fisher",
    "solve": "solve",
    "evaluate": "evaluate",
    "report": "report",
}
METRICS: tuple[MetricName, ...] = ("gauss_newton", "empirical_fisher")
PROBES = 50  # what PyHessian and HAWQ-V2 take for a trace


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured; every field is in the result.

    Attributes:
        networks: Built-in networks, and how many images each calibrates and evaluates on.
        data: Data set.
        classes: Classes of the network.
        w_bits: Candidate bits of weights.
        class_samples: Random directions of the logits (gauss_newton).
        batch_size: Images per batch.
        memory: Most that the process may take, as --memory.
        random: Random allocations among those that are evaluated.
        rival: The network on which PyTorch's product is timed.
        in_process: Stages in this process, where peak memory does not matter.
        seed: Seed of weights, images and allocations.
    """

    networks: tuple[tuple[str, int], ...] = (
        ("resnet18", 64),
        ("mobilenet_v2", 64),
        ("resnet50", 64),
    )
    data: str = "imagenet_sample"
    classes: int = 1000
    w_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    class_samples: int = 8
    batch_size: int = 32
    memory: str = "4GB"
    random: int = 1
    rival: str | None = "resnet18"
    in_process: bool = False
    seed: int = 0


SMOKE = Config(
    networks=(("digits_resnet", 32),),
    data="digits",
    classes=10,
    w_bits=(2, 4, 8),
    class_samples=4,
    batch_size=16,
    rival=None,
    in_process=True,
)


def run(
    config: Config,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    *,
    done: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """All networks; interrupted, it goes on from the last finished stage in `folder`.

    Args:
        config: Configuration that is measured.
        folder: Folder of the runs' artifacts.
        data_dir: Folder with the images; None for images of noise, or embedded data.
        done: Callback, called with the result so far after every network.
    """
    made = made_by("experiments.bench.flow", folder)
    result: dict[str, Any] = {
        "experiment": "bench_flow",
        "config": dataclasses.asdict(config),
        "images": "noise" if data_dir is None else config.data,
        **made,
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "flax", "numpy", "torch"),
        "networks": {},
        "rival": None,
    }
    folder = folder.resolve()
    if data_dir is None and config.data == "imagenet_sample":
        data_dir = folder / "images"
        _measured(config, folder, "images", RandomImages(data_dir, config.classes, config.seed))
    for name, images in config.networks:
        result["networks"][name] = run_network(config, name, images, folder / name, data_dir)
        if name == config.rival and data_dir and importlib.util.find_spec("torch"):
            weights = folder / name / "weights.safetensors"
            product = Product(weights, config.data, data_dir.resolve())
            result["rival"] = _measured(config, folder / name, "torch", product)
        done(result)
    return result


def run_network(
    config: Config, name: str, images: int, folder: pathlib.Path, data_dir: pathlib.Path | None
) -> dict[str, Any]:
    """Every stage once, in order.

    Raises:
        ValueError: If the layer table is not the published one.
    """
    weights = folder / "weights.safetensors"
    _measured(config, folder, "weights", RandomWeights(weights, name, config.classes))
    found: dict[str, Any] = {"images": images, "stages": {}}
    before: list[str] = []
    for stage, step in stages(config, name, images, folder, data_dir).items():
        if step.folder != folder:  # a sensitivity file of its own
            step.folder.mkdir(exist_ok=True)
            table = RunFolder(folder).layers
            network = dataclasses.replace(table.network, weights=str(weights))
            dataclasses.replace(table, network=network).write(step.folder / LAYERS)
        found["stages"][stage] = _measured(config, folder, stage, step, before)
        before.append(repr(step))
        if stage == "layers":
            found |= layer_table(folder)
            check_published(name, found)
    evaluation = json.loads((folder / EVALUATION).read_text())
    return {**found, "allocations": len(evaluation["measured"])}


def stages(
    config: Config, name: str, images: int, run: pathlib.Path, data_dir: pathlib.Path | None
) -> dict[str, Any]:
    """The steps of the command line, by the names of `STAGES`."""
    data_dir = None if data_dir is None else data_dir.resolve()
    sensitivity = {
        metric: Step(
            "sensitivity",
            run if metric == "gauss_newton" else run / metric,
            Sensitivity(
                metrics=(metric,),
                class_samples=config.class_samples if metric == "gauss_newton" else None,
                w_bits=config.w_bits,
                a_bits=(32,),
                examples=images,
                batch_size=config.batch_size,
                seed=config.seed,
            ),
            {"compute": Compute(memory=config.memory)},
        )
        for metric in METRICS
    }
    layers = Layers(
        model=name,
        weights=run / "weights.safetensors",
        data=config.data,
        data_dir=data_dir,
    )
    solve = Solve(budget=("size_bytes=W4",), seed=config.seed, replace=True)
    evaluate = Evaluate(
        roles=("solution", "baseline", "sweep"),
        calibration_roles=(),
        examples=images,
        batch_size=config.batch_size,
    )
    return {
        "layers": Step("layers", run, layers),
        **sensitivity,
        "solve": Step("solve", run, solve, {"comparison": Comparison(random=config.random)}),
        "evaluate": Step("evaluate", run, evaluate),
        "report": Step("report", run),
    }


def layer_table(folder: pathlib.Path) -> dict[str, int]:
    """Layers, parameters and multiply-accumulates of a run."""
    table = json.loads((folder / LAYERS).read_text())
    kernels = sum(layer["parameters"] for layer in table["layers"])
    return {
        "layers": len(table["layers"]),
        "parameters": kernels + table["other_parameters"],
        "macs": sum(layer["macs"] for layer in table["layers"]),
    }


def check_published(name: str, found: dict[str, Any]) -> None:
    """Refuse to time another network than the published one.

    Raises:
        ValueError: If layers, parameters or multiply-accumulates are not the published ones.
    """
    if name not in PUBLISHED:
        return
    parameters, giga, layers = PUBLISHED[name]
    same = (found["layers"], found["parameters"]) == (layers, parameters)
    if not same or abs(found["macs"] / 1e9 - giga) > 0.006:
        raise ValueError(
            f"{name}: {found['layers']} layers, {found['parameters']:,} parameters and "
            f"{found['macs'] / 1e9:.3f}·10⁹ multiply-accumulates; published are {layers}, "
            f"{parameters:,} and {giga}·10⁹."
        )


def _measured(
    config: Config,
    folder: pathlib.Path,
    name: str,
    step: Callable[[], Any],
    before: Sequence[str] = (),
) -> dict[str, Any]:
    """What `bench_flow_part.measure` finds of a stage; not again where it is known, by the
    same stages before it.
    """  # noqa: D205
    path = folder / "measured" / f"{name}.json"
    kept, steps = path.with_suffix(".step"), "\n".join([*before, repr(step)])
    if not (path.is_file() and kept.is_file() and kept.read_text() == steps):
        print(f"{folder.name}: {name}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if config.in_process:
            write_json(path, measure(step))
        else:
            path.with_suffix(".pickle").write_bytes(pickle.dumps(step))
            command = [sys.executable, "-m", "experiments.bench.flow_part", str(path.parent)]
            subprocess.run(
                [*command, name],
                check=True,
                cwd=pathlib.Path(__file__).parents[2],
                env=one_core(),
            )
        kept.write_text(steps)
    return json.loads(path.read_text())


def one_core() -> dict[str, str]:
    """The environment of a stage: XLA computes on one thread."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    return {**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}


def flow_table(result: dict[str, Any]) -> str:
    """One column a network: its published size, then seconds and memory of every stage."""
    networks = result["networks"]
    names = [f"{name}, {found['images']} images" for name, found in networks.items()]
    lines = [
        f"{result['machine']['cpu']}, one core of {result['machine']['cores']}, load "
        f"{result['machine']['load'][0]:.1f}; jax {result['versions']['jax']}. Processor "
        "seconds, imports and compilation included; peak resident memory of the process, and "
        "what XLA planned for a pass.",
        "",
        f"| stage | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
        _row(
            "layers; parameters; MACs",
            [
                f"{n['layers']}; {n['parameters']:,}; {n['macs'] / 1e9:.2f}·10⁹"
                for n in networks.values()
            ],
        ),
    ]
    for stage, title in STAGES.items():
        cells = []
        for found in networks.values():
            at = found["stages"][stage]
            shown = f"{at['cpu_s']:.0f} s, {at['peak_rss_bytes'] / 1e9:.1f} GB"
            if plan := at["planned"]:
                shown += f" ({plan['bytes'] / 1e9:.1f} GB for {plan['examples']} images)"
            cells.append(shown)
        lines.append(_row(title, cells))
    if result["rival"]:
        lines += ["", _rival(result)]
    return "\n".join(lines)


def _row(title: str, cells: list[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def _rival(result: dict[str, Any]) -> str:
    name, found = result["config"]["rival"], result["rival"]["value"]
    images = result["networks"][name]["images"]
    whole = PROBES * found["median_s"] * images / found["images"]
    return (
        f"PyTorch {result['versions']['torch']}, one thread, the same weights and images: a "
        f"product H·v of {name} takes {found['median_s']:.1f} s on {found['images']} images. "
        f"Traces by {PROBES} probes on {images} images, as HAWQ-V2's table needs them, would "
        f"take {whole:.0f} s (extrapolated from that product)."
    )


@dataclasses.dataclass(frozen=True)
class FlowArguments(ResumableArguments):
    """Measure every stage of the flow; without images, on images of noise."""

    images: tuple[str, ...] = ()
    """NETWORK=IMAGES: another number of images for a network."""

    def config(self) -> Config:
        """What is measured.

        Raises:
            ValueError: If there is no such network.
        """
        config = SMOKE if self.smoke else Config()
        asked = {name: count for name, _, count in (t.partition("=") for t in self.images)}
        known = dict(config.networks)
        if wrong := [n for n, count in asked.items() if n not in known or not count.isdigit()]:
            raise ValueError(
                f"images={wrong[0]}={asked[wrong[0]]}: expected NETWORK=IMAGES, with one of "
                f"{', '.join(known)}."
            )
        networks = tuple((name, int(asked.get(name, count))) for name, count in known.items())
        return dataclasses.replace(config, networks=networks)


def main() -> None:
    """Run, and write the result after every network."""
    given = tyro.cli(FlowArguments, description=__doc__)
    output = given.result("bench_flow")
    data_dir = None if given.smoke else given.data_dir

    def keep(result: dict[str, Any]) -> None:
        write_json(output, result)
        print(f"Wrote {output}: {', '.join(result['networks'])}", flush=True)

    run(given.config(), given.work("bench_flow"), data_dir, done=keep)


if __name__ == "__main__":
    main()
