"""Sensitivities and outcomes of a small network in a process of its own, on its devices.

python -m tests.sensitivity.spread_out OUT.npz METRICS SIZES [COORDINATOR COUNT INDEX [DIES]]

Writes the terms with the batch spread over all devices of all processes ("spread/..."), and,
in a process alone, those of one device ("one/..."), both with the operations ("flops") that
one device does for the first batch. With DIES the process is killed after so many batches of
the first metric.
"""

import os
import pathlib
import signal
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jmpq.data.batches import Batch
from jmpq.deploy.measure import Evaluator
from jmpq.devices import device_mesh, is_main_process, join_processes
from jmpq.formats import choice_grid
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.batch_memory import Placement, programs_of
from jmpq.sensitivity.logits.measure import measure_superposed
from jmpq.sensitivity.metrics.hawq_eigenvalue import EigenSearch, HawqEigenvalue, QBert
from jmpq.sensitivity.metrics.hawq_trace import HawqTrace
from jmpq.sensitivity.metrics.measured_moves import MeasuredMoves
from jmpq.sensitivity.metrics.output_fisher import OutputFisher
from jmpq.sensitivity.metrics.path_attribution import PathAttribution
from jmpq.sensitivity.metrics.squared_error import SquaredError
from jmpq.sensitivity.metrics.taylor import (
    EmpiricalFisher,
    ExactHessian,
    FirstOrder,
    GaussNewton,
)
from jmpq.sensitivity.moves import MoveNetwork
from tests import helpers

# So many products whatever their rounding; the reference takes as many.
PRODUCTS = EigenSearch(tolerance=0.0, max_products=5)
METRICS = {
    "first_order": FirstOrder(),
    "empirical_fisher": EmpiricalFisher(),
    "gauss_newton": GaussNewton(),
    "gauss_newton_difference": GaussNewton(changes="difference"),
    "hessian": ExactHessian(),
    "hessian_piecewise": ExactHessian(),
    "output_fisher": OutputFisher(),
    "squared_error": SquaredError(),
    "hawq_trace": HawqTrace(num_probes=2),
    "hawq_trace_piecewise": HawqTrace(traces="exact"),
    "hawq_eigenvalue": HawqEigenvalue(search=PRODUCTS),
    "qbert": QBert(search=PRODUCTS),
    "measured_loss": MeasuredMoves(),
    "measured_pairs_kl": MeasuredMoves(pairs="all", kind="kl"),
    "path_attribution": PathAttribution(),
}
CHOICES = choice_grid((2, 4), (4, 8))


class Small(nn.Module):
    """A convolution and a dense layer, 5x5x2 images, 3 classes."""

    activation: str = "softplus"

    @nn.compact
    def __call__(self, x):
        x = getattr(nn, self.activation)(nn.Conv(4, (3, 3), name="stem")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def small(sizes, activation="softplus") -> tuple[MoveNetwork, list]:
    """Network, quantizers and batches in float32, the same in every process."""
    example = jnp.zeros((1, 5, 5, 2), jnp.float32)
    module = Small(activation)
    network = Network.from_linen(module, module.init(jax.random.key(0), example), example)
    draw = np.random.default_rng(0)
    batches = [
        (draw.normal(size=(n, 5, 5, 2)).astype(np.float32), draw.integers(0, 3, n, np.int32))
        for n in sizes
    ]
    activations = InputSpec(clipping="minmax")
    quantizers = Quantizers(
        weights=calibrate_weights(network, KernelSpec(clipping="minmax"), (2, 4)),
        activations=calibrate_activations(
            network, activations, (4, 8), [x for x, _ in batches], key=jax.random.key(0)
        ),
    )
    return MoveNetwork(network=network, quantizers=quantizers), batches


def operations(metric, moves, mesh, batch) -> float:
    """Floating point operations of one device for a batch, in every program of a metric."""
    programs = programs_of(metric, *Placement(moves, mesh)(*batch), jax.random.key(0))
    devices, examples = mesh.size if mesh else 1, len(batch[1])
    at_once = devices * getattr(metric, "micro_batch", examples)
    passes = -(-examples // at_once)

    return passes * sum(program.compiled().cost_analysis()["flops"] for program in programs)


def outcomes(moves, batches, correct, mesh) -> np.ndarray:
    """What three allocations measure: a row each, examples first."""
    data = [Batch(x, y, np.ones(len(y), np.float32)) for x, y in batches]
    evaluator = Evaluator(
        moves.network,
        moves.quantizers,
        lambda: data,
        correct=correct,
        examples=batches[0][0],
        mesh=mesh,
    )
    bits = [[2, 4], [4, 2], [32, 32]], [[8, 4], [32, 8], [32, 32]]
    found = evaluator(helpers.allocations(moves.network, bits))
    return np.array([list(o.to_json().values()) for o in found])


def main(out: str, names: str, sizes: str, *processes: str) -> None:
    coordinator, count, index, dies = (*processes, None, None, None, None)[:4]
    if coordinator:
        join_processes(coordinator, int(count), int(index))
    meshes = {"spread": device_mesh()} | ({} if coordinator else {"one": None})

    def progress(done: int, total: int) -> None:
        if dies and done == int(dies):
            os.kill(os.getpid(), signal.SIGKILL)

    found = {}
    for name in names.split(","):
        activation = "relu" if name.endswith("piecewise") else "softplus"
        moves, batches = small([int(n) for n in sizes.split(",")], activation)
        for kind, mesh in meshes.items():
            metric, partial = METRICS[name], pathlib.Path(f"{out}.{name}.{kind}.partial")
            terms = analyse(
                moves, metric, batches, CHOICES, mesh=mesh, partial=partial, progress=progress
            )
            for field in ("first", "second", "losses"):
                found[f"{kind}/{name}/{field}"] = getattr(terms, field)
            found[f"{kind}/{name}/seconds"] = terms.provenance["batch_seconds"]
            if not coordinator:
                found[f"{kind}/{name}/flops"] = operations(metric, moves, mesh, batches[0])
    moves, batches = small([int(n) for n in sizes.split(",")])
    for kind, mesh in meshes.items():
        measured = measure_superposed(moves, batches, CHOICES, mesh=mesh)
        found[f"{kind}/changes"] = measured.changes
        for correct in ("none", "batch_norm"):
            found[f"{kind}/outcomes/{correct}"] = outcomes(moves, batches, correct, mesh)
    if is_main_process():
        np.savez(out, devices=jax.device_count(), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
