"""What one accelerator does in ten minutes: device tests, a large table, evaluation, training.

ResNet-50 has random weights and its images are random: times do not depend on them. Every
part is timed with and without its compilation. Parts can be run one by one (`--parts`).

Run:     make gpu, or python -m experiments.gpu      (under 10 min on one accelerator)
Smoke:   python -m experiments.gpu --smoke           (seconds, a CPU will do)
Writes:  experiments/results/gpu.json, with the device
Expect:  the table of 53 convolutions and the last layer × 5 bits on 1,024 images in minutes
"""

import dataclasses
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import tyro

from experiments import vit_cifar
from experiments.common.arguments import Arguments
from experiments.common.provenance import machine, made_by, versions

FULL = vit_cifar.Config()
Part = Literal["tests", "sensitivities", "evaluation", "training"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        tests: Test files of several devices and of the arithmetic on one.
        model: Built-in network.
        classes: Classes of the network.
        pixels: Height and width of the images.
        channels: Channels of the images.
        images: Images of the table and of the evaluation.
        batch_size: Images per batch.
        w_bits: Candidate bits of weights.
        class_samples: Backward passes of Gauss-Newton per image; 0 for all classes.
        allocations: Random allocations that are evaluated.
        training: Recipe of the vision transformer.
        seed: Seed of weights, images and allocations.
    """

    tests: tuple[str, ...] = (
        "tests/test_devices.py",
        "tests/sensitivity/test_devices.py",
        "tests/quantizers/test_uniform.py",
    )
    model: str = "resnet50"
    classes: int = 1000
    pixels: int = 224
    channels: int = 3
    images: int = 1024
    batch_size: int = 32
    w_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    class_samples: int = 16
    allocations: int = 32
    training: vit_cifar.Config = FULL
    seed: int = 0


SMOKE = Config(
    tests=(),
    model="digits_resnet",
    classes=10,
    pixels=8,
    channels=1,
    images=8,
    batch_size=4,
    w_bits=(2, 8),
    class_samples=2,
    allocations=2,
    training=vit_cifar.SMOKE,
)


@dataclasses.dataclass(frozen=True)
class GpuArguments(Arguments):
    """Where the data are, and what is run."""

    parts: tuple[Part, ...] = ("tests", "sensitivities", "evaluation")
    """Parts to run. training takes the recipe of experiments.vit_cifar, and CIFAR-10 in
    --data-dir."""
    folder: pathlib.Path = pathlib.Path("runs/gpu")
    """Folder of the training's checkpoints, from which it resumes."""


def run(
    config: Config,
    parts: tuple[Part, ...],
    folder: pathlib.Path,
    data_dir: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Run the parts one after another; tests first, in a process of their own."""
    result: dict[str, Any] = {"experiment": "gpu", "config": dataclasses.asdict(config)}
    if "tests" in parts:  # before this process takes the device's memory
        result["tests"] = _tests(config.tests)
    import jax

    device = jax.devices()[0]
    result["device"] = {
        "kind": device.device_kind,
        "platform": device.platform,
        "count": jax.device_count(),
    }
    if {"sensitivities", "evaluation"} & {*parts}:
        result |= _large_network(config, parts)
    if "training" in parts:
        result["training"] = vit_cifar.run(config.training, folder, data_dir)
    return result | {
        **made_by("experiments.gpu"),
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "flax", "numpy"),
    }


def _tests(files: tuple[str, ...]) -> dict[str, Any]:
    """Outcome of the test files on this machine's device."""
    if not files:
        return {"files": [], "passed": True, "summary": "none", "seconds": 0.0}
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", *files]
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return {
        "files": list(files),
        "passed": done.returncode == 0,
        "summary": (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1],
        "seconds": time.perf_counter() - start,
    }


def _large_network(config: Config, parts: tuple[Part, ...]) -> dict[str, Any]:
    """The table of every layer and bit-width, and the measurement of allocations."""
    import jax
    import numpy as np

    from jmpq.allocation import Allocation
    from jmpq.deploy.measure import Evaluator
    from jmpq.formats import choice_grid
    from jmpq.network.network import Network
    from jmpq.quantizers.calibrate import calibrate_quantizers
    from jmpq.sensitivity.analyse import analyse
    from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, GaussNewton
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.zoo.architectures import build_module

    random = np.random.default_rng(config.seed)
    shape = (config.batch_size, config.pixels, config.pixels, config.channels)
    batches = [
        (
            random.standard_normal(shape, dtype=np.float32),
            random.integers(0, config.classes, config.batch_size),
        )
        for _ in range(config.images // config.batch_size)
    ]
    module = build_module(config.model, config.classes)
    example = batches[0][0][:1]
    variables = jax.jit(module.init)(jax.random.key(config.seed), example)
    network = Network.from_linen(module, variables, example)
    quantizers, calibration_s = _timed(lambda: calibrate_quantizers(network, config.w_bits))
    moves = MoveNetwork(network=network, quantizers=quantizers)
    choices = choice_grid(config.w_bits)
    images = len(batches) * config.batch_size
    result: dict[str, Any] = {
        "network": {
            "layers": len(network.layers),
            "parameters": sum(layer.parameters for layer in network.layers),
            "moves": len(moves.moves),
            "calibration_s": calibration_s,
        }
    }
    if "sensitivities" in parts:
        samples = config.class_samples or "all"
        metrics = {
            "empirical_fisher": EmpiricalFisher(),
            "gauss_newton": GaussNewton(class_samples=samples),
        }
        result["sensitivities"] = {}
        for name, metric in metrics.items():
            table, first_s = _timed(lambda m=metric: analyse(moves, m, batches, choices))
            _, seconds = _timed(lambda m=metric: analyse(moves, m, batches, choices))
            result["sensitivities"][name] = {
                "seconds": seconds,
                "first_s": first_s,  # compilation included
                "images_per_s": images / seconds,
                "finite": bool(np.isfinite(table.losses).all()),
            }
    if "evaluation" in parts:
        names = [layer.name for layer in network.layers]
        drawn = [
            Allocation.from_columns(
                names, choices, random.integers(0, len(choices), len(names))
            )
            for _ in range(config.allocations)
        ]
        evaluator = Evaluator(network, quantizers, batches)
        _, first_s = _timed(lambda: evaluator(drawn[:1]))  # compiles, and the float logits
        _, seconds = _timed(lambda: evaluator(drawn))
        result["evaluation"] = {
            "first_s": first_s,
            "seconds": seconds,
            "seconds_per_allocation": seconds / len(drawn),
            "images_per_s": images * len(drawn) / seconds,
        }
    return result


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds; results come back to the host, so all is done."""
    start = time.perf_counter()
    found = call()
    return found, time.perf_counter() - start


def main(arguments: GpuArguments) -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    config = SMOKE if arguments.smoke else Config()
    result = run(config, arguments.parts, arguments.folder, arguments.data_dir)
    write_json(arguments.result("gpu"), result)
    print(f"{result['device']['kind']}. Wrote {arguments.result('gpu')}")
    if not result.get("tests", {"passed": True})["passed"]:
        raise SystemExit(f"Device tests failed: {result['tests']['summary']}")


if __name__ == "__main__":
    main(tyro.cli(GpuArguments, description=__doc__))
