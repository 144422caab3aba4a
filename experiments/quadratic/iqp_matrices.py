"""Cross-layer matrices of ResNet-20, -32 and -44 on CIFAR-10, the instances of `bench_iqp`.

Gauss-Newton by derivative over all weight moves, 256 held-out images, activations not
quantized. One npz a network: `jmpq.load_sensitivities` reads it, the layer table travels
along as JSON text under ``layers_json``.

Run:     python -m experiments.quadratic.iqp_matrices --data-dir DIR     (minutes, one core)
Smoke:   python -m experiments.quadratic.iqp_matrices --smoke  (seconds, digits, random weights)
Writes:  experiments/results/iqp_{resnet20,resnet32,resnet44}.npz
Expect:  positive semi-definite matrices; the losses are their halved diagonals
"""

import dataclasses
import json
import pathlib

import tyro

from experiments.common.arguments import RESULTS, data_folder


@dataclasses.dataclass(frozen=True)
class Config:
    """What is analysed.

    Attributes:
        models: Built-in networks, weights ``{data}/{model}.safetensors`` in the data folder.
        data: Data set.
        w_bits: Candidate bits of weights.
        examples: Held-out examples.
        batch_size: Examples per batch.
        seed: Seed of the split.
    """

    models: tuple[str, ...] = ("resnet20", "resnet32", "resnet44")
    data: str = "cifar10"
    w_bits: tuple[int, ...] = (2, 3, 4, 8)
    examples: int = 256
    batch_size: int = 32
    seed: int = 0


SMOKE = Config(models=("digits_resnet",), data="digits", w_bits=(2, 4, 8), examples=32)


def run(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> None:
    """Analyse every network and write its file; without `data_dir`, untrained weights."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jmpq import (
        KernelSpec,
        MoveNetwork,
        Network,
        Quantizers,
        analyse,
        calibrate_weights,
        calibration_split,
        choice_grid,
        load_dataset,
        save_sensitivities,
    )
    from jmpq.data.batches import batches
    from jmpq.network.layers import layers_to_json
    from jmpq.sensitivity.metrics.taylor import GaussNewton
    from jmpq.zoo.architectures import build_module
    from jmpq.zoo.weights import load_weights

    dataset = load_dataset(config.data, None if data_dir is None else str(data_dir))
    split, _ = calibration_split(dataset, "heldout", examples=config.examples, seed=config.seed)
    examples = [(b.inputs, b.labels) for b in batches(split, config.batch_size, last="keep")]
    spec = KernelSpec()
    for model in config.models:
        module = build_module(model)
        example = jnp.zeros((1, *dataset.heldout.inputs.shape[1:]), jnp.float32)
        if data_dir is None:
            variables = module.init(jax.random.key(config.seed), example)
        else:
            weights = data_dir / config.data / f"{model}.safetensors"
            variables = load_weights(weights, module, architecture=model)
        network = Network.from_linen(module, variables, example)
        quantizers = Quantizers(
            weights=calibrate_weights(network, spec, config.w_bits), activations=None
        )
        found = analyse(
            MoveNetwork(network=network, quantizers=quantizers),
            GaussNewton(),
            examples,
            choice_grid(config.w_bits),
            seed=config.seed,
            provenance={
                "model": model,
                "config": dataclasses.asdict(config),
                "calibration": split.record(),
                "quantizers": {"weights": dataclasses.asdict(spec)},
                "jax": jax.__version__,
            },
        )
        layers = json.dumps(layers_to_json(network.layers))
        other = np.array(network.other_parameters)
        save_sensitivities(
            folder / f"iqp_{model}.npz",
            {found.metric: found},
            {"layers_json": np.array(layers), "other_parameters": other},
        )


def main(
    smoke: bool = False,
    data_dir: pathlib.Path | None = None,
    folder: pathlib.Path = RESULTS,
) -> None:
    """Write the matrices.

    Args:
        smoke: An untrained network on embedded data instead.
        data_dir: Folder with the data set and the weights.
        folder: Folder of the files.
    """
    run(SMOKE if smoke else Config(), folder, data_folder(data_dir, smoke))


if __name__ == "__main__":
    tyro.cli(main)
