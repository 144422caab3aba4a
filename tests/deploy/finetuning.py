"""Small fine-tunings; as a program: one on two devices and on one, in float64.

python -m tests.deploy.finetuning OUT.npz
"""

import dataclasses
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jmpq.allocation import Allocation
from jmpq.data.dataset import Normalization, whole_split
from jmpq.deploy.finetune import FinetuneConfig, finetune
from jmpq.devices import device_mesh
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.training.loop import TrainConfig

SHORT = FinetuneConfig(
    training=TrainConfig(
        epochs=2, batch_size=8, learning_rate=1e-2, shift=1, flip=True, checkpoint_steps=3
    ),
    distillation=0.5,
    temperature=2.0,
    correct="none",
)
BITS = (4, 2), (8, 4)  # of weights and inputs of the two layers


class Small(nn.Module):
    """A convolution and a dense layer, 3 classes."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def toy(examples=20, seed=0):
    rng = np.random.default_rng(seed)
    return whole_split(
        "toy",
        "train",
        rng.integers(0, 17, (examples, 5, 5, 2), dtype=np.uint8),
        rng.integers(0, 3, examples),
        Normalization(scale=16.0, mean=(0.5, 0.5), std=(0.3, 0.3)),
    )


def inputs(count=16):
    return jnp.asarray(toy().normalization(toy().inputs[:count]))


def small(*, dtype=jnp.float32, weights=None, activations=True) -> tuple[Network, Quantizers]:
    example = jnp.zeros((1, 5, 5, 2), jnp.float32)
    params = Small().init(jax.random.key(0), example)["params"]
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    network = Network.from_linen(Small(), {"params": params}, example)
    found = None
    if activations:
        spec = InputSpec(clipping="minmax")
        key = jax.random.key(0)
        found = calibrate_activations(network, spec, (4, 8), [inputs()], key=key)
    weights = weights or KernelSpec(clipping="minmax")
    return network, Quantizers(
        weights=calibrate_weights(network, weights, (2, 4), [inputs()]), activations=found
    )


def allocation_of(network, bits):
    return Allocation.from_bits([layer.name for layer in network.layers], np.array(bits))


def run(config=SHORT, *, network=None, quantizers=None, split=None, bits=BITS, **options):
    if network is None:
        network, quantizers = small()
    allocation = allocation_of(network, bits)
    return finetune(network, quantizers, allocation, split or toy(), config, **options)


def main(out):
    jax.config.update("jax_enable_x64", True)
    network, quantizers = small(dtype=jnp.float64)
    found = {}
    for kind, mesh in (("spread", device_mesh()), ("one", None)):
        config = dataclasses.replace(SHORT, correct="batch_norm")
        done = run(config, network=network, quantizers=quantizers, mesh=mesh, examples=inputs())
        found[f"{kind}/losses"] = done.losses
        tree = done.network.params, done.quantizers.weights.scale
        for i, leaf in enumerate(jax.tree.leaves(tree)):
            found[f"{kind}/{i}"] = np.asarray(leaf)
    np.savez(out, devices=jax.device_count(), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
