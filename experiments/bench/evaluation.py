"""How many allocations are measured in a second?

ResNet-20 on CIFAR-10, random bits of weights and activations, the same images for all sides in
turn, in one process: jmpq's one compiled program; the same network rebuilt and compiled again
for every candidate, its bits constants; and eager PyTorch, fake-quantizing with the same
scales by its own operations. Losses must agree between the sides. Without PyTorch (extra
`bench`) that side is reported as absent.

Run:     python -m experiments.bench.evaluation --data-dir DIR    (10 min on 2 cores)
Smoke:   python -m experiments.bench.evaluation --smoke           (seconds, digits)
Writes:  experiments/results/bench_evaluation.json
Claims:  experiments/claims/bench_others.py
"""

import dataclasses
import importlib.util
import pathlib
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from experiments.bench.evaluation_setting import SMOKE, Config, Losses, Setting, prepare
from experiments.bench.work import pin
from experiments.common.arguments import Arguments
from experiments.common.provenance import machine, made_by, versions
from jmpq.allocation import Allocation

SIDES = {
    "jmpq": "jmpq, one program for all",
    "rebuilt": "the same network rebuilt and compiled for every candidate",
    "torch": "PyTorch, eager fake quantization",
}

if TYPE_CHECKING:
    from jmpq.network.network import Network

TOLERANCE = 0.02  # of mean losses, nats: a value on the border of two codes may fall either way


def one_program(setting: Setting) -> Callable[[int], Losses]:
    """Jmpq's evaluator; the first call compiles."""
    from jmpq.deploy.measure import Evaluator

    data = setting.batches(setting.config.batch_size)
    evaluator = Evaluator(
        setting.build(),
        setting.quantizers,
        lambda: iter(data),
        candidates_per_call=setting.config.candidates,
    )

    names = [layer.name for layer in evaluator.network.layers]
    allocations = [Allocation.from_bits(names, bits) for bits in setting.bits]

    def measure(count: int) -> Losses:
        return np.array([o.loss for o in evaluator(allocations[:count])])

    return measure


def rebuilt(setting: Setting) -> Callable[[int], Losses]:
    """The network made, traced and compiled again for every candidate, its bits constants."""
    import jax
    import jax.numpy as jnp

    from jmpq.quantizers.fake_quant import quantized_logits
    from jmpq.training.losses import cross_entropy

    data = setting.batches(setting.config.batch_size)

    def compiled(w_bits: np.ndarray, a_bits: np.ndarray) -> Callable[..., Any]:
        @jax.jit
        def scores(network: "Network", inputs: Any, labels: Any) -> Any:
            w, a = jnp.array(w_bits), jnp.array(a_bits)
            z = quantized_logits(network, setting.quantizers, w, a, inputs)
            return jax.vmap(cross_entropy)(z, labels)

        return scores

    def measure(count: int) -> Losses:
        means = []
        for w_bits, a_bits in setting.bits[:count]:
            network, scores = setting.build(), compiled(w_bits, a_bits)
            losses = [
                np.asarray(scores(network, b.inputs, b.labels), np.float64)[b.weights > 0]
                for b in data
            ]
            means.append(np.concatenate(losses).mean())
        return np.array(means)

    return measure


def run(config: Config, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """All sides in turn, round by round."""
    import jax

    setting = prepare(config, data_dir)
    sides: dict[str, tuple[Callable[[int], Losses], int]] = {
        "jmpq": (one_program(setting), config.candidates),
        "rebuilt": (rebuilt(setting), config.rebuilt),
    }
    if importlib.util.find_spec("torch") is not None and config.weights is not None:
        from experiments.bench.evaluation_torch import eager

        assert data_dir is not None
        sides["torch"] = (eager(setting, data_dir / config.weights), config.eager)
    cached = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    found: dict[str, dict[str, Any]] = {}
    try:
        for name, (measure, count) in sides.items():
            start = time.perf_counter()
            measure(1 if name == "rebuilt" else count)
            found[name] = {"first_s": time.perf_counter() - start}
        for _ in range(config.rounds):
            for name, (measure, count) in sides.items():
                print(f"{name}: {count} allocations", flush=True)
                start = time.perf_counter()
                losses = measure(count)
                seconds = (time.perf_counter() - start) / count
                found[name].setdefault("seconds_per_candidate", []).append(seconds)
                found[name]["losses"] = losses.tolist()
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    check_parity({name: np.array(side["losses"]) for name, side in found.items()})
    return {
        "experiment": "bench_evaluation",
        "config": dataclasses.asdict(config),
        **made_by("experiments.bench.evaluation"),
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "numpy", "torch"),
        "absent": sorted({"torch"} - set(sides)),
        "sides": found,
    }


def check_parity(losses: dict[str, Losses]) -> None:
    """Refuse to compare the times of different networks.

    Raises:
        ValueError: If mean losses of the same allocation differ by more than `TOLERANCE`.
    """
    for name, found in losses.items():
        error = float(np.abs(found - losses["jmpq"][: len(found)]).max())
        if not error <= TOLERANCE:
            raise ValueError(
                f"The losses of {name} differ from jmpq's by {error:.3g} nats, more than "
                f"{TOLERANCE}: the sides do not quantize alike, and comparing their times "
                "would mean nothing."
            )


def evaluation_table(result: dict[str, Any]) -> str:
    """One row a side: seconds and candidates per second, and how much faster jmpq is."""
    config, sides = result["config"], result["sides"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    ours = median(sides["jmpq"]["seconds_per_candidate"])
    lines = [
        f"{config['images']} images, random bits of {config['w_bits']} (weights) and "
        f"{config['a_bits']} (activations), {config['rounds']} rounds, medians. "
        f"{config['threads']} thread(s) of {result['machine']['cpu']}, "
        f"{result['machine']['cores']} cores, load {result['machine']['load'][0]:.1f}. "
        f"Compare the ratios, not the seconds. Versions: {versions}.",
        "",
        "| evaluation | seconds per candidate | candidates per second | first call, s | "
        "jmpq is faster by |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, label in SIDES.items():
        if name not in sides:
            lines.append(f"| {label} | absent | - | - | - |")
            continue
        seconds = median(sides[name]["seconds_per_candidate"])
        ratio = "-" if name == "jmpq" else f"{seconds / ours:.1f}×"
        first = f"{sides[name]['first_s']:.1f}"
        lines.append(f"| {label} | {seconds:.3g} | {1 / seconds:.3g} | {first} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    given = tyro.cli(Arguments, description=__doc__)
    config = SMOKE if given.smoke else Config()
    pin(config.threads)
    write_json(given.result("bench_evaluation"), run(config, given.data_dir))


if __name__ == "__main__":
    main()
