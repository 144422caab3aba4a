"""The squared error of quantization, blind to the loss: the simplest rival."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.sensitivity.metric import About, Terms
from jmpq.sensitivity.moves import MoveNetwork


class SquaredNorms(NamedTuple):
    """‖δ‖² of every move: by layer; by site, and there by row of the batch axis.

    A row is an example, unless the function merged another axis into that of the batch.
    """

    kernels: list[Float[Array, " bits"]]
    inputs: list[Float[Array, "bits rows"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquaredError:
    """‖Q(w) − w‖² and mean ‖Q(a) − a‖²: not a loss, only comparable with itself."""

    @property
    def about(self) -> About:
        return About(name="squared_error", unit="squared error", independent=True)

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        norms = squared_norms(moves, inputs)
        second = jnp.zeros(len(moves.moves), norms.kernels[0].dtype)
        for i in range(len(moves.network.layers)):
            second = second.at[moves.columns(i, "w")].add(2 * norms.kernels[i])
        for site, norm in zip(moves.network.sites, norms.inputs, strict=True):
            if (at := moves.columns(site.layer_index, "a")).size and site.has_input:
                second = second.at[at].add(2 * norm.sum(axis=1) / targets.shape[0])
        return Terms(jnp.zeros_like(second), second)


@jax.jit
def squared_norms(moves: MoveNetwork, inputs: PyTree) -> SquaredNorms:
    """Squared norms of all perturbations on one batch."""
    network = moves.network
    kernels = []
    for i, kernel in enumerate(network.kernels()):
        if moves.columns(i, "w").size:
            kernels.append(_sums(moves.weight_deltas(i, kernel)))
        else:
            kernels.append(jnp.zeros(0, kernel.dtype))
    none = jnp.zeros((0, 0), kernels[0].dtype)
    if moves.quantizers.activations is None or not moves.quantizers.activations.bits:
        return SquaredNorms(kernels, [none for _ in network.sites])
    _, recorded = network.record(inputs)
    by_site = []
    for x, site in zip(recorded, network.sites, strict=True):
        if site.has_input and moves.columns(site.layer_index, "a").size:
            deltas = jnp.moveaxis(moves.input_deltas(site, x), site.input_batch_axis + 1, 1)
            by_site.append(_sums(deltas, kept=2))
        else:
            by_site.append(none)
    return SquaredNorms(kernels, by_site)


def _sums(deltas: Float[Array, "bits ..."], kept: int = 1) -> Float[Array, "bits *rows"]:
    """Sums of squares over all but the first `kept` axes."""
    return jnp.square(deltas).sum(axis=tuple(range(kept, deltas.ndim)))
