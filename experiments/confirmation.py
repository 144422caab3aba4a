"""Does the default choose best on networks that it was not chosen on? A confirmation.

ResNet-20 decided the default: exact optima by Gauss-Newton sums. Fixed before this was run, it
is compared here on ResNet-32 and ResNet-44 with other sensitivities, with searches on composed
logits and with uniform, reversed and random bits, at equal size: kernels rounded to nearest and
by GPTQ, and kernels with inputs under budgets of size and of bit operations. Several draws of
calibration images; every outcome on the same images in all draws, so that differences are
paired over draws and images (`jmpq.study.statistics.paired_difference`), and p-values are
corrected for the number of rivals of a row (Holm).

Run:     python -m experiments.confirmation --data-dir DIR    (4 h on one core, resumable)
         --networks resnet32 replaces its part of the result alone
Smoke:   python -m experiments.confirmation --smoke           (a minute, digits)
Writes:  experiments/results/confirmation.json
Claims:  experiments/claims/choosing/confirmation.py
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tyro

from experiments.common.arguments import NetworksArguments
from experiments.common.provenance import machine, made_by, versions
from jmpq.files import write_json
from jmpq.quantizers.spec import Rounding
from jmpq.run.options import Evaluate, Layers, Train
from jmpq.run.progress import TERMINAL
from jmpq.sensitivity.metrics.by_name import MetricName
from jmpq.study.grid import Baseline, StudiedNetwork, Study
from jmpq.study.statistics import Estimate, holm, paired_difference, two_level_mean
from jmpq.study.study import StudyTable, run_study

DEFAULT = "gauss_newton/exact"
VALUES = ("kl", "top1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Candidates, roundings and budgets that belong together."""

    bits: str
    rounding: tuple[Rounding, ...]
    budgets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        networks: Built-in networks.
        data: Data set of the networks.
        weights: Folder of the weights below the data folder; empty to train them here.
        parts: Candidates and budgets by name.
        metrics: Sensitivities, the default first.
        solvers: Solvers; ``search`` of metric composed alone.
        baselines: Allocations without a sensitivity.
        random: Random allocations of a draw.
        draws: Seeds of the calibration images.
        examples: Calibration images.
        evaluation: Images measured on.
        epochs: Epochs of training where there are no weights.
    """

    networks: tuple[str, ...] = ("resnet32", "resnet44")
    data: str = "cifar10"
    weights: str = "cifar10"
    parts: Mapping[str, Part] = dataclasses.field(
        default_factory=lambda: {
            "W": Part(
                bits="W2,3,4,6,8",
                rounding=("nearest", "gptq"),
                budgets=("size_bytes=8%", "size_bytes=W3", "size_bytes=W4"),
            ),
            "WA": Part(
                bits="W2,3,4,8 A3,4,8",
                rounding=("nearest",),
                budgets=("size_bytes=W4A4 bops=W4A4",),
            ),
        }
    )
    metrics: tuple[MetricName, ...] = (
        "gauss_newton", "empirical_fisher", "hawq_trace", "squared_error", "composed",
    )  # fmt: skip
    solvers: tuple[str, ...] = ("exact", "search")
    baselines: tuple[Baseline, ...] = ("uniform", "reversed", "random")
    random: int = 3
    draws: tuple[int, ...] = (0, 1, 2)
    examples: int = 256
    evaluation: int = 4000
    epochs: int = 15


SMOKE = Config(
    networks=("digits_resnet",),
    data="digits",
    weights="",
    parts={"W": Part(bits="W2,4,8", rounding=("nearest",), budgets=("size_bytes=W4",))},
    metrics=("gauss_newton", "squared_error"),
    solvers=("exact",),
    random=1,
    draws=(0, 1),
    examples=64,
    evaluation=200,
    epochs=1,
)


def run(
    config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None, output: pathlib.Path
) -> dict[str, Any]:
    """All networks and parts; each is written when it is done, parts in the file stay.

    Args:
        config: Configuration that is run.
        folder: Folder of the cells.
        data_dir: Folder of the images and weights; None for embedded data.
        output: File of the result.

    Returns:
        The result: by ``network/part`` the rows of `compared`, and seconds of the processor.
    """
    found: dict[str, Any] = json.loads(output.read_text()) if output.is_file() else {}
    result = {"experiment": "confirmation", "parts": dict(found.get("parts", {}))}
    for network in config.networks:
        for name, part in config.parts.items():
            here = folder / network
            asked = {
                "config": json.loads(json.dumps(dataclasses.asdict(config))),
                **made_by("experiments.confirmation", here),
                "machine": machine(),
                "versions": versions("jax", "flax", "numpy"),
            }
            study = study_of(config, network, part, data_dir)
            table = run_study(study, here, reporter=TERMINAL)
            spent = json.loads((here / "spent.json").read_text())
            result["parts"][f"{network}/{name}"] = {
                **asked,
                "seconds": spent,
                "rows": compared(table),
            }
            write_json(output, result)
    return result


def study_of(config: Config, network: str, part: Part, data_dir: pathlib.Path | None) -> Study:
    """The study of a network and part."""
    layers = Layers(model=network, data=config.data, data_dir=data_dir)
    train = None
    if config.weights:
        assert data_dir is not None
        weights = data_dir / config.weights / f"{network}.safetensors"
        layers = dataclasses.replace(layers, weights=weights)
    else:
        train = Train(model=network, data=config.data, epochs=config.epochs)
    return Study(
        networks={network: StudiedNetwork(layers=layers, train=train)},
        draws=config.draws,
        examples=(config.examples,),
        bits=(part.bits,),
        rounding=part.rounding,
        metrics=config.metrics,
        solvers=config.solvers,
        budgets=part.budgets,
        baselines=config.baselines,
        random=config.random,
        evaluate=Evaluate(examples=config.evaluation),
    )


def compared(table: StudyTable) -> list[dict[str, Any]]:
    """Every method beside the default, by rounding and budget.

    Values of a method are means over images and draws; of random allocations, of each draw's
    mean. A difference is the method's value less the default's. ``p_holm`` is its p-value
    corrected for the rivals of the same rounding and budget.
    """
    places = list(dict.fromkeys((row["rounding"], row["budget"]) for row in table.rows))
    found = []
    for rounding, budget in places:
        here = [r for r in table.rows if (r["rounding"], r["budget"]) == (rounding, budget)]
        methods: dict[str, list[Mapping[str, Any]]] = {}
        for row in here:
            solver = "" if row["solver"] == "baseline" else f"/{row['solver']}"
            methods.setdefault(f"{row['metric']}{solver}", []).append(row)
        found += _beside_default(table, methods, {"rounding": rounding, "budget": budget})
    return found


def _beside_default(
    table: StudyTable,
    methods: Mapping[str, Sequence[Mapping[str, Any]]],
    axes: Mapping[str, Any],
) -> list[dict[str, Any]]:
    samples = {
        name: {value: _Sample.of(table, rows, value) for value in VALUES}
        for name, rows in methods.items()
        if all(row.get("outcomes") for row in rows)  # an infeasible budget has none
    }
    rows = []
    for name, sample in samples.items():
        row: dict[str, Any] = {**axes, "method": name}
        row["size_bytes"] = sorted({r["size_bytes"] for r in methods[name]})
        for value in VALUES:
            row[value] = _estimate(sample[value].estimate)
            row[f"{value}_draws"] = sample[value].means
            if name != DEFAULT:
                less = sample[value].less(samples[DEFAULT][value])
                row[f"{value}_difference"] = _estimate(less)
        rows.append(row)
    rivals = [row for row in rows if row["method"] != DEFAULT]
    for value in VALUES:
        key = f"{value}_difference"
        corrected = holm(np.array([row[key]["p"] for row in rivals]))
        for row, p in zip(rivals, corrected, strict=True):
            row[key]["p_holm"] = float(p)
    return rows


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Values of a method: one for every draw and image."""

    values: np.ndarray
    draws: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, table: StudyTable, rows: Sequence[Mapping[str, Any]], value: str) -> "_Sample":
        """Those of a method; the mean of a draw's allocations, where it has several."""
        several: dict[int, list[np.ndarray]] = {}
        images: dict[int, np.ndarray] = {}
        for row in rows:
            found = table.examples(row, value)
            assert found is not None
            several.setdefault(row["draw"], []).append(found[0])
            images[row["draw"]] = found[1]  # the same for every allocation of a draw
        return cls(
            np.concatenate([np.mean(several[draw], axis=0) for draw in images]),
            np.concatenate([np.full(len(at), draw) for draw, at in images.items()]),
            np.concatenate(list(images.values())),
        )

    @property
    def estimate(self) -> Estimate:
        """The mean over draws and images."""
        return two_level_mean(self.values, self.draws, self.images)

    @property
    def means(self) -> list[float]:
        """The mean of every draw."""
        return [float(self.values[self.draws == draw].mean()) for draw in np.unique(self.draws)]

    def less(self, other: "_Sample") -> Estimate:
        """Mean of the paired differences."""
        assert np.array_equal(self.draws, other.draws)
        assert np.array_equal(self.images, other.images)
        return paired_difference(self.values, other.values, self.draws, self.images)


def _estimate(found: Estimate) -> dict[str, float]:
    low, high = found.interval()
    return {"mean": found.mean, "sem": found.sem, "low": low, "high": high, "p": found.p_value}


@dataclasses.dataclass(frozen=True)
class ConfirmationArguments(NetworksArguments):
    """Confirm the default on other networks. Parts that are not run stay in the result."""

    def config(self) -> Config:
        """What is run.

        Raises:
            ValueError: If there is no such network.
        """
        config = SMOKE if self.smoke else Config()
        chosen = self.chosen({name: name for name in config.networks})
        return dataclasses.replace(config, networks=chosen)


def main() -> None:
    """Run, and write the result after every part."""
    given = tyro.cli(ConfirmationArguments, description=__doc__)
    run(given.config(), given.work("confirmation"), given.data(), given.result("confirmation"))


if __name__ == "__main__":
    main()
