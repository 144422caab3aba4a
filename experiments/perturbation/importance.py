"""Importance is not fragility: traces, quadratic forms and measured damage, over bits (F20).

The trace of a layer's Hessian says how much the network depends on the layer (importance); the
damage is what rounding it to b bits costs (fragility). Between them stand the size of the
perturbation, and its direction. Every layer of ResNet-20 is rounded alone, to each bit-width;
the KL divergence is measured on the images that the predictions are made from, so that no
sampling stands between them.

Run:     python -m experiments.perturbation.importance --data-dir DIR    (5 min on one core)
Smoke:   python -m experiments.perturbation.importance --smoke           (seconds, digits)
Writes:  experiments/results/importance.json
Claims:  experiments/claims/predicting/importance.py
"""

import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING, Any

import tyro

from experiments.common.arguments import ResumableArguments
from experiments.common.networks import examples_of, load_trained, set_aside
from experiments.common.provenance import machine, made_by, versions, weights_of
from jmpq.journal import Journal

if TYPE_CHECKING:
    from jmpq.data.dataset import Split
    from jmpq.network.network import Network
    from jmpq.sensitivity.metric import Metric


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        networks: Built-in networks.
        weights: Weights below the data folder, {} standing for the name; None to train.
        data: Data set.
        roundings: Roundings of the kernels.
        w_bits: Bits of the kernels.
        draws: Draws of calibration examples, held out.
        examples: Examples of a draw.
        batch_size: Examples per batch.
        epochs: Epochs of training where there are no weights.
    """

    networks: tuple[str, ...] = ("resnet20",)
    weights: str | None = "cifar10/{}.safetensors"
    data: str = "cifar10"
    roundings: tuple[str, ...] = ("nearest", "gptq")
    w_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    draws: int = 3
    examples: int = 256
    batch_size: int = 64
    epochs: int = 15


SMOKE = Config(
    networks=("digits_resnet",),
    weights=None,
    data="digits",
    w_bits=(2, 8),
    draws=1,
    examples=16,
    batch_size=8,
    epochs=1,
)


def metrics() -> "list[Metric]":
    """What is compared; the last one is the damage."""
    from jmpq.sensitivity.metrics.hawq_trace import HawqTrace
    from jmpq.sensitivity.metrics.measured_moves import MeasuredMoves
    from jmpq.sensitivity.metrics.squared_error import SquaredError
    from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, GaussNewton

    return [
        HawqTrace(traces="exact"),
        SquaredError(),
        EmpiricalFisher(),
        GaussNewton(),
        MeasuredMoves(kind="kl"),
    ]


def tables(
    config: Config, network: "Network", draw: "Split", rounding: str
) -> dict[str, list[list[float]]]:
    """Losses by metric, then by bit-width, then by layer."""
    import numpy as np

    from jmpq.formats import choice_grid
    from jmpq.quantizers.calibrate import calibrate_weights
    from jmpq.quantizers.scales import Quantizers
    from jmpq.quantizers.spec import KernelSpec
    from jmpq.sensitivity.analyse import analyse
    from jmpq.sensitivity.moves import MoveNetwork

    data = examples_of(draw, config.batch_size)
    spec = KernelSpec(rounding=rounding)  # pyright: ignore[reportArgumentType]
    weights = calibrate_weights(network, spec, config.w_bits, [x for x, _ in data])
    quantizers = Quantizers(weights=weights, activations=None)
    moves = MoveNetwork(network=network, quantizers=quantizers)
    found = {}
    for metric in metrics():
        table = analyse(moves, metric, data, choice_grid(config.w_bits))
        found[metric.about.name] = [
            [float(f"{x:.6g}") for x in row] for row in np.asarray(table.losses).T
        ]
    return found


def run(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """Every network, draw and rounding; interrupted, it goes on from what is in `folder`."""
    made = made_by("experiments.perturbation.importance")
    asked = dataclasses.asdict(config)
    # The source is part of what a cell is: cells of other code are measured again.
    journal = Journal(folder / "cells.journal", [asked, made["source_sha256"]])
    cells = []
    layers, weights = {}, {}
    for name in config.networks:
        network, dataset = load_trained(
            name, config.data, config.weights, folder, data_dir, epochs=config.epochs
        )
        layers[name] = {layer.name: layer.parameters for layer in network.layers}
        weights[name] = weights_of(network)["weights_sha256"]
        draws, _ = set_aside(dataset.heldout, config.draws, config.examples, None)
        for seed, draw in enumerate(draws):
            for rounding in config.roundings:
                where = {"network": name, "draw": seed, "rounding": rounding}
                if (entry := journal.get(key := json.dumps(where))) is None:
                    print(key, flush=True)
                    journal.keep(key, found := tables(config, network, draw, rounding))
                else:
                    found = entry.value
                cells.append({**where, "calibration": draw.record(), "losses": found})
    return {
        "experiment": "importance",
        "config": asked,
        **made,
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "numpy"),
        "weights_sha256": weights,
        "layers": layers,
        "cells": cells,
    }


def main() -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    given = tyro.cli(ResumableArguments, description=__doc__)
    config = SMOKE if given.smoke else Config()
    result = run(config, given.work("importance"), given.data())
    write_json(given.result("importance"), result)


if __name__ == "__main__":
    main()
