"""What allocations become: top-1 of every method at equal size, over draws of calibration.

Post-training, no fine-tuning. At each budget (the size of uniform bits, first and last layer at
8 bits; with activations also its bit operations) every metric's optimum, greedy search, the
quadratic form with cross-layer terms, the search on composed logits and its refinement by
measured KL stand beside uniform, random and reversed allocations, all measured on the same
test images, none of which calibrated anything.

Run:     python -m experiments.outcome --data-dir DIR      (about 2 h on 2 cores, resumable)
         python -m experiments.outcome nearest --data-dir DIR
Smoke:   python -m experiments.outcome --smoke             (a minute, digits)
Writes:  experiments/results/outcome_<network>.json, outcome_<network>_nearest.json
Claims:  experiments/claims/choosing/outcome.py, outcome_nearest.py
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from jaxtyping import Float, Int

from experiments.common.arguments import RESULTS, check_output, data_folder
from experiments.common.networks import examples_of, load_trained, set_aside
from experiments.common.provenance import made_by, weights_of
from jmpq.allocation import Allocation, bit_arrays, translate_columns

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jmpq.data.dataset import Split
    from jmpq.network.network import Network
    from jmpq.problem import Problem
    from jmpq.quantizers.scales import Quantizers
    from jmpq.sensitivity.logits.composed import Composed
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.sensitivity.table import Sensitivity
    from jmpq.solvers import Measurement

Mode = Literal["w", "w gptq", "wa", "wa gptq"]
FLOAT = 32


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        networks: Built-in networks, one result file each.
        weights: Weights below the data folder, {} standing for the name; None to train.
        data: Data set.
        modes: Weights alone (w), or weights and activations (wa), rounded to nearest or by
            the layers' Hessians (gptq).
        w_bits: Candidate bits of weights.
        a_bits: Candidate bits of activations, mode ``wa``.
        budgets: Uniform bits whose size is the budget; between two candidates, in proportion.
        joint_budgets: The same for ``wa``, where the bit operations are a budget too.
        seeds: Draws of calibration examples, held-out images set aside.
        examples: Calibration examples of a draw.
        batch_size: Calibration examples per batch.
        pair_examples: Calibration examples on which all pairs of moves are measured (CLADO),
            in the modes of weights alone; 0 for none.
        random: Random allocations at each budget.
        refine: Allocations that a refinement may measure; 0 for none.
        evaluation: Test images measured on; None for all that no draw has taken.
        epochs: Epochs of training where there are no weights.
    """

    networks: tuple[str, ...] = ("resnet20", "resnet32", "resnet44")
    weights: str | None = "cifar10/{}.safetensors"
    data: str = "cifar10"
    modes: tuple[Mode, ...] = ("w gptq", "wa gptq")
    w_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    a_bits: tuple[int, ...] = (4, 8)
    budgets: tuple[float, ...] = (2.5, 3.0, 4.0, 5.0, 6.0)
    joint_budgets: tuple[float, ...] = (4.0,)
    seeds: int = 5
    examples: int = 256
    batch_size: int = 64
    pair_examples: int = 64
    random: int = 10
    refine: int = 60
    evaluation: int | None = None
    epochs: int = 15


NEAREST = Config(modes=("w",), budgets=(3.0, 4.0), seeds=3, evaluation=2000, pair_examples=0)
STUDIES = {"hessian": Config(), "nearest": NEAREST}  # by rounding
SMOKE = Config(
    networks=("digits_resnet",),
    modes=("w", "wa gptq"),
    weights=None,
    data="digits",
    w_bits=(2, 4, 8),
    budgets=(4.0,),
    seeds=2,
    examples=48,
    batch_size=24,
    pair_examples=8,
    random=2,
    refine=4,
    evaluation=64,
    epochs=1,
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """A network, its data, what one draw of calibration examples gave, and the devices."""

    network: "Network"
    quantizers: "Quantizers"
    calibration: "Split"
    mesh: "Mesh | None"

    @property
    def moves(self) -> "MoveNetwork":
        from jmpq.sensitivity.moves import MoveNetwork

        return MoveNetwork(network=self.network, quantizers=self.quantizers)


def load(
    config: Config, name: str, folder: pathlib.Path, data_dir: pathlib.Path | None
) -> "tuple[Network, list[Split], Split]":
    """The network, a draw of calibration examples for every seed, the images measured on."""
    network, dataset = load_trained(
        name, config.data, config.weights, folder, data_dir, epochs=config.epochs
    )
    draws, rest = set_aside(dataset.heldout, config.seeds, config.examples, config.evaluation)
    return network, draws, rest


def has_activations(mode: Mode) -> bool:
    """Whether activations are quantized."""
    return mode.startswith("wa")


def calibrated(
    config: Config, network: "Network", draw: "Split", mode: Mode, mesh: "Mesh | None"
) -> Setting:
    """Scales by least squared error; those of activations from the draw."""
    import jax

    from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
    from jmpq.quantizers.scales import Quantizers
    from jmpq.quantizers.spec import InputSpec, KernelSpec

    activations = None
    inputs = [x for x, _ in examples_of(draw, config.batch_size)]
    if has_activations(mode):
        key = jax.random.key(draw.seed or 0)
        bits = sorted({*config.a_bits, 8})
        activations = calibrate_activations(network, InputSpec(), bits, inputs, key=key)
    spec = KernelSpec(rounding="gptq" if "gptq" in mode else "nearest")
    weights = calibrate_weights(network, spec, config.w_bits, inputs)
    return Setting(
        network=network,
        quantizers=Quantizers(weights=weights, activations=activations),
        calibration=draw,
        mesh=mesh,
    )


def tables(
    config: Config, setting: Setting, mode: Mode, folder: pathlib.Path
) -> "tuple[dict[str, Sensitivity], Composed, dict[str, float]]":
    """Sensitivities by metric, composed logits, and the seconds that each took.

    What is in the folder is not made again.
    """
    from jmpq.formats import choice_grid
    from jmpq.run.progress import bar
    from jmpq.sensitivity.analyse import analyse
    from jmpq.sensitivity.logits.composed import Composed
    from jmpq.sensitivity.logits.measure import measure_superposed
    from jmpq.sensitivity.logits.superposed import Superposed
    from jmpq.sensitivity.metric import Metric
    from jmpq.sensitivity.metrics.hawq_trace import HawqTrace
    from jmpq.sensitivity.metrics.measured_moves import MeasuredMoves
    from jmpq.sensitivity.metrics.squared_error import SquaredError
    from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, FirstOrder, GaussNewton
    from jmpq.sensitivity.table import load_sensitivities, save_sensitivities

    choices = choice_grid(config.w_bits, config.a_bits if has_activations(mode) else (FLOAT,))
    data = examples_of(setting.calibration, config.batch_size)
    whole = setting.calibration

    def of(split: "Split") -> dict[str, Any]:
        return {"calibration": split.record(), "quantizers": setting.quantizers.sha256}

    def kept(provenance: Mapping[str, Any], split: "Split") -> bool:
        return provenance.items() >= of(split).items()

    path, seconds = folder / "superposed.npz", {}
    if not path.is_file() or not kept(Superposed.load(path).provenance, whole):
        with bar("logit changes", "batches") as progress:
            start = time.perf_counter()
            measured = measure_superposed(
                setting.moves,
                data,
                choices,
                partial=folder / "superposed.partial",
                provenance=of(whole),
                progress=progress,
                mesh=setting.mesh,
            )
        told = {"seconds": time.perf_counter() - start}
        dataclasses.replace(measured, provenance={**of(whole), **told}).save(path)
    composed = Composed(superposed=Superposed.load(path))
    seconds["composed"] = composed.superposed.provenance["seconds"]
    found = {"composed": composed.main_effects([len(t) for _, t in data])}
    of_moves: list[Metric] = [
        GaussNewton(),
        EmpiricalFisher(),
        HawqTrace(traces="probes", num_probes=4),
        SquaredError(),
        FirstOrder(),
    ]
    work: list[tuple[Metric, Split]] = [(metric, whole) for metric in of_moves]
    if config.pair_examples and not has_activations(mode):  # with them longer than all else
        work.append((MeasuredMoves(pairs="all"), whole.take(np.arange(config.pair_examples))))
    for metric, split in work:
        at = folder / f"{metric.about.name}.npz"
        stored = load_sensitivities(at)[metric.about.name] if at.is_file() else None
        if stored is None or not kept(stored.provenance, split):
            with bar(f"{metric.about.name:24s}", "batches") as progress:
                stored = analyse(
                    setting.moves, metric, examples_of(split, config.batch_size), choices,
                    provenance=of(split), partial=at.with_suffix(".partial"),
                    progress=progress, mesh=setting.mesh,
                )  # fmt: skip
            save_sensitivities(at, {metric.about.name: stored})
        seconds[metric.about.name] = stored.provenance["seconds"]
        found[metric.about.name] = stored
    return found, composed, seconds


def stated(
    network: "Network", table: "Sensitivity", mode: Mode, bits: float, *, cross: bool = False
) -> "Problem":
    """The problem at the size, and bit operations, of uniform bits."""
    from jmpq.formats import Choice
    from jmpq.problem import build_problem, first_and_last, with_budgets
    from jmpq.quantizers.spec import KernelSpec

    names = [layer.name for layer in network.layers]
    a_bits = min(c.a_bits for c in table.choices) if has_activations(mode) else FLOAT
    problem = build_problem(
        network,
        table,
        overhead=KernelSpec(),
        rules=first_and_last(names, table.choices, bits=8),
        interactions=cross,
    )
    low, part = int(bits), bits - int(bits)

    def cost(name: str) -> float:
        ends = [low, low + 1] if part else [low]
        at = [problem.uniform(Choice(b, a_bits)) for b in ends]
        values = [problem.evaluate(choice)[1][name] for choice in at]
        return values[0] if not part else (1 - part) * values[0] + part * values[1]

    budgets = {"size_bytes": cost("size_bytes")}
    if has_activations(mode):
        budgets["bops"] = cost("bops")
    return with_budgets(problem, budgets)


def allocations(
    config: Config,
    setting: Setting,
    mode: Mode,
    bits: float,
    found: "dict[str, Sensitivity]",
    composed: "Composed",
    folder: pathlib.Path,
) -> Iterator[dict[str, Any]]:
    """Every method's allocation at one budget: it, its own prediction, seconds."""
    from jmpq.solvers import Greedy, LocalSearch, ObjectiveSearch, refine, solve

    first = stated(setting.network, found["composed"], mode, bits)

    def predict(table: Int[np.ndarray, "_ _"]) -> Float[np.ndarray, " _"]:
        return composed.predict_columns(translate_columns(table, first, composed))

    def row(
        method: str, allocation: Allocation, predicted: float, seconds: float
    ) -> dict[str, Any]:
        return {
            "method": method,
            "allocation": allocation,
            "predicted": predicted,
            "wall_s": seconds,
        }

    for metric, table in found.items():
        problem = stated(setting.network, table, mode, bits)
        for solver, call in (("exact", solve), ("greedy", Greedy())):
            s = call(problem)
            yield row(f"{solver}/{metric}", s.allocation, s.loss, s.wall_s)
    crossed = {m: found[m] for m in ("gauss_newton", "measured_pairs_loss") if m in found}
    if (pairs := crossed.get("measured_pairs_loss")) is not None:
        crossed["measured_pairs_loss_psd"] = pairs.positive_semidefinite()
    for metric, table in crossed.items():
        s = LocalSearch()(stated(setting.network, table, mode, bits, cross=True))
        yield row(f"local_search/{metric}", s.allocation, s.loss, s.wall_s)
    s = ObjectiveSearch(
        objective=predict, name="composed_kl", max_evaluations=5000, start=solve
    )(first)
    yield row("search/composed", s.allocation, s.objective_value, s.wall_s)
    if config.refine:
        start = time.perf_counter()
        measured = refine(
            first,
            s.allocation,
            _kl_of(setting, config),
            predict=predict,
            max_evaluations=config.refine,
            journal=folder / f"refined_{bits:g}.journal",
        )
        seconds = time.perf_counter() - start
        if measured.fresh < measured.evaluations:  # begun by an interrupted run
            share = measured.fresh / measured.evaluations
            seconds = seconds / share if share else float("nan")
        found_one = row("refined/composed", measured.allocation, measured.measured, seconds)
        yield {**found_one, "evaluations": measured.evaluations}


def _kl_of(setting: Setting, config: Config) -> "Measurement":
    """Measured KL on the calibration examples."""
    from jmpq.data.batches import batches
    from jmpq.deploy.measure import Evaluator

    split = setting.calibration
    evaluator = Evaluator(
        setting.network,
        setting.quantizers,
        lambda: batches(split, config.batch_size),
        mesh=setting.mesh,
    )

    return lambda allocations: np.array([o.kl for o in evaluator(allocations)])


class Outcomes:
    """Measured outcomes by allocation, each appended to a file as soon as it is known."""

    def __init__(self, path: pathlib.Path, setting: Setting, split: "Split") -> None:
        from jmpq.data.batches import batches
        from jmpq.deploy.measure import Evaluator

        size = min(256, len(split))
        self.path, self.known = path, {}
        self.evaluator = Evaluator(
            setting.network,
            setting.quantizers,
            lambda: batches(split, size),
            mesh=setting.mesh,
        )
        self.identity = f"{split.sha256} {setting.quantizers.sha256}"
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.is_file() else ():
            row = json.loads(line) if line.endswith("}") else {}  # the last one may be cut
            if row.get("of") == self.identity:
                self.known[row["allocation"]] = row["outcome"]  # by label

    def __call__(self, allocations: Sequence[Allocation]) -> list[dict[str, Any]]:
        from jmpq.run.progress import bar

        left = [a for a in dict.fromkeys(allocations) if a.label not in self.known]
        if not left:
            return [self.known[allocation.label] for allocation in allocations]
        with bar("Measuring", "allocations") as progress, self.path.open("a") as file:
            progress(0, len(left))

            def keep(index: int, outcome: Any) -> None:
                label = left[index].label
                self.known[label] = outcome.to_json()
                row = {"of": self.identity, "allocation": label, "outcome": self.known[label]}
                file.write(json.dumps(row) + "\n")
                file.flush()
                progress(index + 1, len(left))

            self.evaluator(left, done=keep)
        return [self.known[allocation.label] for allocation in allocations]


def _words(pair: Int[np.ndarray, "2 layers"]) -> str:
    """Bits of weights and inputs of all layers as two words; a dot where unquantized."""
    return " ".join("".join("." if b == FLOAT else str(b) for b in row) for row in pair)


def baselines(problem: "Problem", bits: float, num: int | None) -> Iterator[dict[str, Any]]:
    """Uniform bits where they are candidates; with a number reversed greedy and random ones."""
    from jmpq.solvers import random_search, reversed_search

    nan = float("nan")
    if bits == int(bits):
        nearest = min(
            (c for c in problem.choices if c.w_bits == int(bits)), key=lambda c: c.a_bits
        )
        uniform = problem.allocation(problem.uniform(nearest))
        yield {"method": "uniform", "allocation": uniform, "predicted": nan}
    if num is None:
        return
    worst = reversed_search(problem).allocation
    yield {"method": "reversed", "allocation": worst, "predicted": nan}
    for seed in range(num):
        drawn = random_search(problem, seed=seed).allocation
        yield {"method": f"random/{seed}", "allocation": drawn, "predicted": nan}


def run(
    config: Config,
    name: str,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    mesh: "Mesh | None" = None,
    write: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """All allocations of one network; interrupted, it goes on from what is in `folder`.

    Args:
        config: Configuration that is run.
        name: The network.
        folder: Folder of sensitivities and measurements.
        data_dir: Folder of the data set and the weights.
        mesh: Devices over which batches are spread.
        write: Callback, called with the result so far after every mode of a draw.
    """
    import jax

    made = made_by("experiments.outcome", folder)
    from jmpq.files import versions

    network, draws, split = load(config, name, folder, data_dir)
    rows: list[dict[str, Any]] = []
    spent: list[dict[str, Any]] = []
    result = {
        "experiment": "outcome",
        "network": name,
        "config": dataclasses.asdict(config),
        **made,
        **weights_of(network),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "versions": versions("jax", "jaxlib", "flax"),
        "evaluation": split.record(),
        "calibration": [draw.record() for draw in draws],
        "layers": [layer.name for layer in network.layers],
        "float": None,
        "spent": spent,
        "rows": rows,
    }
    for (seed, draw), mode in itertools.product(enumerate(draws), config.modes):
        budgets = config.joint_budgets if has_activations(mode) else config.budgets
        setting = calibrated(config, network, draw, mode, mesh)
        at = folder / mode.replace(" ", "_") / str(seed)
        found, composed, seconds = tables(config, setting, mode, at)
        spent.append({"mode": mode, "seed": seed, "seconds": seconds})
        outcomes = Outcomes(at.parent / "measured.jsonl", setting, split)
        planned: list[tuple[float, Problem, dict[str, Any]]] = []
        for bits in budgets:
            problem = stated(network, found["composed"], mode, bits)
            here = [*allocations(config, setting, mode, bits, found, composed, at)]
            curved = stated(
                network, found["gauss_newton"], mode, bits
            )  # whose order is reversed
            here += baselines(curved, bits, config.random if seed == 0 else None)
            planned += [(bits, problem, row) for row in here]
        # All budgets at once: the compiled program takes several allocations a call.
        chosen = [row["allocation"] for _, _, row in planned]
        measured = outcomes(chosen)
        pairs = bit_arrays(result["layers"], chosen)
        predicted = composed.predict(chosen).tolist()
        for (bits, problem, row), pair, kl, outcome in zip(
            planned, pairs, predicted, measured, strict=True
        ):
            _, costs = problem.evaluate(row["allocation"])
            assert not problem.violated(costs), (row["method"], row["allocation"])
            rows.append(
                {"mode": mode, "seed": seed, "bits": bits, **_plain(row), "composed_kl": kl,
                 "allocation": _words(pair),
                 "size_bytes": costs["size_bytes"], "bops": costs["bops"],
                 "measured": outcome}
            )  # fmt: skip
        result["float"] = outcomes.evaluator.float_outcome().to_json()
        write(result)
    return result


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {
        k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()
    }


def main(
    study: Annotated[Literal["hessian", "nearest"], tyro.conf.Positional] = "hessian",
    smoke: bool = False,
    data_dir: pathlib.Path | None = None,
    folder: pathlib.Path = pathlib.Path("runs/outcome"),
    output: pathlib.Path = RESULTS,
    networks: tuple[str, ...] = (),
    modes: tuple[Mode, ...] = (),
    budgets: tuple[float, ...] = (),
    seeds: int | None = None,
    evaluation: int | None = None,
    devices: int | None = None,
) -> None:
    """Run the experiment.

    Args:
        study: Rounding of the kernels: by the layers' Hessians, or to nearest.
        smoke: The same on a tiny configuration, with embedded data.
        data_dir: Folder with the data set and the weights.
        folder: Folder of sensitivities and measurements.
        output: Folder of the JSON files, one a network.
        networks: Names of networks; all by default.
        modes: Names of modes; all by default.
        budgets: Budgets of weights alone; all by default.
        seeds: Fewer draws of calibration examples.
        evaluation: Fewer test images.
        devices: Devices over which batches are spread; on a CPU one for each core is fastest.
    """
    from jmpq.files import write_json
    from jmpq.run.compute import join_devices
    from jmpq.run.options import Compute

    mesh = join_devices(Compute(devices=devices))
    config = SMOKE if smoke else STUDIES[study]
    given = {"modes": modes, "budgets": budgets, "seeds": seeds, "evaluation": evaluation}
    config = dataclasses.replace(config, **{k: v for k, v in given.items() if v})
    end = "" if study == "hessian" else f"_{study}"
    for name in networks or config.networks:
        path = output / f"outcome_{name}{end}.json"
        check_output(path, dataclasses.asdict(config))
        write = functools.partial(write_json, path, compact=True)
        run(config, name, folder / name, data_folder(data_dir, smoke), mesh, write)
        print(f"Wrote {path}")


if __name__ == "__main__":
    tyro.cli(main)
