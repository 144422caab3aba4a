"""Which sensitivity predicts what quantization really does to a network?

Random joint allocations of ResNet-20, 32 and 44 on CIFAR-10, in three regimes of bits, weights
alone and weights with activations: every metric's prediction beside the measured increase of
the loss and the KL divergence on images that no metric has seen. Metrics are calibrated once
on training images and once on held-out images set aside; both predict the same measurements.

Run:     python -m experiments.fidelity --data-dir DIR       (about 2 h on 2 cores, resumable)
Smoke:   python -m experiments.fidelity --smoke              (a minute, digits)
Writes:  experiments/results/fidelity_<network>.json, one file a network
Claims:  experiments/claims/predicting/fidelity.py
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from jaxtyping import Int

from experiments.common.arguments import RESULTS, data_folder
from experiments.common.networks import examples_of, load_trained
from experiments.common.provenance import made_by, weights_of
from jmpq.allocation import Allocation, column_table

if TYPE_CHECKING:
    from jmpq.data.dataset import Split
    from jmpq.deploy.measure import Outcome
    from jmpq.formats import Choice
    from jmpq.network.network import Network
    from jmpq.quantizers.scales import Quantizers
    from jmpq.sensitivity.logits.superposed import Superposed
    from jmpq.sensitivity.metric import Metric
    from jmpq.sensitivity.table import Sensitivity

Source = Literal["heldout", "train"]
Mode = Literal["w", "wa"]
HALVES = 2  # of the evaluation images: how well one half predicts the other bounds every ρ
FLOAT = 32


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        networks: Built-in networks, one result file each.
        weights: Weights below the data folder, {} standing for the name; None to train.
        data: Data set.
        regimes: Candidate bits, of weights and of activations alike, regime by regime.
        modes: Weights alone, or weights and activations.
        sources: Sources of calibration examples.
        allocations: Random joint allocations per regime and mode.
        examples: Calibration examples.
        evaluation: Examples that the outcome is measured on, network by network.
        batch_size: Examples per batch.
        subsets: Draws of calibration examples, first network only (figure F14).
        many_examples: Examples of the estimates against sample size, first network only (F7).
        closer: Calibration and evaluation examples of a second, closer look at the last
            regime, whose allocations differ least, first network only.
        epochs: Epochs of training where there are no weights.
        seed: Seed of calibration examples and allocations.
    """

    networks: tuple[str, ...] = ("resnet20", "resnet32", "resnet44")
    weights: str | None = "cifar10/{}.safetensors"
    data: str = "cifar10"
    regimes: tuple[tuple[int, ...], ...] = ((2, 3, 4, 8), (3, 4, 8), (4, 8))
    modes: tuple[Mode, ...] = ("w", "wa")
    sources: tuple[Source, ...] = ("heldout", "train")
    allocations: int = 200
    examples: int = 256
    evaluation: tuple[int, ...] = (512, 256, 256)
    batch_size: int = 64
    subsets: int = 6
    many_examples: int = 2048
    closer: tuple[int, int] = (1024, 2048)
    epochs: int = 15
    seed: int = 0


SMOKE = Config(
    networks=("digits_resnet",),
    weights=None,
    data="digits",
    regimes=((2, 4, 8), (4, 8)),
    allocations=8,
    examples=64,
    evaluation=(64,),
    batch_size=32,
    subsets=2,
    many_examples=128,
    closer=(96, 128),
    epochs=1,
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """One network with its quantizers and examples: what all parts of the study share."""

    network: "Network"
    quantizers: "Quantizers"
    calibration: dict[Source, "Split"]
    halves: tuple["Split", ...]  # of the evaluation examples
    pool: "Split"  # held-out examples that are not evaluated

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.network.layers)

    @property
    def choices(self) -> "tuple[Choice, ...]":
        """Every calibrated pair of bits, and tensors left as they are."""
        from jmpq.formats import choice_grid

        activations = self.quantizers.activations
        a_bits = activations.bits if activations else ()
        return choice_grid((*self.quantizers.weights.bits, FLOAT), (*a_bits, FLOAT))


def prepare(
    config: Config, name: str, folder: pathlib.Path, data_dir: pathlib.Path | None
) -> Setting:
    """Network, quantizers and splits; activation ranges come from training images alone."""
    import jax

    from jmpq.data.splits import calibration_split
    from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
    from jmpq.quantizers.scales import Quantizers
    from jmpq.quantizers.spec import InputSpec, KernelSpec

    network, dataset = load_trained(
        name, config.data, config.weights, folder, data_dir, epochs=config.epochs
    )
    size, seed = config.evaluation[config.networks.index(name)], config.seed
    evaluation, pool = calibration_split(dataset, "heldout", examples=size, seed=seed + 1000)
    calibration: dict[Source, Split] = {}
    order = np.random.default_rng(seed).permutation(len(pool))
    calibration["heldout"] = pool.take(np.sort(order[: config.examples]), seed=seed)
    calibration["train"], _ = calibration_split(
        dataset, "train", examples=config.examples, seed=seed
    )
    bits = sorted({b for regime in config.regimes for b in regime})
    inputs = [x for x, _ in examples_of(calibration["train"], config.batch_size)]
    quantizers = Quantizers(
        weights=calibrate_weights(network, KernelSpec(), bits),
        activations=calibrate_activations(
            network, InputSpec(), bits, inputs, key=jax.random.key(seed)
        ),
    )
    halves = tuple(evaluation.take(np.arange(k, size, HALVES)) for k in range(HALVES))
    return Setting(
        network=network,
        quantizers=quantizers,
        calibration=calibration,
        halves=halves,
        pool=pool,
    )


def draw(config: Config, layers: int) -> dict[str, Int[np.ndarray, "allocations 2 layers"]]:
    """Random bits of weights and inputs of every layer, by ``mode/regime``."""
    drawn = {}
    for mode in config.modes:
        for regime in config.regimes:
            rng = np.random.default_rng([config.seed, len(mode), *regime])
            bits = rng.choice(regime, (config.allocations, 2, layers))
            if mode == "w":
                bits[:, 1] = FLOAT
            drawn[f"{mode}/{'-'.join(map(str, regime))}"] = bits
    return drawn


def grown(config: Config, layers: int) -> dict[str, Int[np.ndarray, "allocations 2 layers"]]:
    """Weights of the first k layers at one bit-width, k = 1 to all (F13), by ``grown/bits``."""
    sets = {}
    for b in sorted({b for regime in config.regimes for b in regime})[:3]:
        bits = np.full((layers, 2, layers), FLOAT)
        bits[:, 0][np.tril_indices(layers)] = b
        sets[f"grown/{b}"] = bits
    return sets


def measure(
    config: Config,
    setting: Setting,
    sets: dict[str, Int[np.ndarray, "allocations 2 layers"]],
    splits: "Sequence[Split]",
    path: pathlib.Path,
) -> dict[str, list[list["Outcome"]]]:
    """Outcome of every allocation on each of several splits.

    Every result is appended to `path` (JSON lines) at once; what is there is not measured
    again.
    """
    import json

    from jmpq.data.batches import batches
    from jmpq.deploy.measure import Evaluator, Outcome
    from jmpq.files import json_sha256
    from jmpq.run.progress import bar

    identity = json_sha256(
        {
            "splits": [split.sha256 for split in splits],
            "quantizers": setting.quantizers.sha256,
            "sets": {name: bits.tolist() for name, bits in sets.items()},
        }
    )
    known: dict[tuple[str, int], list[Outcome]] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        for line in path.read_text().splitlines():
            row = json.loads(line) if line.endswith("}") else {}  # the last one may be cut
            if row.get("identity") == identity:
                known[row["set"], row["index"]] = [Outcome(**o) for o in row["halves"]]
    evaluators = [
        Evaluator(
            setting.network,
            setting.quantizers,
            lambda split=split: batches(split, config.batch_size),
        )
        for split in splits
    ]
    jobs = [(name, i) for name, bits in sets.items() for i in range(len(bits))]
    left = [job for job in jobs if job not in known]
    step = evaluators[0].candidates_per_call
    with bar("measure", "allocations") as progress, path.open("a") as file:
        for start in range(0, len(left), step):
            progress(len(jobs) - len(left) + start, len(jobs))
            chunk = left[start : start + step]
            allocations = [
                Allocation.from_bits(setting.layers, sets[name][i]) for name, i in chunk
            ]
            columns = [evaluate(allocations) for evaluate in evaluators]
            for job, *halves in zip(chunk, *columns, strict=True):
                known[job] = halves
                record = [dataclasses.asdict(outcome) for outcome in halves]
                row = {"identity": identity, "set": job[0], "index": job[1], "halves": record}
                file.write(json.dumps(row) + "\n")
            file.flush()
        progress(len(jobs), len(jobs))
    return {name: [known[name, i] for i in range(len(bits))] for name, bits in sets.items()}


def metrics_for(costly: bool) -> "list[Metric]":
    """The metrics of the study that need the network.

    `costly` adds those by Hessian products: leading eigenvalues, the exact Hessian.
    """
    from jmpq.sensitivity.metrics.hawq_eigenvalue import HawqEigenvalue, QBert
    from jmpq.sensitivity.metrics.hawq_trace import HawqTrace
    from jmpq.sensitivity.metrics.output_fisher import OutputFisher
    from jmpq.sensitivity.metrics.path_attribution import PathAttribution
    from jmpq.sensitivity.metrics.squared_error import SquaredError
    from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, ExactHessian, GaussNewton

    metrics: list[Metric] = [
        GaussNewton(),
        EmpiricalFisher(),
        OutputFisher(),
        HawqTrace(traces="probes", num_probes=4),
        SquaredError(),
        PathAttribution(),
    ]
    return [*metrics, HawqEigenvalue(), QBert(), ExactHessian()] if costly else metrics


def analyse_all(
    config: Config,
    setting: Setting,
    source: Source,
    metrics: "Sequence[Metric]",
    folder: pathlib.Path,
) -> "dict[str, Sensitivity]":
    """Every metric on one set of calibration examples; finished ones are read from `folder`."""
    from jmpq.run.progress import bar
    from jmpq.sensitivity.analyse import analyse
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.sensitivity.table import load_sensitivities, save_sensitivities

    split = setting.calibration[source]
    moves = MoveNetwork(network=setting.network, quantizers=setting.quantizers)
    choices = setting.choices
    data = examples_of(split, config.batch_size)
    provenance = {"calibration": split.record(), "quantizers": setting.quantizers.sha256}
    found = {}
    for metric in metrics:
        path = folder / source / f"{metric.about.name}.npz"
        if path.is_file():
            stored = load_sensitivities(path)[metric.about.name]
            if all(stored.provenance[k] == v for k, v in provenance.items()):
                found[metric.about.name] = stored
                continue
        with bar(f"{source} {metric.about.name:24s}", "batches") as progress:
            found[metric.about.name] = analyse(
                moves,
                metric,
                data,
                choices,
                seed=config.seed,
                partial=path.with_suffix(".partial"),
                provenance=provenance,
                progress=progress,
            )
        save_sensitivities(path, {metric.about.name: found[metric.about.name]})
        path.with_suffix(".partial").unlink(missing_ok=True)
    return found


def superpose(
    config: Config, setting: Setting, source: Source, folder: pathlib.Path
) -> "Superposed":
    """Logit changes of every move on one set of calibration examples."""
    from jmpq.run.progress import bar
    from jmpq.sensitivity.logits.measure import measure_superposed
    from jmpq.sensitivity.logits.superposed import Superposed
    from jmpq.sensitivity.moves import MoveNetwork

    split = setting.calibration[source]
    provenance = {"calibration": split.record(), "quantizers": setting.quantizers.sha256}
    path = folder / source / "superposed.npz"
    if path.is_file():
        stored = Superposed.load(path)
        if stored.provenance == provenance:
            return stored
    with bar(f"{source} superposed", "batches") as progress:
        found = measure_superposed(
            MoveNetwork(network=setting.network, quantizers=setting.quantizers),
            examples_of(split, config.batch_size),
            setting.choices,
            provenance=provenance,
            progress=progress,
        )
    found.save(path)
    return found


def run(
    config: Config, name: str, folder: pathlib.Path, data_dir: pathlib.Path | None
) -> dict[str, Any]:
    """The study of one network; interrupted, it goes on from what is in `folder`."""
    from jmpq.files import versions

    made = made_by("experiments.fidelity", folder)
    setting = prepare(config, name, folder, data_dir)
    first = name == config.networks[0]
    drawn = draw(config, len(setting.layers))
    extra = grown(config, len(setting.layers))
    seen = setting.calibration["heldout"]
    outcomes = measure(
        config, setting, {**drawn, **extra}, setting.halves, folder / "measured.jsonl"
    )
    within = {}
    if first:  # the calibration examples themselves: no sampling error between the two
        within = measure(config, setting, drawn, [seen], folder / "measured_within.jsonl")
    result: dict[str, Any] = {
        "experiment": "fidelity",
        "network": name,
        "config": dataclasses.asdict(config),
        **made,
        **weights_of(setting.network),
        "cores": os.cpu_count(),
        "versions": versions("jax", "jaxlib", "flax"),
        "device": _device(),
        "layers": list(setting.layers),
        "splits": {
            **{
                f"calibration_{source}": s.record() for source, s in setting.calibration.items()
            },
            **{f"evaluation_half_{k}": half.record() for k, half in enumerate(setting.halves)},
        },
        "sets": {
            key: {
                "bits": [[_digits(row) for row in pair] for pair in bits],
                "measured": _measured(outcomes[key]),
                **({"measured_within": _measured(within[key])} if key in within else {}),
            }
            for key, bits in {**drawn, **extra}.items()
        },
        "sources": {},
    }
    for source in config.sources:
        result["sources"][source] = predictions(
            config, setting, source, first, {**drawn, **extra}, folder
        )
    if first:
        result["closer"] = closer_look(config, setting, drawn, folder)
        result["samples"] = against_samples(config, setting, folder)
        result["subsets"] = against_subsets(config, setting, drawn, folder)
        result["costs"] = costs(config, setting, folder)
    return result


def predictions(
    config: Config,
    setting: Setting,
    source: Source,
    first: bool,
    sets: dict[str, Int[np.ndarray, "allocations 2 layers"]],
    folder: pathlib.Path,
) -> dict[str, Any]:
    """What every metric predicts for every set of allocations, and what it cost.

    Variants of a metric: its ``sum`` over layers, with the ``first`` order term, with the
    ``cross`` terms, with both.
    """
    from jmpq.sensitivity.logits.composed import Composed

    superposed = superpose(config, setting, source, folder)
    costly = first and source == "heldout"
    found = analyse_all(config, setting, source, metrics_for(costly), folder)
    found |= from_changes(superposed, found["gauss_newton"])
    columns = {key: _columns(superposed, bits) for key, bits in sets.items()}
    record: dict[str, Any] = {}
    for name, sensitivity in found.items():
        record[name] = {
            "unit": sensitivity.unit,
            "seconds": sensitivity.provenance.get("seconds"),
            "batch_seconds": sensitivity.provenance.get("batch_seconds"),
            "predicted": {key: _variants(sensitivity, table) for key, table in columns.items()},
        }
    joint: dict[str, Callable[..., Any]] = {
        "superposed": superposed.predict_columns,
        "composed": Composed(superposed=superposed).predict_columns,
        "gains": Composed(superposed=superposed, ridge=1e9).predict_columns,
    }
    for name, predict in joint.items():
        record[name] = {
            "unit": "nats per example",
            "predicted": {
                key: {"kl": _short(predict(c, "kl")), "loss": _short(predict(c, "loss"))}
                for key, c in columns.items()
            },
        }
    record["composed_additive"] = {
        "unit": "nats per example",
        "predicted": {
            key: {"sum": _short(_additive(config, superposed, columns[key]))}
            for key in sets
            if not key.startswith("grown")
        },
    }
    matrix = found["gauss_newton"]
    return {
        "metrics": record,
        "weight_blocks": _weight_blocks(matrix) if costly else None,
    }


def _weight_blocks(matrix: "Sensitivity") -> dict[str, Any]:
    """Cross-layer terms of the weights at their fewest and at four bits (F12)."""
    bits = [move.bits if move.kind == "w" else 0 for move in matrix.moves]
    blocks = {}
    for b in sorted({min(filter(None, bits)), 4}):
        at = np.flatnonzero(np.array(bits) == b)
        blocks[str(b)] = [_short(row) for row in matrix.second[np.ix_(at, at)]]
    return blocks


def from_changes(superposed: "Superposed", like: "Sensitivity") -> "dict[str, Sensitivity]":
    """Metrics that follow from the logit changes alone, and the first order that is known.

    Gauss-Newton by difference; the measured increase of every single move, weights and inputs
    apart. No forward pass that was not made for the changes.
    """
    import jax.numpy as jnp

    from jmpq.curvature.ggn import ggn_of_changes, gradient_of_changes
    from jmpq.training.losses import cross_entropy

    z, targets, u = map(
        jnp.asarray, (superposed.logits, superposed.targets, superposed.changes)
    )
    first = gradient_of_changes(cross_entropy, z, targets, u).mean(axis=0)
    matrix = ggn_of_changes(cross_entropy, z, targets, u)
    nothing = np.zeros(len(like.moves))
    index = {(c.w_bits, c.a_bits): k for k, c in enumerate(superposed.choices)}
    alone = np.full((len(like.moves), len(like.layers)), index[FLOAT, FLOAT])
    for m, move in enumerate(like.moves):
        pair = (move.bits, FLOAT) if move.kind == "w" else (FLOAT, move.bits)
        alone[m, like.layers.index(move.layer)] = index[pair]
    terms = {
        "first_order": (like.first, nothing),
        "gauss_newton_difference": (first, matrix),
        "measured_kl": (nothing, np.diag(2 * superposed.predict_columns(alone, "kl"))),
        "measured_loss": (nothing, np.diag(2 * superposed.predict_columns(alone, "loss"))),
    }
    found = {}
    for name, (linear, quadratic) in terms.items():
        linear, quadratic = np.asarray(linear, np.float64), np.asarray(quadratic, np.float64)
        square = quadratic if quadratic.ndim == 2 else np.diag(quadratic)
        by_choice = np.einsum("icm,mk,ick->ic", like.members, square, like.members)
        found[name] = dataclasses.replace(
            like,
            metric=name,
            first=linear,
            second=quadratic,
            batch_first=(like.members @ linear)[None],
            batch_second=0.5 * by_choice[None],
            batch_examples=np.array([float(len(z))]),
            use_first=name == "first_order",
            provenance={},
        )
    return found


def _variants(sensitivity: "Sensitivity", table: Int[np.ndarray, "_ _"]) -> dict[str, Any]:
    plain = dataclasses.replace(sensitivity, use_first=False)
    with_first = dataclasses.replace(sensitivity, use_first=True)
    if sensitivity.use_first:  # the first-order term is the metric
        return {"sum": _short(with_first.predict_columns(table))}
    found = {"sum": _short(plain.predict_columns(table))}
    if sensitivity.first.any():
        found["first"] = _short(with_first.predict_columns(table))
    if sensitivity.has_interactions:
        found["cross"] = _short(plain.predict_columns(table, interactions=True))
        if sensitivity.first.any():
            found["first_cross"] = _short(with_first.predict_columns(table, interactions=True))
    return found


def _additive(
    config: Config, superposed: "Superposed", table: Int[np.ndarray, "_ _"]
) -> np.ndarray:
    """The additive losses of the composed prediction, over the choices of one regime."""
    from jmpq.sensitivity.logits.composed import Composed

    used = np.unique(table)
    regime = dataclasses.replace(superposed, choices=tuple(superposed.choices[c] for c in used))
    counts = [config.batch_size] * (len(superposed.logits) // config.batch_size)
    found = Composed(superposed=regime).main_effects(counts, seed=config.seed)
    return found.predict_columns(np.searchsorted(used, table))


def closer_look(
    config: Config,
    setting: Setting,
    drawn: dict[str, Int[np.ndarray, "allocations 2 layers"]],
    folder: pathlib.Path,
) -> dict[str, Any]:
    """The last regime again, by more held-out examples on both sides."""
    from jmpq.sensitivity.logits.composed import Composed
    from jmpq.sensitivity.metrics.taylor import GaussNewton

    calibration, evaluation = config.closer
    order = np.random.default_rng([config.seed, 2]).permutation(len(setting.pool))
    seen = setting.pool.take(np.sort(order[:calibration]), seed=config.seed)
    unseen = order[calibration : calibration + evaluation]
    halves = tuple(setting.pool.take(np.sort(unseen[k::HALVES])) for k in range(HALVES))
    last = "-".join(map(str, config.regimes[-1]))
    sets = {key: bits for key, bits in drawn.items() if key.endswith(f"/{last}")}
    outcomes = measure(config, setting, sets, halves, folder / "measured_closer.jsonl")
    here = dataclasses.replace(setting, calibration={"heldout": seen})
    at = folder / "closer"
    superposed = superpose(config, here, "heldout", at)
    found = analyse_all(config, here, "heldout", [GaussNewton()], at)
    by_difference = from_changes(superposed, found["gauss_newton"])
    columns = {key: _columns(superposed, bits) for key, bits in sets.items()}
    composed = Composed(superposed=superposed)
    return {
        "calibration": seen.record(),
        "evaluation": [half.record() for half in halves],
        "measured": {key: _measured(outcomes[key]) for key in sets},
        "predicted": {
            key: {
                "gauss_newton": _variants(found["gauss_newton"], table),
                "gauss_newton_difference": _variants(
                    by_difference["gauss_newton_difference"], table
                ),
                "superposed": {"kl": _short(superposed.predict_columns(table))},
                "composed": {"kl": _short(composed.predict_columns(table))},
            }
            for key, table in columns.items()
        },
    }


def against_samples(
    config: Config, setting: Setting, folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """Losses of every layer by growing numbers of held-out examples (F7)."""
    from jmpq.sensitivity.metrics.hawq_trace import HawqTrace
    from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, GaussNewton

    order = np.random.default_rng(config.seed + 1).permutation(len(setting.pool))
    many = setting.pool.take(np.sort(order[: config.many_examples]), seed=config.seed + 1)
    larger = dataclasses.replace(setting, calibration={"heldout": many})
    metrics = [GaussNewton(), EmpiricalFisher(), HawqTrace(traces="probes")]
    found = analyse_all(config, larger, "heldout", metrics, folder / "samples")
    curves = {}
    for name, s in found.items():
        column = [k for k, choice in enumerate(s.choices) if choice.a_bits == FLOAT]
        lowest = s.batch_second[:, :, column[0]]  # weights at the fewest bits
        count = np.cumsum(s.batch_examples)
        mean = np.cumsum(lowest * s.batch_examples[:, None], axis=0) / count[:, None]
        squares = np.cumsum(np.square(lowest) * s.batch_examples[:, None], axis=0)
        variance = squares / count[:, None] - np.square(mean)
        batches = np.arange(1, len(count) + 1)[:, None]
        sem = np.sqrt(np.maximum(variance, 0.0) / np.maximum(batches - 1, 1))
        keep = np.unique(np.geomspace(2, len(count), 8).astype(int)) - 1
        curves[name] = {
            "examples": count[keep].tolist(),
            "losses": [_short(row) for row in mean[keep]],
            "sem": [_short(row) for row in sem[keep]],
        }
    return curves


def against_subsets(
    config: Config,
    setting: Setting,
    drawn: dict[str, Int[np.ndarray, "allocations 2 layers"]],
    folder: pathlib.Path,
) -> list[dict[str, Any]]:
    """Predictions from several draws of held-out calibration examples (F14)."""
    from jmpq.sensitivity.logits.composed import Composed
    from jmpq.sensitivity.metrics.taylor import GaussNewton

    sets = {key: bits for key, bits in drawn.items() if key.startswith("w/")}
    rows = []
    for k in range(config.subsets):
        order = np.random.default_rng([config.seed, k, 14]).permutation(len(setting.pool))
        split = setting.pool.take(np.sort(order[: config.examples]), seed=k)
        # Weights alone: a quarter of the work.
        weights = dataclasses.replace(setting.quantizers, activations=None)
        here = dataclasses.replace(setting, calibration={"heldout": split}, quantizers=weights)
        at = folder / f"subset_{k}"
        superposed = superpose(config, here, "heldout", at)
        (newton,) = analyse_all(config, here, "heldout", [GaussNewton()], at).values()
        columns = {key: _columns(superposed, bits) for key, bits in sets.items()}
        plain = dataclasses.replace(newton, use_first=False)
        composed = Composed(superposed=superposed)
        rows.append(
            {
                "split": split.record(),
                "losses": [_short(row) for row in newton.losses],
                "predicted": {
                    key: {
                        "gauss_newton": _short(plain.predict_columns(c)),
                        "gauss_newton_cross": _short(
                            plain.predict_columns(c, interactions=True)
                        ),
                        "superposed": _short(superposed.predict_columns(c)),
                        "composed": _short(composed.predict_columns(c)),
                    }
                    for key, c in columns.items()
                },
            }
        )
    return rows


def costs(config: Config, setting: Setting, folder: pathlib.Path) -> dict[str, Any]:
    """Seconds of every metric for one batch, compiled, beside a forward pass (T2).

    Kept in ``costs.json``: remove it to measure again on a machine that does nothing else.
    """
    import json
    import time

    import jax
    import jax.numpy as jnp

    from jmpq.files import write_json
    from jmpq.sensitivity.logits.composed import Composed
    from jmpq.sensitivity.logits.measure import measure_superposed
    from jmpq.sensitivity.metrics.measured_moves import MeasuredMoves
    from jmpq.sensitivity.metrics.taylor import FirstOrder, GaussNewton
    from jmpq.sensitivity.moves import MoveNetwork

    path = folder / "costs.json"
    if path.is_file():
        return json.loads(path.read_text())
    moves = MoveNetwork(network=setting.network, quantizers=setting.quantizers)
    batch = examples_of(setting.calibration["heldout"], config.batch_size)[0]
    inputs, targets = jax.tree.map(jnp.asarray, batch)
    key = jax.random.key(config.seed)

    def seconds(call: Callable[[], Any], repeats: int) -> float:
        jax.block_until_ready(call())  # compiles
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - start)
        return float(np.median(taken))

    forward = jax.jit(setting.network.logits)
    found: dict[str, Any] = {
        "examples": len(targets),
        "moves": len(moves.moves),
        "load": os.getloadavg()[0],
        "forward": seconds(lambda: forward(inputs), 9),
    }
    metrics = [*metrics_for(True), FirstOrder(), GaussNewton(changes="difference")]
    for metric in (*metrics, MeasuredMoves(kind="kl")):
        long = ("hessian", "measured_kl", "hawq_eigenvalue", "qbert")
        repeats = 1 if metric.about.name in long else 3
        found[metric.about.name] = seconds(
            lambda m=metric: m(moves, inputs, targets, key), repeats
        )
    data = [(inputs, targets)]
    measure_changes = lambda: measure_superposed(moves, data, setting.choices).logits  # noqa: E731
    found["composed"] = found["superposed"] = seconds(measure_changes, 1)
    whole = superpose(config, setting, "heldout", folder)
    thousand = np.random.default_rng(0).integers(
        0, len(setting.choices), (1000, len(setting.layers))
    )
    for name, predictor in (("composed", Composed(superposed=whole)), ("superposed", whole)):
        predict = functools.partial(predictor.predict_columns, thousand)
        found[f"{name}_1000_predictions"] = seconds(predict, 3)
    write_json(path, found)
    return found


def _columns(
    superposed: "Superposed", bits: Int[np.ndarray, "allocations 2 layers"]
) -> Int[np.ndarray, "allocations layers"]:
    allocations = [Allocation.from_bits(superposed.layers, row) for row in bits]
    return column_table(superposed.layers, superposed.choices, allocations)


def _measured(outcomes: "Sequence[Sequence[Outcome]]") -> dict[str, Any]:
    """Means over splits, and each split's own; standard errors of the means."""
    fields = ("kl", "increase", "top1")
    table = {f: np.array([[getattr(o, f) for o in row] for row in outcomes]) for f in fields}
    sem = {
        f"{f}_sem": np.array(
            [np.sqrt(np.mean([getattr(o, f"{f}_sem") ** 2 for o in row]) / len(row))
             for row in outcomes]
        )
        for f in fields
    }  # fmt: skip
    result: dict[str, Any] = {f: _short(values.mean(axis=1)) for f, values in table.items()}
    result |= {name: _short(values) for name, values in sem.items()}
    if len(outcomes[0]) > 1:
        result["kl_halves"] = [_short(row) for row in table["kl"].T]
        result["increase_halves"] = [_short(row) for row in table["increase"].T]
    return result


def _digits(bits: Int[np.ndarray, " layers"]) -> str:
    """Bits of all layers in one word; a dot where a tensor is not quantized."""
    return "".join("." if b == FLOAT else str(b) for b in bits)


def _short(values: np.ndarray) -> list[float]:
    """Five significant digits: more than the measurement has."""
    return [float(f"{v:.5g}") for v in np.asarray(values, np.float64)]


def _device() -> str:
    import jax

    return jax.devices()[0].device_kind


def main(
    smoke: bool = False,
    data_dir: pathlib.Path | None = None,
    folder: pathlib.Path = pathlib.Path("runs/fidelity"),
    output: pathlib.Path = RESULTS,
    networks: tuple[str, ...] = (),
) -> None:
    """Run the study.

    Args:
        smoke: The same on a tiny configuration, with embedded data.
        data_dir: Folder with the data set and the weights.
        folder: Folder of measurements and sensitivities.
        output: Folder of the JSON files, one a network.
        networks: Names of networks; all by default.
    """
    from jmpq.files import write_json

    config = SMOKE if smoke else Config()
    for name in networks or config.networks:
        result = run(config, name, folder / name, data_folder(data_dir, smoke))
        write_json(output / f"fidelity_{name}.json", result, compact=True)
        print(f"Wrote {output / f'fidelity_{name}.json'}")


if __name__ == "__main__":
    tyro.cli(main)
