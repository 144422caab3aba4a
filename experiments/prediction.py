"""Predictions of random allocations from few calibration images, for those and for others.

Composed logits predict the increase on the images that they were measured on; what is wanted
is the increase on others. Every prediction is scored twice, against the KL divergence measured
on the calibration images and on evaluation images, beside what measuring the allocations
themselves on the calibration images would score. Transferred logits apply the changes of the
calibration images to the float logits of many others (`jmpq.sensitivity.logits.transferred`),
which cost one forward pass each.

Run:     python -m experiments.prediction --data-dir DIR      (10 min on 2 cores, resumable)
         --network resnet32, resnet44: networks that transferring was not found on
Smoke:   python -m experiments.prediction --smoke             (half a minute, digits)
Writes:  experiments/results/prediction_NETWORK.json
Claims:  experiments/claims/predicting/prediction.py
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from jaxtyping import Float

from experiments.common.arguments import ResumableArguments
from experiments.common.networks import examples_of
from experiments.common.provenance import machine, made_by, weights_of
from experiments.fidelity import Config as Fidelity
from experiments.fidelity import Setting, draw, prepare
from jmpq.allocation import Allocation, column_table
from jmpq.files import versions, write_json
from jmpq.journal import Journal
from jmpq.study.source import source_sha256
from jmpq.study.statistics import rank_correlation, rank_correlation_difference

if TYPE_CHECKING:
    from jmpq.data.dataset import Split
    from jmpq.sensitivity.logits.superposed import Superposed

MODULES = ("experiments.prediction",)  # what a result is made by
Sets = Mapping[str, Float[np.ndarray, "allocations examples"]]
RESNET20 = Fidelity(
    networks=("resnet20",),
    allocations=40,
    examples=192,
    evaluation=(1024,),
    regimes=((2, 3, 4, 8), (3, 4, 8), (4, 8)),
)
DIGITS = Fidelity(
    networks=("digits_resnet",),
    weights=None,
    data="digits",
    regimes=((2, 4, 8),),
    allocations=6,
    examples=64,
    evaluation=(64,),
    batch_size=32,
    epochs=1,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        fidelity: Network, data, regimes, calibration and evaluation examples, allocations.
        others: Images of which only the float logits are taken.
        bins: Bins of certainty that changes are transferred in.
        resamples: Bootstrap samples of allocations.
    """

    fidelity: Fidelity = RESNET20
    others: int = 2048
    bins: int = 16
    resamples: int = 2000


SMOKE = Config(fidelity=DIGITS, others=128, bins=8, resamples=50)


def of_examples(
    setting: Setting,
    split: "Split",
    sets: Mapping[str, Any],
    batch_size: int,
    path: pathlib.Path,
) -> Sets:
    """Measured KL divergence of every allocation and example; what is known is not repeated."""
    from jmpq.data.batches import batches
    from jmpq.deploy.measure import Evaluator
    from jmpq.run.progress import bar

    of = {"split": split.sha256, "quantizers": setting.quantizers.sha256}
    journal = Journal(path, of)
    evaluator = Evaluator(
        setting.network, setting.quantizers, lambda: batches(split, batch_size)
    )
    found = {}
    for name, bits in sets.items():
        allocations = [Allocation.from_bits(setting.layers, each) for each in bits]
        keys = [allocation.label for allocation in allocations]
        lacking = [i for i, key in enumerate(keys) if journal.get(key) is None]
        with bar(f"{name} on {len(split)}", "allocations") as progress:

            def keep(i: int, scores: Any, lacking: Any = lacking, keys: Any = keys) -> None:
                kl = scores[1].astype(np.float32)
                journal.keep(keys[lacking[i]], arrays={"kl": kl})
                progress(i + 1, len(lacking))

            evaluator([allocations[i] for i in lacking], scored=keep)
        rows = [journal.get(key) for key in keys]
        found[name] = np.stack([row.arrays["kl"] for row in rows if row]).astype(np.float64)
    return found


def float_logits(setting: Setting, split: "Split", batch_size: int) -> Float[np.ndarray, "n c"]:
    """Logits of the float network."""
    import jax
    import jax.numpy as jnp

    logits = jax.jit(lambda network, x: network.logits(x))
    parts = [logits(setting.network, jnp.asarray(x)) for x, _ in examples_of(split, batch_size)]
    return np.concatenate([np.asarray(part) for part in parts])


def superposed_of(setting: Setting, config: Fidelity, folder: pathlib.Path) -> "Superposed":
    """Logit changes of every move alone, on the calibration examples."""
    from jmpq.run.progress import bar
    from jmpq.sensitivity.logits.measure import measure_superposed
    from jmpq.sensitivity.moves import MoveNetwork

    calibration = setting.calibration["heldout"]
    of = {"split": calibration.sha256, "quantizers": setting.quantizers.sha256}
    with bar("logit changes", "batches") as progress:
        return measure_superposed(
            MoveNetwork(network=setting.network, quantizers=setting.quantizers),
            examples_of(calibration, config.batch_size),
            setting.choices,
            partial=folder / "moves.journal",
            of=of,
            progress=progress,
        )


def collected(
    config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None
) -> dict[str, Any]:
    """Everything that predictions are made of and scored by."""
    fidelity = config.fidelity
    setting = prepare(fidelity, fidelity.networks[0], folder, data_dir)
    sets = draw(fidelity, len(setting.layers))
    calibration = setting.calibration["heldout"]
    evaluation = setting.halves
    taken = np.isin(setting.pool.indices, calibration.indices)
    others = setting.pool.take(np.flatnonzero(~taken)[: config.others])
    size = fidelity.batch_size
    start = time.process_time()
    superposed = superposed_of(setting, fidelity, folder)
    spent = {"changes_cpu_s": time.process_time() - start}
    start = time.process_time()
    many = float_logits(setting, others, size)
    spent["float_logits_cpu_s"] = time.process_time() - start
    of_calibration = of_examples(
        setting, calibration, sets, size, folder / "calibration.journal"
    )
    halves = [
        of_examples(setting, half, sets, size, folder / f"evaluation_{i}.journal")
        for i, half in enumerate(evaluation)
    ]
    return {
        "layers": setting.layers,
        "sets": sets,
        "superposed": superposed,
        "float_logits": many,
        "calibration": of_calibration,
        "evaluation": {n: np.concatenate([h[n] for h in halves], axis=1) for n in sets},
        "spent": spent,
        "weights": weights_of(setting.network),
        "splits": {
            "calibration": calibration.record(),
            "evaluation": [half.record() for half in evaluation],
            "others": others.record(),
        },
    }


def scored(config: Config, found: Mapping[str, Any]) -> dict[str, Any]:
    """Rank correlations and scales of both predictions, on both sets of images."""
    from jmpq.sensitivity.logits.composed import Composed
    from jmpq.sensitivity.logits.transferred import Transferred

    composed = Composed(superposed=found["superposed"])
    transferred = Transferred(composed=composed, logits=found["float_logits"], bins=config.bins)
    result = {}
    for name, bits in found["sets"].items():
        allocations = [Allocation.from_bits(found["layers"], each) for each in bits]
        table = column_table(composed.layers, composed.choices, allocations)
        measured = {k: found[k][name].mean(axis=1) for k in ("calibration", "evaluation")}
        start = time.process_time()
        predicted = {"composed": composed.predict_columns(table)}
        middle = time.process_time()
        predicted["transferred"] = transferred.predict_columns(table)
        seconds = {"composed": middle - start, "transferred": time.process_time() - middle}
        options: dict[str, Any] = {"resamples": config.resamples}
        evaluation = measured["evaluation"]
        result[name] = {
            "bits": bits.tolist(),
            "measured": {k: v.tolist() for k, v in measured.items()},
            "predicted": {k: v.tolist() for k, v in predicted.items()},
            "transferred_sem": transferred.standard_errors(table).tolist(),
            "predict_cpu_s": seconds,
            "rho": {
                where: {
                    how: list(rank_correlation(values, target, **options))
                    for how, values in predicted.items()
                }
                for where, target in measured.items()
            },
            "rho_of_measuring": list(
                rank_correlation(measured["calibration"], evaluation, **options)
            ),
            "rho_gain": list(
                rank_correlation_difference(
                    predicted["transferred"], predicted["composed"], evaluation, **options
                )
            ),
            "scale": {
                how: np.quantile(values / evaluation, [0.25, 0.5, 0.75]).tolist()
                for how, values in predicted.items()
            },
        }
    return result


def run(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """The experiment; interrupted, it goes on from what is in `folder`."""
    return result_of(config, collected(config, folder, data_dir), source_sha256(*MODULES))


def result_of(config: Config, found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The result as it is committed."""
    return {
        "experiment": "prediction",
        "network": config.fidelity.networks[0],
        "config": dataclasses.asdict(config),
        **made_by("experiments.prediction"),
        "source_sha256": source,
        **found["weights"],
        "machine": machine(),
        "cores": os.cpu_count(),
        "versions": versions("jax", "jaxlib", "flax", "scipy"),
        "splits": found["splits"],
        "spent": found["spent"],
        "sets": scored(config, found),
    }


@dataclasses.dataclass(frozen=True)
class PredictionArguments(ResumableArguments):
    """Predict random allocations from few images, and score it on those and on others."""

    network: Literal["resnet20", "resnet32", "resnet44"] = "resnet20"
    """Network on CIFAR-10. ResNet-20 is the one that transferring was found on."""

    def config(self) -> Config:
        """What is run."""
        if self.smoke:
            return SMOKE
        fidelity = dataclasses.replace(RESNET20, networks=(self.network,))
        return dataclasses.replace(Config(), fidelity=fidelity)


def main() -> None:
    """Run, and write the result."""
    given = tyro.cli(PredictionArguments, description=__doc__)
    config = given.config()
    name = f"prediction_{config.fidelity.networks[0]}"
    result = run(config, given.work(name), given.data())
    write_json(given.result(name), result, compact=True)
    print(f"Wrote {given.result(name)}")


if __name__ == "__main__":
    main()
