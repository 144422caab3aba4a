"""Sensitivities of a small network in a process of its own, on the devices it is given.

python -m tests.sensitivity.spread_out OUT.npz METRICS SIZES [COORDINATOR COUNT INDEX]

Writes the terms with the batch spread over all devices of all processes ("spread/..."), and,
in a process alone, those of one device ("one/...").
"""

import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jmpq.devices import device_mesh, is_main_process, join_processes
from jmpq.models.network import Network
from jmpq.quantizers.choice import choice_grid
from jmpq.quantizers.fake_quant import Quantizers, calibrate_activations, calibrate_weights
from jmpq.quantizers.spec import QuantizerSpec
from jmpq.sensitivity.hawq import HawqTrace
from jmpq.sensitivity.measured import MeasuredPairs, MeasuredSingle
from jmpq.sensitivity.metric import analyse
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.output_fisher import OutputFisher
from jmpq.sensitivity.path import PathAttribution
from jmpq.sensitivity.squared_error import SquaredError
from jmpq.sensitivity.taylor import EmpiricalFisher, ExactHessian, FirstOrder, GaussNewton

METRICS = {
    "first_order": FirstOrder(),
    "empirical_fisher": EmpiricalFisher(),
    "gauss_newton": GaussNewton(),
    "gauss_newton_difference": GaussNewton(changes="difference"),
    "hessian": ExactHessian(),
    "output_fisher": OutputFisher(),
    "squared_error": SquaredError(),
    "hawq_trace": HawqTrace(num_probes=2),
    "measured_loss": MeasuredSingle(),
    "measured_pairs_kl": MeasuredPairs(kind="kl"),
    "path_attribution": PathAttribution(),
}
CHOICES = choice_grid((2, 4), (4, 8))


class Small(nn.Module):
    """A convolution and a dense layer, 5x5x2 images, 3 classes."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(
            nn.softplus(nn.Conv(4, (3, 3), name="stem")(x)).mean((1, 2))
        )


def small(sizes) -> tuple[MoveNetwork, list]:
    """Network, quantizers and batches in float32, the same in every process."""
    example = jnp.zeros((1, 5, 5, 2), jnp.float32)
    variables = Small().init(jax.random.key(0), example)
    network = Network.from_linen(Small(), variables, example)
    draw = np.random.default_rng(0)
    batches = [
        (draw.normal(size=(n, 5, 5, 2)).astype(np.float32), draw.integers(0, 3, n, np.int32))
        for n in sizes
    ]
    activations = QuantizerSpec(grid="affine", granularity="tensor", clipping="minmax")
    quantizers = Quantizers(
        weights=calibrate_weights(network, QuantizerSpec(clipping="minmax"), (2, 4)),
        activations=calibrate_activations(
            network, activations, (4, 8), [x for x, _ in batches], key=jax.random.key(0)
        ),
    )
    return MoveNetwork(network=network, quantizers=quantizers), batches


def main(out: str, names: str, sizes: str, *processes: str) -> None:
    if processes:
        coordinator, count, index = processes
        join_processes(coordinator, int(count), int(index))
    moves, batches = small([int(n) for n in sizes.split(",")])
    meshes = {"spread": device_mesh()} | ({} if processes else {"one": None})
    found = {}
    for name in names.split(","):
        for kind, mesh in meshes.items():
            partial = pathlib.Path(f"{out}.{name}.{kind}.partial")
            terms = analyse(moves, METRICS[name], batches, CHOICES, mesh=mesh, partial=partial)
            for field in ("first", "second", "losses"):
                found[f"{kind}/{name}/{field}"] = getattr(terms, field)
    if is_main_process():
        np.savez(out, devices=jax.device_count(), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
