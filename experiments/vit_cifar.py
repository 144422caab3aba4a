"""A vision transformer of 0.46 million parameters, trained on CIFAR-10 from random weights.

AdamW with warm-up and a cosine, random shifts by up to four pixels, mirroring and label
smoothing, 14 epochs; the last weights are taken, and the test images are looked at once,
afterwards. If interrupted, rerun the command; it resumes from the last checkpoint.

Run:     python -m experiments.vit_cifar --data-dir DIR     (5 min of one core an epoch)
Smoke:   python -m experiments.vit_cifar --smoke            (seconds, digits)
Writes:  experiments/results/vit_cifar.json, FOLDER/vit_cifar.safetensors
Claims:  experiments/claims/vit_cifar.py
"""

import dataclasses
import pathlib
import time
from typing import Any

import tyro

from experiments.common.arguments import ResumableArguments
from experiments.common.provenance import machine, made_by, versions
from jmpq.training.loop import TrainConfig
from jmpq.zoo.vit import VITS, ViTConfig

NAME = "vit_cifar"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        network: Sizes of the network.
        data: Data set.
        training: Recipe.
        seed: Seed of initialisation, order, augmentation and dropout.
    """

    network: ViTConfig = VITS[NAME]
    data: str = "cifar10"
    training: TrainConfig = TrainConfig(
        epochs=14,
        batch_size=64,
        learning_rate=1e-3,
        warmup=0.05,
        weight_decay=0.05,
        label_smoothing=0.1,
        shift=4,
        flip=True,
    )
    seed: int = 0


SMOKE = Config(
    network=ViTConfig(
        image_size=8,
        patch=4,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        pool="mean",
        dropout=0.1,
    ),
    data="digits",
    training=TrainConfig(epochs=1, batch_size=256, label_smoothing=0.1, shift=1),
)


def run(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """Train, or go on, and measure the test accuracy; weights are written to `folder`."""
    import jax

    made = made_by("experiments.vit_cifar", folder)
    from jmpq.data.load import load_dataset
    from jmpq.run.progress import TERMINAL
    from jmpq.training.evaluate import evaluate
    from jmpq.training.train import train
    from jmpq.zoo.tensor_files import save_variables, weights_sha256
    from jmpq.zoo.vit import ViT

    dataset = load_dataset(config.data, data_dir)
    module = ViT(config.network, len(dataset.classes))
    start = time.perf_counter()
    with TERMINAL.bar(f"Training {NAME}", "steps") as progress:
        variables = train(
            module,
            dataset.train,
            config.training,
            seed=config.seed,
            checkpoints=folder.resolve() / "checkpoints",
            progress=progress,
        )
    seconds = time.perf_counter() - start
    apply: Any = module.apply
    scores = evaluate(apply, variables, dataset.heldout)
    metadata = {"config": dataclasses.asdict(config), "heldout_top1": scores.top1}
    save_variables(
        folder / f"{NAME}.safetensors", variables, architecture=NAME, metadata=metadata
    )
    return {
        "experiment": NAME,
        "config": dataclasses.asdict(config),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables)),
        "weights_sha256": weights_sha256(variables),
        "test": scores.record(),
        "seconds": seconds,  # of the last call, if it was interrupted
        **made,
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
    }


def main(arguments: ResumableArguments) -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    config = SMOKE if arguments.smoke else Config()
    result = run(config, arguments.work(NAME), arguments.data_dir)
    path = arguments.result(NAME)
    write_json(path, result)
    test = result["test"]
    print(f"Top-1 {100 * test['top1']:.2f} ± {100 * test['top1_sem']:.2f} %. Wrote {path}")


if __name__ == "__main__":
    main(tyro.cli(ResumableArguments, description=__doc__))
