"""What all sides of the evaluation benchmark work on."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from jmpq.data.batches import Batch
    from jmpq.network.network import Network
    from jmpq.quantizers.scales import Quantizers


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured; every field is in the result.

    Attributes:
        model: Built-in network.
        weights: Published weights below the data folder; None for random ones.
        data: Data set.
        images: Test images measured on.
        w_bits: Candidate bits of weights.
        a_bits: Candidate bits of activations.
        calibration: Training images that activation scales come from.
        candidates: Allocations measured by jmpq in every round.
        rebuilt: Number of them that are compiled by themselves.
        eager: Number of them that PyTorch measures.
        batch_size: Images per batch of the two JAX sides.
        torch_batch: Images per batch of PyTorch.
        rounds: Repetitions; medians are reported.
        threads: Cores that the process may use, all sides alike.
        seed: Seed of the allocations and the sampled activations.
    """

    model: str = "resnet20"
    weights: str | None = "cifar10/resnet20.safetensors"
    data: str = "cifar10"
    images: int = 1024
    w_bits: tuple[int, ...] = (2, 3, 4, 8)
    a_bits: tuple[int, ...] = (4, 8)
    calibration: int = 256
    candidates: int = 4
    rebuilt: int = 2
    eager: int = 4
    batch_size: int = 64
    torch_batch: int = 64
    rounds: int = 3
    threads: int = 1
    seed: int = 0


SMOKE = Config(
    model="digits_resnet",
    weights=None,
    data="digits",
    images=48,
    w_bits=(2, 8),
    a_bits=(8,),
    calibration=32,
    candidates=2,
    rebuilt=1,
    eager=2,
    batch_size=16,
    torch_batch=16,
    rounds=1,
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """What all sides work on."""

    config: Config
    build: Callable[[], "Network"]
    quantizers: "Quantizers"
    batches: Callable[[int], list["Batch"]]
    bits: Int[np.ndarray, "candidates 2 layers"]


Losses = Float[np.ndarray, " candidates"]


def prepare(config: Config, data_dir: pathlib.Path | None) -> Setting:
    """Network, quantizers, images and random allocations."""
    import jax
    import jax.numpy as jnp

    from jmpq.data.batches import batches
    from jmpq.data.load import load_dataset
    from jmpq.network.network import Network
    from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
    from jmpq.quantizers.scales import Quantizers
    from jmpq.quantizers.spec import InputSpec, KernelSpec
    from jmpq.zoo.architectures import build_module
    from jmpq.zoo.weights import load_weights

    dataset = load_dataset(config.data, data_dir)
    example = jnp.zeros((1, *dataset.heldout.inputs.shape[1:]), jnp.float32)
    module = build_module(config.model)
    if config.weights is None:
        variables = module.init(jax.random.key(config.seed), example)
    else:
        assert data_dir is not None
        variables = load_weights(data_dir / config.weights, module, architecture=config.model)

    def build() -> Network:
        return Network.from_linen(module, variables, example)

    network = build()
    calibration = dataset.train.take(np.arange(config.calibration))
    inputs = [b.inputs for b in batches(calibration, config.batch_size)]
    quantizers = Quantizers(
        weights=calibrate_weights(network, KernelSpec(), config.w_bits),
        activations=calibrate_activations(
            network, InputSpec(), config.a_bits, inputs, key=jax.random.key(config.seed)
        ),
    )
    rng = np.random.default_rng(config.seed)
    shape = (config.candidates, len(network.layers))
    drawn = np.stack([rng.choice(config.w_bits, shape), rng.choice(config.a_bits, shape)], 1)
    test = dataset.heldout.take(np.arange(config.images))
    return Setting(
        config=config,
        build=build,
        quantizers=quantizers,
        batches=lambda size: list(batches(test, size)),
        bits=drawn,
    )
