"""Range equalisation of a depthwise network: MobileNetV1 with one scale a tensor, or a channel.

The published network, with batch normalisation folded, with ReLU6 taken as ReLU, and with the
ranges of channels equalised across layers (Nagel et al. 2019): the same images, uniform bits
in every layer, rounding to nearest.

Run:     python -m experiments.equalization --data-dir DIR     (10 min on one core)
Smoke:   python -m experiments.equalization --smoke            (seconds, random weights)
Writes:  experiments/results/equalization.json
Claims:  experiments/claims/post_training.py
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import tyro

from experiments.common.arguments import Arguments
from experiments.common.provenance import machine, made_by, versions, weights_of
from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.quantizers.spec import Granularity, InputSpec, KernelSpec


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        model: Built-in network, with batch normalisation and ReLU6.
        weights: Published weights, below the data folder; None for random ones.
        data: Data set.
        cases: Granularity of the weights' scales, bits of weights, bits of activations.
        examples: Calibration images, for the scales of activations.
        evaluation_examples: Images measured on; None for all others.
        batch_size: Images per batch.
        seed: Seed of the calibration images.
    """

    model: str = "mobilenet_v1_0.75"
    weights: str | None = "imagenet/mobilenet_v1_0.75_224.safetensors"
    data: str = "imagenet_sample"
    cases: tuple[tuple[Granularity, int, int], ...] = (
        ("tensor", 8, 32),
        ("tensor", 8, 8),
        ("tensor", 6, 32),
        ("channel", 4, 32),
    )
    examples: int = 64
    evaluation_examples: int | None = 372
    batch_size: int = 62
    seed: int = 0


SMOKE = Config(
    model="mobilenet_v1_0.25",
    weights=None,
    cases=(("tensor", 8, 32), ("channel", 4, 8)),
    data="digits",
    examples=8,
    evaluation_examples=8,
    batch_size=8,
)


def run(config: Config, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """Every network under every case."""
    from jmpq.data.batches import batches
    from jmpq.data.splits import calibration_split
    from jmpq.deploy.measure import Evaluator
    from jmpq.quantizers.calibrate import calibrate_quantizers

    networks, dataset = _networks(config, data_dir)
    calibration, rest = calibration_split(
        dataset, "heldout", examples=config.examples, seed=config.seed
    )
    evaluation = rest.take(np.arange(min(config.evaluation_examples or len(rest), len(rest))))
    inputs = [b.inputs for b in batches(calibration, config.batch_size, last="keep")]
    rows, floats = [], {}
    for name, network in networks.items():
        for granularity, w_bits, a_bits in config.cases:
            print(f"{name}: {granularity} W{w_bits}A{a_bits}", flush=True)
            quantizers = calibrate_quantizers(
                network,
                [w_bits],
                [a_bits],
                inputs,
                weights=KernelSpec(granularity=granularity),
                activations=InputSpec(),
                seed=config.seed,
            )
            evaluator = Evaluator(
                network,
                quantizers,
                lambda: batches(evaluation, config.batch_size),
                candidates_per_call=1,
            )
            names = [layer.name for layer in network.layers]
            (outcome,) = evaluator([Allocation.uniform(names, Choice(w_bits, a_bits))])
            row = {"network": name, "granularity": granularity, "w_bits": w_bits}
            rows.append({**row, "a_bits": a_bits, "measured": outcome.to_json()})
            floats[name] = evaluator.float_outcome().to_json()
    return {
        "experiment": "equalization",
        "config": dataclasses.asdict(config),
        **made_by("experiments.equalization"),
        **weights_of(networks["published"]),
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "numpy"),
        "splits": {"calibration": calibration.record(), "evaluation": evaluation.record()},
        "float": floats,
        "rows": rows,
    }


def _networks(config: Config, data_dir: pathlib.Path | None) -> tuple[dict[str, Any], Any]:
    """The same weights four times, each a step further."""
    import jax
    import jax.numpy as jnp

    from jmpq.data.load import load_dataset
    from jmpq.network.equalize import equalize_ranges, without_caps
    from jmpq.network.fold import fold_batch_norm
    from jmpq.network.network import Network
    from jmpq.zoo.architectures import PREPROCESSINGS, architecture, build_module
    from jmpq.zoo.weights import load_weights

    known = architecture(config.model).preprocessing
    rule = PREPROCESSINGS[known] if known and config.weights is not None else None
    dataset = load_dataset(config.data, data_dir, rule)
    module = build_module(config.model, len(dataset.classes))
    example = jnp.zeros((1, *dataset.heldout.inputs.shape[1:]), jnp.float32)
    if config.weights is None:
        variables = module.init(jax.random.key(config.seed), example)
    else:
        assert data_dir is not None
        variables = load_weights(data_dir / config.weights, module, architecture=config.model)
    folded = Network.from_linen(module, fold_batch_norm(module, variables, example), example)
    capless = without_caps(folded)
    networks = {
        "published": Network.from_linen(module, variables, example),
        "folded": folded,
        "without caps": capless,
        "equalised": equalize_ranges(capless),
    }
    return networks, dataset


def main() -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    given = tyro.cli(Arguments, description=__doc__)
    result = run(SMOKE if given.smoke else Config(), given.data_dir)
    write_json(given.result("equalization"), result)


if __name__ == "__main__":
    main()
