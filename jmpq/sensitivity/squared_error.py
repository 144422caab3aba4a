"""The squared error of quantization, blind to the loss: the simplest rival."""

import dataclasses
import functools
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.sensitivity.metric import Terms
from jmpq.sensitivity.moves import MoveNetwork


class SquaredNorms(NamedTuple):
    """‖δ‖² of every move: by layer, and by site as a mean over examples."""

    kernels: list[Float[Array, " bits"]]
    inputs: list[Float[Array, " bits"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquaredError:
    """‖Q(w) − w‖² and mean ‖Q(a) − a‖²: not a loss, only comparable with itself."""

    name: str = "squared_error"
    unit: str = "squared error"
    use_first: bool = False
    additive: ClassVar[Literal[True]] = True

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        norms = squared_norms(moves, inputs)
        second = jnp.zeros(len(moves.moves), norms.kernels[0].dtype)
        for i in range(len(moves.network.layers)):
            second = second.at[moves.columns(i, "w")].add(2 * norms.kernels[i])
        for s, (i, site) in enumerate(moves.network.sites):
            if (at := moves.columns(i, "a")).size and site.has_input:
                second = second.at[at].add(2 * norms.inputs[s])
        return Terms(jnp.zeros_like(second), second)


def squared_norms(moves: MoveNetwork, inputs: PyTree) -> SquaredNorms:
    """Squared norms of all perturbations on one batch."""
    network = moves.network
    kernels = []
    for i, kernel in enumerate(network.kernels()):
        if moves.quantizers.weights.bits:
            kernels.append(_sums(moves.weight_deltas(i, kernel)))
        else:
            kernels.append(jnp.zeros(0, kernel.dtype))
    if moves.quantizers.activations is None or not moves.quantizers.activations.bits:
        return SquaredNorms(kernels, [jnp.zeros(0, kernels[0].dtype) for _ in network.sites])
    _, recorded = network.record(inputs)
    found = []
    for s, (x, (_, site)) in enumerate(zip(recorded, network.sites, strict=True)):
        if site.has_input:
            examples = x.shape[site.input_batch_axis] // site.repeat
            found.append(_sums(moves.input_deltas(s, x)) / examples)
        else:
            found.append(jnp.zeros(0, kernels[0].dtype))
    return SquaredNorms(kernels, found)


def _sums(deltas: Float[Array, "bits ..."]) -> Float[Array, " bits"]:
    return jnp.square(deltas).sum(axis=tuple(range(1, deltas.ndim)))
