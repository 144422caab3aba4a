"""A small BERT, trained here on SST-2 from nothing: allocated, measured, fine-tuned.

Two encoder layers of 128 features (`bert_tiny`) and a WordPiece vocabulary, both made from the
training sentences by `jmpq train`. Every encoder matrix at 2 to 8 bits with 16 groups of output
neurons, embeddings and pooler at 8 bits, the classifier float; at the bytes of uniform bits:
uniform, Q-BERT's rule, the exact knapsack by Gauss-Newton and by the empirical Fisher, and the
same with the bits of embeddings searched too; weights alone, and with activations at 8 bits.
Besides: bits of embeddings and of activations apart, and what fine-tuning recovers at the
smallest budget. Calibrated on sentences of the labelled test part, accuracy on the development
part.

Run:     python -m experiments.bert.sst2 --data-dir DIR      (15 minutes of a core; resumable)
Smoke:   python -m experiments.bert.sst2 --smoke             (a minute, a random encoder)
Writes:  experiments/results/sst2.json
Claims:  experiments/claims/sst2.py
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from experiments.bert.minilm import ENCODER_LAYER, FLOAT, Rows, qbert_rule
from experiments.bert.minilm import specs as specs_of
from experiments.common.arguments import ResumableArguments
from experiments.common.provenance import machine, made_by, versions, weights_of
from jmpq.allocation import Allocation
from jmpq.formats import Choice, choice_grid

if TYPE_CHECKING:
    from jmpq.data.dataset import Source, Split
    from jmpq.deploy.measure import Evaluator
    from jmpq.network.network import Network
    from jmpq.problem import Problem
    from jmpq.quantizers.scales import Quantizers
    from jmpq.sensitivity.table import Sensitivity

EMBEDDING_BITS, ACTIVATION_BITS = 8, 8
LENGTHS = (16, 32, 80)  # of batches: few, as every one is compiled
PINNED = ("pooler/.*",)
EMBEDDINGS = "embeddings/.*"
TUNED = "exact/gauss_newton"  # fine-tuned from, at the last budget


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        model: Built-in network, trained here; ``random`` for a random one on random tokens.
        epochs: Epochs of its training, AdamW.
        batch_size: Sentences per step, of the fine-tuning too.
        learning_rate: Peak of the training.
        vocab_size: Tokens of the vocabulary.
        groups: Groups of a matrix's output neurons; of an embedding's columns.
        w_bits: Candidate bits.
        budgets: Average bits of the encoder: bytes of uniform bits, between two of them for a
            fraction.
        mixes: Q-BERT's two bit-widths at each budget.
        lone_bits: Bits of embeddings alone.
        lone_a_bits: Bits of activations alone.
        examples: Calibration sentences of the test part.
        calibration_batch: Sentences per calibration batch.
        subsets: Subsets of the calibration sentences for eigenvalues.
        subset_sentences: Sentences in each, of at most 16 tokens.
        evaluation_batch: Sentences per batch of the development part.
        methods: Ways to fine-tune, from `TUNED` at the last budget.
        training_examples: Training sentences to fine-tune on.
        tuning_epochs: Passes over them.
        tuning_rate: Peak learning rate.
        seeds: Seeds of fine-tuning.
        seed: Seed of everything else.
    """

    model: Literal["bert_tiny", "bert_mini", "random"] = "bert_tiny"
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 1e-3
    vocab_size: int = 8000
    groups: int = 16
    w_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    budgets: tuple[float, ...] = (4.0, 3.0, 2.5)
    mixes: tuple[tuple[int, int], ...] = ((3, 5), (2, 4), (2, 3))
    lone_bits: tuple[int, ...] = (8, 4, 2)
    lone_a_bits: tuple[int, ...] = (8, 4)
    examples: int = 256
    calibration_batch: int = 64
    subsets: int = 5
    subset_sentences: int = 16
    evaluation_batch: int = 218
    methods: tuple[Literal["ste", "lsq"], ...] = ("ste", "lsq")
    training_examples: int = 8_000
    tuning_epochs: int = 1
    tuning_rate: float = 5e-4
    seeds: int = 2
    seed: int = 0


SMOKE = Config(
    model="random",
    batch_size=16,
    groups=2,
    w_bits=(2, 3, 8),
    budgets=(2.5,),
    mixes=((2, 3),),
    lone_bits=(2,),
    lone_a_bits=(8,),
    examples=24,
    calibration_batch=12,
    subsets=2,
    subset_sentences=8,
    evaluation_batch=50,
    methods=("ste",),
    training_examples=64,
    seeds=1,
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """The float network and its sentences; calibration and evaluation shortest first."""

    network: "Network"
    training: "Split"
    calibration: "Split"
    evaluation: "Split"

    def allocation(
        self, w_bits: Mapping[str, int], rest: int = EMBEDDING_BITS, a_bits: int = FLOAT
    ) -> Allocation:
        """Weight bits as given, the other layers' at `rest`; all inputs at `a_bits`."""
        names = [layer.name for layer in self.network.layers]
        return Allocation({x: Choice(w_bits.get(x, rest), a_bits) for x in names})


def load(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> Setting:
    """Train the network, where that is not done; draw the sentences."""
    from jmpq import run as steps
    from jmpq.data.text.glue import by_length, glue
    from jmpq.network.network import Network
    from jmpq.run.folder import TOKENIZER, WEIGHTS

    if config.model == "random":
        return _random(config)
    run = folder / "float"
    if not (run / TOKENIZER).is_file():  # written last
        options = steps.Train(
            model=config.model,
            data="sst2",
            data_dir=data_dir,
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            vocab_size=config.vocab_size,
            seed=config.seed,
        )
        steps.train(run, options, reporter=steps.TERMINAL)
    spec = steps.NetworkSpec(
        model=config.model,
        weights=WEIGHTS,
        data="sst2",
        data_dir=None if data_dir is None else str(data_dir),
        tokenizer=TOKENIZER,
    )
    dataset = steps.load_data(spec, run)
    assert dataset.tokenizer is not None
    test = glue("sst2", dataset.tokenizer, data_dir, heldout="test").heldout
    whole = steps.load_network(spec, run, dataset)
    network = Network.from_function(
        whole.apply, whole.params, _example(test), ignore=("classifier/kernel",)
    )
    drawn = [
        split.take(
            np.sort(np.random.default_rng(config.seed).permutation(len(split))[:count]),
            seed=config.seed,
        )
        for split, count in (
            (dataset.train, config.training_examples),
            (test, config.examples),
        )
    ]
    return Setting(
        network=network,
        training=_trimmed(drawn[0]),
        calibration=_trimmed(by_length(drawn[1])),
        evaluation=_trimmed(by_length(dataset.heldout)),
    )


def _example(split: "Split") -> Any:
    return split.normalization(split.take(np.arange(1)).inputs)


def _trimmed(split: "Split") -> "Split":
    from jmpq.data.dataset import TrimPadding

    return dataclasses.replace(split, normalization=TrimPadding(lengths=LENGTHS))


def _random(config: Config) -> Setting:
    """A random classifier of two layers; labels are its own answers, some of them wrong."""
    import jax

    from jmpq.data.dataset import TrimPadding, whole_split
    from jmpq.network.network import Network
    from jmpq.zoo.bert import Bert, BertConfig

    sizes = BertConfig(
        vocab_size=40, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=16,
        max_positions=16,
    )  # fmt: skip
    rng = np.random.default_rng(config.seed)

    def draw(count: int) -> dict[str, np.ndarray]:
        mask = np.arange(12) < rng.integers(3, 13, (count, 1))
        ids = rng.integers(1, sizes.vocab_size, (count, 12)) * mask
        found = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
        return {name: x.astype(np.int32) for name, x in found.items()}

    module = Bert(sizes, "classification")
    variables = module.init(jax.random.key(config.seed), draw(1))
    variables = jax.tree.map(
        lambda x: x + 0.3 * rng.normal(size=x.shape).astype("f"), variables
    )
    network = Network.from_linen(module, variables, draw(1), ignore=("classifier/kernel",))

    def split(source: "Source", count: int) -> "Split":
        tokens = draw(count)
        scores = np.asarray(network.apply(network.params, tokens))
        labels = scores.argmax(1) ^ (rng.random(count) < 0.1)
        return whole_split("random", source, tokens, labels, TrimPadding(lengths=LENGTHS))

    return Setting(
        network=network,
        training=split("train", config.training_examples),
        calibration=split("train", config.examples),
        evaluation=split("heldout", 2 * config.evaluation_batch),
    )


def run(
    config: Config,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    write: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Everything; what is in the folder is not made again.

    Args:
        config: Configuration that is run.
        folder: Folder of the network and of finished parts.
        data_dir: Folder of the data.
        write: Callback, called with the result so far.
    """
    import jax

    made = made_by("experiments.bert.sst2", folder)
    from jmpq.data.batches import batches
    from jmpq.deploy.measure import Evaluator
    from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
    from jmpq.quantizers.scales import Quantizers

    folder.mkdir(parents=True, exist_ok=True)
    setting = load(config, folder, data_dir)
    splits = {
        name: getattr(setting, name).record()
        for name in ("training", "calibration", "evaluation")
    }
    # Every fine-tuned row names its seed.
    shared = {k: v for k, v in dataclasses.asdict(config).items() if k != "seeds"}
    rows = Rows(folder / "rows.journal", {"config": shared, "splits": splits})
    examples = batches(setting.calibration, config.calibration_batch, last="keep")
    data = [(b.inputs, b.labels) for b in examples]
    weight_spec, activation_spec = specs_of(config.groups)
    quantizers = Quantizers(
        weights=calibrate_weights(
            setting.network,
            weight_spec,
            sorted({*config.w_bits, EMBEDDING_BITS, *config.lone_bits}),
        ),
        activations=calibrate_activations(
            setting.network,
            activation_spec,
            sorted({ACTIVATION_BITS, *config.lone_a_bits}),
            [x for x, _ in data],
            key=jax.random.key(config.seed),
        ),
    )
    evaluator = Evaluator(
        setting.network,
        quantizers,
        lambda: batches(setting.evaluation, config.evaluation_batch),
        candidates_per_call=1,
    )

    def measured(allocation: Allocation) -> dict[str, Any]:
        return rows.get(allocation.label, lambda: evaluator([allocation])[0].to_json())

    layers = setting.network.layers
    result: dict[str, Any] = {
        "experiment": "sst2",
        "config": dataclasses.asdict(config),
        **made,
        **weights_of(setting.network),
        "machine": machine(),
        "device": jax.devices()[0].device_kind,
        "versions": versions("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers"),
        "splits": splits,
        "parameters": {
            "embeddings": sum(x.parameters for x in layers if x.name.startswith("embeddings/")),
            "encoder": sum(x.parameters for x in layers if x.name.startswith("encoder/")),
        },
        "float": rows.get("float", lambda: evaluator.float_outcome().to_json()),
    }
    eigenvalues = _eigenvalues(config, setting, quantizers, rows)
    tables = _tables(setting, quantizers, data, folder)
    planned = allocations(config, setting, tables, eigenvalues)
    result |= {
        "eigenvalues": eigenvalues,
        "joint": [
            {
                **row,
                "mode": mode,
                "measured": measured(setting.allocation(row["w_bits"], a_bits=a_bits)),
            }
            for row in planned
            for mode, a_bits in (("w", FLOAT), ("wa", ACTIVATION_BITS))
        ],
        "embeddings": [
            {
                "bits": bits,
                "measured": measured(
                    setting.allocation(
                        {x.name: bits for x in layers if x.kind == "embedding"}, FLOAT
                    )
                ),
            }
            for bits in config.lone_bits
        ],
        "activations": [
            {"bits": bits, "measured": measured(setting.allocation({}, FLOAT, bits))}
            for bits in config.lone_a_bits
        ],
    }
    write(result)
    tune = functools.partial(_tuned, config, setting, quantizers, evaluator, folder)
    result["tuned"] = []
    for row in planned:
        if row["bits"] != config.budgets[-1] or row["method"] != TUNED:
            continue
        for method in config.methods:
            for seed in range(config.seeds):
                key = f"{method} {seed} {setting.allocation(row['w_bits']).label}"
                found = rows.get(key, functools.partial(tune, row["w_bits"], method, seed))
                of = {"allocation": row["method"], "bits": row["bits"]}
                result["tuned"].append({**of, "method": method, "seed": seed, **found})
                write(result)
    return result


def _eigenvalues(
    config: Config, setting: Setting, quantizers: "Quantizers", rows: Rows
) -> dict[str, list[float]]:
    """λ of every encoder layer on every subset, for Q-BERT's rule."""
    import jax
    import jax.numpy as jnp

    from jmpq.data.batches import make_batch
    from jmpq.sensitivity.metrics.hawq_eigenvalue import QBert
    from jmpq.sensitivity.moves import MoveNetwork

    metric = QBert(block=ENCODER_LAYER)
    moves = MoveNetwork(network=setting.network, quantizers=quantizers)
    encoder = [
        block
        for block in metric.blocks(setting.network)
        if setting.network.layers[block[0]].name.startswith("encoder/")
    ]
    names = [
        "/".join(setting.network.layers[block[0]].name.split("/")[:3]) for block in encoder
    ]
    assert setting.calibration.lengths is not None
    short = np.flatnonzero(setting.calibration.lengths <= LENGTHS[0])

    def of_subset(subset: int) -> list[float]:
        rng = np.random.default_rng([config.seed, subset])
        chosen = np.sort(rng.choice(short, config.subset_sentences, replace=False))
        batch = make_batch(setting.calibration, chosen)
        key = jax.random.key(subset)
        pairs = metric.eigenvalues(moves, batch.inputs, jnp.asarray(batch.labels), key)
        by_block = dict(zip(map(tuple, metric.blocks(setting.network)), pairs, strict=True))
        found = []
        for block in encoder:
            pair = by_block[tuple(block)]
            assert pair is not None
            found.append(float(pair.values[0]))
        return found

    found = [
        rows.get(f"eigenvalues {n}", functools.partial(of_subset, n))
        for n in range(config.subsets)
    ]
    return {name: [values[i] for values in found] for i, name in enumerate(names)}


def _tables(
    setting: Setting, quantizers: "Quantizers", data: list, folder: pathlib.Path
) -> "dict[str, Sensitivity]":
    """Gauss-Newton and empirical Fisher of every matrix and embedding."""
    from jmpq.run.progress import bar
    from jmpq.sensitivity.analyse import analyse
    from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, GaussNewton
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.sensitivity.table import load_sensitivities, save_sensitivities

    weights = dataclasses.replace(quantizers, activations=None)
    moves = MoveNetwork(network=setting.network, quantizers=weights)
    provenance = {
        "calibration": setting.calibration.record(),
        "quantizers": quantizers.sha256,
    }
    found = {}
    for metric in (GaussNewton(), EmpiricalFisher()):
        at = folder / f"{metric.about.name}.npz"
        table = load_sensitivities(at)[metric.about.name] if at.is_file() else None
        if table is None or any(table.provenance.get(k) != v for k, v in provenance.items()):
            with bar(metric.about.name, "batches") as progress:
                table = analyse(
                    moves, metric, data, choice_grid(quantizers.weights.bits),
                    provenance=provenance, partial=at.with_suffix(".partial"),
                    progress=progress,
                )  # fmt: skip
            save_sensitivities(at, {metric.about.name: table})
            at.with_suffix(".partial").unlink(missing_ok=True)
        found[metric.about.name] = table
    return found


def stated(
    config: Config,
    setting: Setting,
    table: "Sensitivity",
    bits: float,
    *,
    embeddings: bool = False,
) -> "Problem":
    """Weights alone at the bytes of uniform bits with embeddings at 8 bits.

    Args:
        config: Says the candidates.
        setting: The network.
        table: Sensitivities.
        bits: Bits of the uniform encoder.
        embeddings: Whether bits of embeddings are searched too, at the same bytes.
    """
    from jmpq.problem import Overhead, Pin, build_problem, with_budgets

    layers = setting.network.layers

    def problem(pinned: tuple[str, ...]) -> "Problem":
        return build_problem(
            layers,
            table,
            overhead=Overhead.of(layers, specs_of(config.groups)[0]),
            rules=[Pin(x, Choice(EMBEDDING_BITS)) for x in pinned],
            choices=choice_grid({*config.w_bits, EMBEDDING_BITS}),
            unquantized_parameters=setting.network.other_parameters,
        )

    whole = problem((*PINNED, EMBEDDINGS))
    low, part = int(bits), bits - int(bits)
    sizes = [
        whole.evaluate(whole.uniform(Choice(b)))[1]["size_bytes"]
        for b in ([low, low + 1] if part else [low])
    ]
    size = sizes[0] + part * (sizes[-1] - sizes[0])
    return with_budgets(problem(PINNED) if embeddings else whole, {"size_bytes": size})


def allocations(
    config: Config,
    setting: Setting,
    tables: "dict[str, Sensitivity]",
    eigenvalues: Mapping[str, list[float]],
) -> list[dict[str, Any]]:
    """Every method's bits at every budget, with their bytes."""
    from jmpq.problem import Overhead, allocation_costs
    from jmpq.solvers import solve

    layers = setting.network.layers
    overhead = Overhead.of(layers, specs_of(config.groups)[0])
    encoder = [x.name for x in layers if x.name.startswith("encoder/")]
    found = []
    for bits, mix in zip(config.budgets, config.mixes, strict=True):
        problem = stated(config, setting, tables["gauss_newton"], bits)
        chosen: dict[str, Mapping[str, int]] = {
            "uniform": dict.fromkeys(encoder, int(bits)),
            "qbert": qbert_rule(problem, eigenvalues, *mix),
        }
        for end, embeddings in (("", False), ("/embeddings", True)):
            for name, table in tables.items():
                own = stated(config, setting, table, bits, embeddings=embeddings)
                best = solve(own).allocation
                chosen[f"exact/{name}{end}"] = {k: c.w_bits for k, c in best.items()}
        for method, w_bits in chosen.items():
            allocation = setting.allocation(w_bits)
            costs = allocation_costs(
                layers,
                allocation,
                overhead,
                unquantized_parameters=setting.network.other_parameters,
            )
            found.append(
                {
                    "bits": bits,
                    "method": method,
                    "w_bits": w_bits,
                    "size_bytes": costs["size_bytes"],
                    "budget_bytes": problem.budgets["size_bytes"],
                    "predicted": _predicted(tables, allocation),
                }
            )
    return found


def _predicted(tables: "dict[str, Sensitivity]", allocation: Allocation) -> dict[str, float]:
    """Loss of a joint allocation by each metric; ``_full`` with cross-layer terms."""
    values = {}
    for name, table in tables.items():
        values[name] = float(table.predict([allocation])[0])
        values[f"{name}_full"] = float(table.predict([allocation], interactions=True)[0])
    return values


def _tuned(
    config: Config,
    setting: Setting,
    quantizers: "Quantizers",
    evaluator: "Evaluator",
    folder: pathlib.Path,
    w_bits: Mapping[str, int],
    method: Literal["ste", "lsq"],
    seed: int,
) -> dict[str, Any]:
    """Fine-tuned from an allocation of weights: what is measured after it, its curve."""
    from jmpq.deploy.finetune import FinetuneConfig, finetune
    from jmpq.files import json_sha256
    from jmpq.run import bar, training_curve
    from jmpq.training.loop import TrainConfig

    training = TrainConfig(
        epochs=config.tuning_epochs,
        batch_size=config.batch_size,
        learning_rate=config.tuning_rate,
        weight_decay=1e-4,
        checkpoint_steps=100,
    )
    settings = FinetuneConfig(training=training, method=method, temperature=2.0, correct="none")
    allocation = setting.allocation(w_bits)
    of = [dataclasses.asdict(settings), allocation.label, seed, setting.training.sha256]
    began = time.perf_counter()
    with bar(f"{method}, seed {seed}", "steps") as progress:
        found = finetune(
            setting.network,
            quantizers,
            allocation,
            setting.training,
            settings,
            seed=seed,
            checkpoints=folder / "checkpoints" / json_sha256(of)[:12],
            progress=lambda done, total, loss: progress(done, total),
        )
    seconds = time.perf_counter() - began
    return {
        "measured": found.evaluator(evaluator)([found.allocation])[0].to_json(),
        "seconds": seconds,
        "steps": len(found.losses),
        "curve": training_curve(found.losses),
    }


def main() -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    given = tyro.cli(ResumableArguments, description=__doc__)
    config = SMOKE if given.smoke else Config()
    write = functools.partial(write_json, given.result("sst2"))
    write(run(config, given.work("sst2"), given.data_dir, write))


if __name__ == "__main__":
    main()
