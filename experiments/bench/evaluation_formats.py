"""What does measuring an allocation cost beside a float forward pass, by number format?

One compiled program has every format calibrated: integers with a scale a channel or a group,
small floats, MX and NVFP4, of kernels and of inputs. Its allocations take one kind of format
each, at random by layer, kernels alone or inputs too. In turn, in one process on one thread:
a float forward pass of the same batches, the program, and the network rebuilt and compiled for
that allocation alone. Processor time per allocation, in float forward passes; losses of both
sides must agree.

Run:     python -m experiments.bench.evaluation_formats --data-dir DIR    (5 min on 1 core)
Smoke:   python -m experiments.bench.evaluation_formats --smoke           (a minute, digits)
Writes:  experiments/results/bench_evaluation_formats.json
Expect:  at most 1.2 float forward passes, but for inputs in MX and NVFP4
"""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from experiments.bench.evaluation import TOLERANCE
from experiments.bench.work import pin
from experiments.common.arguments import Arguments
from experiments.common.provenance import machine, made_by, versions
from jmpq.formats import Choice

if TYPE_CHECKING:
    from jmpq.allocation import Allocation
    from jmpq.data.batches import Batch
    from jmpq.network.network import Network
    from jmpq.quantizers.scales import Quantizers

KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # of kernels, of inputs
    "integers": (("int2", "int3", "int4", "int8"), ("int4", "int8")),
    "groups": (("int3_g64", "int4_g64"), ("int8",)),
    "floats": (("fp4_e2m1", "fp6_e2m3", "fp8_e4m3"), ("fp6_e2m3", "fp8_e4m3")),
    "MX": (("mxfp4", "mxfp6_e2m3", "mxfp8_e4m3"), ("mxfp4", "mxfp8_e4m3")),
    "NVFP4": (("nvfp4",), ("nvfp4",)),
}
INPUTS = {False: "kernels", True: "kernels and inputs"}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network and its examples.

    Attributes:
        model: Built-in network.
        weights: File below the data folder; None to train it here.
        data: Data set.
        data_dir: Folder or file of the data, below the data folder.
        batch_size: Examples per batch.
    """

    model: str
    weights: str | None
    data: str
    data_dir: str
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured; every field is in the result.

    Attributes:
        subjects: The networks.
        batches: Batches measured on.
        candidates: Allocations of a kind in every round.
        rounds: Repetitions; medians are reported.
        rebuilt: Rounds in which the first allocation of a kind is rebuilt too.
        calibration: Examples that scales of inputs come from.
        threads: Cores that the process may use.
        seed: Seed of the allocations.
    """

    subjects: tuple[Subject, ...] = (
        Subject("resnet20", "cifar10/resnet20.safetensors", "cifar10", "cifar10", 64),
        Subject(
            "stories260k", "tinystories/stories260K.safetensors", "text",
            "tinystories/stories.txt", 16,
        ),
    )  # fmt: skip
    batches: int = 4
    candidates: int = 4
    rounds: int = 3
    rebuilt: int = 1
    calibration: int = 64
    threads: int = 1
    seed: int = 0


SMOKE = Config(
    subjects=(Subject("digits_resnet", None, "digits", "", 16),),
    batches=2,
    candidates=2,
    rounds=1,
    calibration=32,
)


def run(config: Config, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """All networks, one after the other."""
    import jax

    cached = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        networks = {s.model: _network(config, s, data_dir) for s in config.subjects}
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    return {
        "experiment": "bench_evaluation_formats",
        "config": dataclasses.asdict(config),
        "kinds": KINDS,
        **made_by("experiments.bench.evaluation_formats"),
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "numpy"),
        "networks": networks,
    }


def _network(config: Config, subject: Subject, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """Processor seconds of every kind of format, and of float forward passes, in turn."""
    from jmpq.deploy.measure import Evaluator

    network, quantizers, data = _prepare(config, subject, data_dir)
    evaluator = Evaluator(
        network, quantizers, lambda: iter(data), candidates_per_call=config.candidates
    )
    rng = np.random.default_rng(config.seed)
    rows = {
        f"{kind}, {INPUTS[inputs]}": [
            _allocation(network, kind, inputs, rng) for _ in range(config.candidates)
        ]
        for kind in KINDS
        for inputs in INPUTS
    }

    floats: list[float] = []
    found: dict[str, dict[str, Any]] = {name: {} for name in rows}
    first = _timed(lambda: evaluator(rows["integers, kernels"]))[0]
    float_passes = _float_passes(network, data)
    float_passes()
    for number in range(config.rounds):
        for name, allocations in rows.items():
            floats.append(_timed(float_passes)[0])
            took, outcomes = _timed(lambda every=allocations: evaluator(every))
            found[name].setdefault("jmpq_s", []).append(took / config.candidates)
            found[name]["loss"] = outcomes[0].loss
            if number < config.rebuilt:
                one = _rebuilt(network, quantizers, allocations[0], data)
                took, loss = _timed(one)
                found[name].setdefault("rebuilt_s", []).append(took)
                _check(name, outcomes[0].loss, loss)
            print(f"{subject.model}: {name}", flush=True)
    return {"first_s": first, "float_s": floats, "rows": found}


def _prepare(
    config: Config, subject: Subject, data_dir: pathlib.Path | None
) -> "tuple[Network, Quantizers, list[Batch]]":
    """Network, quantizers of every format, and batches."""
    from jmpq import run as steps
    from jmpq.data.batches import batches
    from jmpq.quantizers.calibrate import calibrate_quantizers
    from jmpq.run.folder import WEIGHTS, RunFolder

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if subject.weights is None:
            steps.train(folder, steps.Train(model=subject.model, data=subject.data, epochs=1))
            weights, data = folder / WEIGHTS, None
        else:
            assert data_dir is not None
            weights, data = data_dir / subject.weights, data_dir / subject.data_dir
        options = steps.Layers(
            model=subject.model, weights=weights, data=subject.data, data_dir=data
        )
        steps.layers(folder, options)
        network, dataset = steps.network_of(RunFolder(folder))
        first, size = config.calibration, subject.batch_size
        test = dataset.heldout.take(np.arange(first, first + config.batches * size))
        data = list(batches(test, size))
        calibration = batches(dataset.heldout.take(np.arange(first)), size)
        quantizers = calibrate_quantizers(
            network,
            sorted({name for kernels, _ in KINDS.values() for name in kernels}),
            sorted({name for _, inputs in KINDS.values() for name in inputs}),
            [batch.inputs for batch in calibration],
        )
    return network, quantizers, data


def _allocation(
    network: "Network", kind: str, inputs: bool, rng: np.random.Generator
) -> "Allocation":
    """Random formats of one kind, by layer."""
    from jmpq.allocation import Allocation

    of_kernels, of_inputs = KINDS[kind]
    return Allocation(
        {
            layer.name: Choice(
                str(rng.choice(of_kernels)), str(rng.choice(of_inputs)) if inputs else "none"
            )
            for layer in network.layers
        }
    )


def _float_passes(network: "Network", data: "list[Batch]") -> Callable[[], None]:
    """Logits of the float network, nothing else."""
    import jax

    @jax.jit
    def logits(network: "Network", inputs: Any) -> Any:
        return network.logits(inputs)

    def passes() -> None:
        for batch in data:
            jax.block_until_ready(logits(network, batch.inputs))

    return passes


def _rebuilt(
    network: "Network", quantizers: "Quantizers", allocation: "Allocation", data: "list[Batch]"
) -> Callable[[], float]:
    """The network traced and compiled for one allocation, its formats constants: mean loss."""
    import jax
    import jax.numpy as jnp

    from jmpq.allocation import bit_arrays
    from jmpq.quantizers.fake_quant import quantized_logits
    from jmpq.training.losses import cross_entropy

    numbers = bit_arrays([layer.name for layer in network.layers], [allocation])[0]

    @jax.jit
    def losses(network: "Network", quantizers: "Quantizers", inputs: Any, labels: Any) -> Any:
        w, a = map(jnp.array, numbers)
        z = quantized_logits(network, quantizers, w, a, inputs)
        return jax.vmap(cross_entropy)(z, labels)

    def measure() -> float:
        found = [
            np.asarray(losses(network, quantizers, b.inputs, b.labels), np.float64)
            for b in data
        ]
        return float(np.concatenate(found).mean())

    return measure


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of this process, and the value."""
    start = time.process_time()
    value = work()
    return time.process_time() - start, value


def _check(name: str, loss: float, rebuilt: float) -> None:
    """Refuse to compare the times of different networks.

    Raises:
        ValueError: If the mean losses differ by more than `TOLERANCE`.
    """
    if not abs(loss - rebuilt) <= TOLERANCE:
        raise ValueError(
            f"{name}: the losses of both sides differ by {abs(loss - rebuilt):.3g} nats, more "
            f"than {TOLERANCE}. They do not quantize alike, and comparing their times would "
            "mean nothing."
        )


def passes(network: Mapping[str, Any], row: str, side: str = "jmpq_s") -> float:
    """Float forward passes that measuring an allocation of a row takes, by medians."""
    return median(network["rows"][row][side]) / median(network["float_s"])


def evaluation_formats_table(result: Mapping[str, Any]) -> str:
    """One row a kind of format: float forward passes per allocation, ours and rebuilt."""
    config = result["config"]
    lines = [
        f"Processor time of measuring an allocation over that of a float forward pass of the "
        f"same batches, {config['rounds']} rounds in turn, medians; {config['threads']} thread "
        f"of {result['machine']['cpu']}, load {result['machine']['load'][0]:.1f}. Rebuilt: the "
        "network traced and compiled for that allocation.",
        "",
    ]
    for subject in config["subjects"]:
        network = result["networks"][subject["model"]]
        float_ms = 1e3 * median(network["float_s"]) / config["batches"]
        lines += [
            f"**{subject['model']}**, {config['batches']} batches of {subject['batch_size']}, "
            f"{float_ms:.0f} ms a float pass of one; first call {network['first_s']:.0f} s.",
            "",
            "| formats | jmpq, one program for all | rebuilt |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {row} | {passes(network, row):.2f} | {passes(network, row, 'rebuilt_s'):.0f} |"
            for row in network["rows"]
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    given = tyro.cli(Arguments, description=__doc__)
    config = SMOKE if given.smoke else Config()
    pin(config.threads)
    result = run(config, given.data())
    write_json(given.result("bench_evaluation_formats"), result)


if __name__ == "__main__":
    main()
