"""What fine-tuning recovers: ResNet-20 on CIFAR-10 at 2.5 bits a weight, on average (T7).

The exact allocation by Gauss-Newton sensitivities at the size half-way between uniform 2 and 3
bits (first and last layer at 8 bits), weights alone: after training (rounded to nearest and by
the layers' Hessians, each as it comes and with the statistics of batch normalisation estimated
again), and fine-tuned for a short while, with scales as calibrated (ste) and learned (lsq), by
distillation from the float network; beside it uniform 2 and 3 bits. Sensitivities, scales and
statistics come from test images set aside, training sees training images only, and top-1 is
measured on the other test images.

Run:     python -m experiments.finetune --data-dir DIR [--devices 2]    (resumable)
Full:    python -m experiments.finetune --data-dir DIR --schedule full  (a GPU: 13 times smaller
         weights, 4-bit activations, 300 epochs over all training images)
Smoke:   python -m experiments.finetune --smoke                         (seconds, digits)
Writes:  experiments/results/finetune_resnet20.json, finetune_resnet20_full.json
Claims:  experiments/claims/finetune.py
"""

import dataclasses
import functools
import json
import math
import pathlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments.common.arguments import RESULTS, check_output, data_folder
from experiments.common.networks import examples_of, load_trained, set_aside
from experiments.common.provenance import machine, made_by, versions, weights_of
from jmpq.allocation import Allocation, bit_arrays
from jmpq.deploy.correction import Correct
from jmpq.files import json_sha256
from jmpq.journal import Journal
from jmpq.quantizers.spec import Rounding
from jmpq.run.options import Compute

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jmpq.data.dataset import Split
    from jmpq.deploy.finetune import FinetuneConfig
    from jmpq.deploy.finetuned import Finetuned
    from jmpq.network.network import Network
    from jmpq.quantizers.scales import Quantizers

Method = Literal["ste", "lsq"]
FLOAT = 32


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        model: Built-in network.
        weights: Published weights, below the data folder; None to train it first.
        data: Data set.
        w_bits: Candidate bits of weights.
        a_bits: Bits of activations but for those of the first and last layer, which get 8.
        bits: Uniform bits whose size is the budget; between two of them, in proportion.
        compression: Instead of them, how many times smaller than float the weights have to
            be, scales counted.
        uniform: Uniform bits to fine-tune beside the allocation: the last method, from the
            last start, once.
        roundings: Post-training, rows of the table.
        starts: Roundings that fine-tuning starts from.
        methods: Ways to fine-tune: all from the first start, the last one from all.
        seeds: Seeds of fine-tuning: order of examples and augmentation.
        draws: Draws of held-out images set aside; the first calibrates, none is measured on.
        examples: Images of a draw.
        calibration_batch: Images per batch of the sensitivities.
        training_examples: Training images, drawn with seed 0; None for all.
        evaluation: Images measured on; None for all that no draw has taken.
        epochs: Epochs of fine-tuning.
        batch_size: Images per step.
        optimizer: Optimizer of fine-tuning.
        learning_rate: Peak learning rate.
        scale_learning_rate: Learning rate of scales, as a multiple.
        warmup: Fraction of the steps in which it rises.
        weight_decay: On kernels.
        distillation: Weight of the KL divergence to the float network; the rest is cross
            entropy.
        temperature: Temperature of distillation.
        correct: Corrections before the first step.
        shift: Augmentation, pixels.
        flip: Augmentation.
        dtype: Type of convolutions and matrix products.
        checkpoint_steps: Steps between checkpoints.
        float_epochs: Epochs of training where there are no weights.
    """

    model: str = "resnet20"
    weights: str | None = "cifar10/{}.safetensors"
    data: str = "cifar10"
    w_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    a_bits: int = FLOAT
    bits: float = 2.5
    compression: float | None = None
    uniform: tuple[int, ...] = (2, 3)
    roundings: tuple[Rounding, ...] = ("nearest", "gptq")
    starts: tuple[Rounding, ...] = ("nearest", "gptq")
    methods: tuple[Method, ...] = ("ste", "lsq")
    seeds: int = 3
    draws: int = 5
    examples: int = 256
    calibration_batch: int = 64
    training_examples: int | None = 8_000
    evaluation: int | None = None
    epochs: int = 2
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    scale_learning_rate: float = 0.1
    warmup: float = 0.1
    weight_decay: float = 1e-4
    distillation: float = 1.0
    temperature: float = 2.0
    correct: Correct = "batch_norm"
    shift: int = 4
    flip: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int | None = 50
    float_epochs: int = 15


FULL = Config(
    a_bits=4,
    compression=13.0,
    uniform=(2,),
    starts=("gptq",),
    training_examples=None,
    epochs=300,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.02,
    scale_learning_rate=1.0,
    warmup=0.02,
    distillation=0.5,
    temperature=2.0,
    checkpoint_steps=None,
)
SMOKE = Config(
    model="digits_resnet",
    weights=None,
    data="digits",
    w_bits=(2, 3, 8),
    uniform=(2,),
    seeds=1,
    draws=1,
    examples=64,
    calibration_batch=32,
    training_examples=256,
    evaluation=200,
    epochs=1,
    batch_size=32,
    learning_rate=2e-3,
    shift=0,
    flip=False,
    checkpoint_steps=3,
    float_epochs=2,
)
SCHEDULES = {"short": Config(), "full": FULL}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """Network, images, quantizers by rounding of weights, and allocations by name."""

    network: "Network"
    training: "Split"
    calibration: "Split"
    evaluation: "Split"
    quantizers: "dict[Rounding, Quantizers]"
    allocations: "dict[str, Sized]"


class Sized(NamedTuple):
    """An allocation, and bytes of its weights."""

    allocation: Allocation
    size_bytes: float


def prepare(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> Setting:
    """Calibrate, analyse and allocate."""
    network, dataset = load_trained(
        config.model, config.data, config.weights, folder, data_dir, epochs=config.float_epochs
    )
    draws, rest = set_aside(dataset.heldout, config.draws, config.examples, config.evaluation)
    training = dataset.train
    if config.training_examples is not None:
        order = np.random.default_rng(0).permutation(len(training))
        training = training.take(np.sort(order[: config.training_examples]), seed=0)
    quantizers = calibrated(config, network, draws[0])
    return Setting(
        network=network,
        training=training,
        calibration=draws[0],
        evaluation=rest,
        quantizers=quantizers,
        allocations=allocate(config, network, quantizers["nearest"], draws[0]),
    )


def calibrated(
    config: Config, network: "Network", draw: "Split"
) -> "dict[Rounding, Quantizers]":
    """Scales by least squared error; codes where rounding is not to nearest."""
    import jax

    from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
    from jmpq.quantizers.scales import Quantizers
    from jmpq.quantizers.spec import InputSpec, KernelSpec

    inputs = [x for x, _ in examples_of(draw, config.calibration_batch)]
    activations = None
    if config.a_bits != FLOAT:
        activations = calibrate_activations(
            network, InputSpec(), (config.a_bits, 8), inputs, key=jax.random.key(0)
        )
    found: dict[Rounding, Quantizers] = {}
    for rounding in dict.fromkeys(("nearest", *config.roundings, *config.starts)):
        spec = KernelSpec(rounding=rounding)
        weights = calibrate_weights(network, spec, config.w_bits, inputs)
        found[rounding] = Quantizers(weights=weights, activations=activations)
    return found


def allocate(
    config: Config, network: "Network", quantizers: "Quantizers", draw: "Split"
) -> dict[str, Sized]:
    """The exact allocation at the budget, and uniform ones."""
    from jmpq.formats import Choice, choice_grid
    from jmpq.problem import build_problem, first_and_last, with_budgets
    from jmpq.problem.rules import Allow
    from jmpq.quantizers.spec import KernelSpec
    from jmpq.sensitivity.analyse import analyse
    from jmpq.sensitivity.metrics.taylor import GaussNewton
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.solvers import solve

    a_bits = (FLOAT,) if config.a_bits == FLOAT else (config.a_bits, 8)
    choices = choice_grid(config.w_bits, a_bits)
    moves = MoveNetwork(network=network, quantizers=quantizers)
    data = examples_of(draw, config.calibration_batch)
    table = analyse(moves, GaussNewton(), data, choices)
    names = [layer.name for layer in network.layers]
    rules = (*first_and_last(names, choices), Allow(".*", (f"A{config.a_bits}",)))
    problem = build_problem(
        network.layers,
        table,
        overhead=KernelSpec(),
        rules=rules,
        unquantized_parameters=network.other_parameters,
    )

    def sized(allocation: Allocation) -> Sized:
        return Sized(allocation, problem.evaluate(allocation)[1]["size_bytes"])

    def uniform(bits: int) -> Sized:
        return sized(problem.allocation(problem.uniform(Choice(bits, config.a_bits))))

    if config.compression is None:
        low, part = int(config.bits), config.bits - int(config.bits)
        ends = [uniform(b).size_bytes for b in ([low, low + 1] if part else [low])]
        budget: Any = {"size_bytes": ends[0] + part * (ends[-1] - ends[0])}
        name = f"exact, {config.bits:g} bits"
    else:
        budget = [f"size_bytes={1 / config.compression:.9f}x"]
        name = f"exact, {config.compression:g} times smaller"
    found = solve(with_budgets(problem, budget))
    level = {f"uniform W{b}": uniform(b) for b in config.uniform}
    return {name: sized(found.allocation), **level}


def settings_of(config: Config, method: Method) -> "FinetuneConfig":
    """How to fine-tune."""
    from jmpq.deploy.finetune import FinetuneConfig
    from jmpq.training.loop import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    training = {k: v for k, v in dataclasses.asdict(config).items() if k in names}
    return FinetuneConfig(
        training=TrainConfig(**training),
        method=method,
        scale_learning_rate=config.scale_learning_rate,
        distillation=config.distillation,
        temperature=config.temperature,
        dtype=config.dtype,
        correct=config.correct,
    )


def run(
    config: Config,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    mesh: "Mesh | None" = None,
) -> dict[str, Any]:
    """Every row; interrupted, it goes on from what is in `folder`."""
    import jax

    made = made_by("experiments.finetune", folder)
    setting = prepare(config, folder, data_dir)
    floats, measure = _measurer(setting)
    # What decides all rows; a fine-tuned one also names its settings.
    shared = ("model", "weights", "data", "w_bits", "a_bits", "bits", "compression", "draws",
              "examples", "calibration_batch", "float_epochs")  # fmt: skip
    identity = {name: getattr(config, name) for name in shared}
    journal = Journal(folder / "rows.journal", [identity, setting.evaluation.sha256])
    rows = []

    def add(row: dict[str, Any], make: Any) -> None:
        if (entry := journal.get(key := json.dumps(row))) is None:
            journal.keep(key, result := make())
        else:
            result = entry.value
        rows.append({**row, **result})

    first = next(iter(setting.allocations))
    for name in setting.allocations:
        for rounding in config.roundings:
            for correct in ("none", "batch_norm"):
                add(
                    {"allocation": name, "method": rounding, "correct": correct, "seed": None},
                    functools.partial(_measured, measure, name, rounding, correct),
                )
        for seed in range(config.seeds if name == first else 1):
            for method, start in ways_of(config) if name == first else ways_of(config)[-1:]:
                add(
                    {
                        "allocation": name,
                        "method": method,
                        "start": start,
                        "correct": config.correct,
                        "seed": seed,
                        "settings": json_sha256(
                            [
                                dataclasses.asdict(settings_of(config, method)),
                                setting.training.sha256,
                            ]
                        ),
                    },
                    functools.partial(
                        _finetuned,
                        config,
                        setting,
                        name,
                        method,
                        start,
                        seed,
                        folder,
                        mesh,
                        measure,
                    ),
                )
    return {
        "experiment": "finetune",
        "config": dataclasses.asdict(config),
        **made,
        **weights_of(setting.network),
        "machine": machine(),
        "device": jax.devices()[0].device_kind,
        "devices": 1 if mesh is None else mesh.size,
        "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
        "splits": {"training": setting.training.record(),
                   "calibration": setting.calibration.record(),
                   "evaluation": setting.evaluation.record()},
        "layers": [layer.name for layer in setting.network.layers],
        "allocations": {k: _bits(setting, *a) for k, a in setting.allocations.items()},
        "float": floats,
        "rows": rows,
    }  # fmt: skip


def _bits(setting: Setting, allocation: Allocation, size_bytes: float) -> dict[str, Any]:
    """Bits of every layer's weights and input, in the order of the network."""
    names = [layer.name for layer in setting.network.layers]
    w_bits, a_bits = bit_arrays(names, [allocation])[0].tolist()
    return {"w_bits": w_bits, "a_bits": a_bits, "size_bytes": size_bytes}


def _measurer(setting: Setting) -> tuple[dict[str, Any], Any]:
    """The float outcome, and a function that measures an allocation or a fine-tuned network."""
    from jmpq.data.batches import batches
    from jmpq.deploy.finetuned import Finetuned
    from jmpq.deploy.measure import Evaluator

    size = min(500, len(setting.evaluation))
    inputs = batches(setting.calibration, len(setting.calibration))[0].inputs

    def evaluator(rounding: Rounding, correct: Correct) -> Evaluator:
        return Evaluator(
            setting.network,
            setting.quantizers[rounding],
            lambda: batches(setting.evaluation, size),
            candidates_per_call=1,
            correct=correct,
            examples=inputs,
        )

    plain = evaluator("nearest", "none")

    def measure(
        name: "str | Finetuned", rounding: Rounding = "nearest", correct: Correct = "none"
    ) -> dict[str, Any]:
        if isinstance(name, Finetuned):
            return name.evaluator(plain)([name.allocation])[0].to_json()
        allocation = setting.allocations[name].allocation
        return evaluator(rounding, correct)([allocation])[0].to_json()

    return plain.float_outcome().to_json(), measure


def ways_of(config: Config) -> list[tuple[Method, Rounding]]:
    """Methods and where they start from."""
    found: list[tuple[Method, Rounding]] = []
    for method in config.methods:
        found.append((method, config.starts[0]))
    for start in config.starts[1:]:
        found.append((config.methods[-1], start))
    return found


def _measured(measure: Any, *allocation: str) -> dict[str, Any]:
    return {"measured": measure(*allocation)}


def _finetuned(
    config: Config,
    setting: Setting,
    name: str,
    method: Method,
    start: Rounding,
    seed: int,
    folder: pathlib.Path,
    mesh: "Mesh | None",
    measure: Any,
) -> dict[str, Any]:
    """One fine-tuning: what is measured after it, its curve."""
    import time

    from jmpq.data.batches import batches
    from jmpq.deploy.finetune import finetune
    from jmpq.run import bar, training_curve

    allocation = setting.allocations[name].allocation
    words = ["checkpoints", name, method, start, f"{config.learning_rate:g}", str(seed)]
    at = folder / "_".join(words).replace(" ", "_").replace(",", "")
    began = time.perf_counter()
    with bar(f"{name}, {method} from {start}, seed {seed}", "steps") as progress:
        found = finetune(
            setting.network,
            setting.quantizers[start],
            allocation,
            setting.training,
            settings_of(config, method),
            examples=batches(setting.calibration, len(setting.calibration))[0].inputs,
            seed=seed,
            checkpoints=at,
            mesh=mesh,
            progress=lambda done, total, loss: progress(
                done, total, "" if math.isnan(loss) else f"loss {loss:.4f}"
            ),
        )
    seconds = time.perf_counter() - began
    return {
        "measured": measure(found),
        "seconds": seconds,
        "steps": len(found.losses),
        "curve": training_curve(found.losses),
    }


def main(
    smoke: bool = False,
    schedule: Literal["short", "full"] = "short",
    data_dir: pathlib.Path | None = None,
    folder: pathlib.Path = pathlib.Path("runs/finetune"),
    output: pathlib.Path = RESULTS,
    devices: int | None = None,
    seeds: int | None = None,
    training_examples: int | None = None,
    evaluation: int | None = None,
    learning_rate: float | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Run the experiment.

    Args:
        smoke: The same on a tiny configuration, with embedded data.
        schedule: The short one, for CPUs, or the full one, for a GPU.
        data_dir: Folder with the data set and the weights.
        folder: Folder of rows and checkpoints.
        output: Folder of the JSON file.
        devices: Devices over which the examples of a batch are spread.
        seeds: Another number of seeds.
        training_examples: Another number of training images.
        evaluation: Another number of test images.
        learning_rate: Another peak learning rate.
        dtype: Another precision of products.
    """
    from jmpq.files import write_json
    from jmpq.run.compute import join_devices

    mesh = join_devices(Compute(devices=devices))
    name = "smoke" if smoke else schedule
    config = SMOKE if smoke else SCHEDULES[schedule]
    given = {"seeds": seeds, "training_examples": training_examples, "evaluation": evaluation,
             "learning_rate": learning_rate, "dtype": dtype}  # fmt: skip
    config = dataclasses.replace(config, **{k: v for k, v in given.items() if v})
    end = "" if name == "short" else f"_{name}"
    path = output / f"finetune_{config.model}{end}.json"
    check_output(path, dataclasses.asdict(config))
    write_json(path, run(config, folder / name, data_folder(data_dir, smoke), mesh))
    print(f"Wrote {path}")


if __name__ == "__main__":
    tyro.cli(main)
