"""HAWQ-V2: mean Hessian trace of a layer times the squared perturbation."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.curvature.trace import block_trace_sample
from jmpq.network.network import Network
from jmpq.network.tap import Op
from jmpq.sensitivity.metric import About, Program, Terms
from jmpq.sensitivity.metrics.squared_error import squared_norms
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import ExampleLoss, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class HawqTrace:
    """½ · Tr(H_i)/n_i · ‖δ_i‖², weights and activations.

    The trace of every kernel's and every input's Hessian block by Hutchinson's probes, one
    Hessian-vector product for all of them. HAWQ-V2 leaves out the ½, which ranks alike.

    Attributes:
        num_probes: Rademacher probes per batch.

    References:
        Dong et al. (2020), HAWQ-V2, arXiv 1911.03852, section 3.
    """

    num_probes: int = 1
    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="hawq_trace", additive=False)

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
    ) -> list[Program]:
        return [Program(HawqTrace.sample, (self, moves, inputs, targets, key))]

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        keys = jax.random.split(key, self.num_probes)
        second = jnp.stack([self.sample(moves, inputs, targets, k) for k in keys]).mean(axis=0)
        return Terms(jnp.zeros_like(second), second)

    @functools.partial(jax.jit, static_argnums=0)
    def sample(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> Float[Array, " moves"]:
        """Tr(H_i)/n_i · ‖δ‖² of every move, the traces by one probe."""
        network = moves.network
        shifts = zero_shifts(network, inputs)

        def mean_loss(point: tuple[list[Array], list[Array]]) -> Float[Array, ""]:
            return shifted_losses(network, self.loss, *point, inputs, targets).mean()

        by_kernel, by_site = block_trace_sample(mean_loss, (network.kernels(), shifts), key)
        norms = squared_norms(moves, inputs)
        second = jnp.zeros(len(moves.moves), norms.kernels[0].dtype)
        for i, layer in enumerate(network.layers):
            curvature = by_kernel[i] / layer.parameters
            second = second.at[moves.columns(i, "w")].add(curvature * norms.kernels[i])
        for s, (i, site) in enumerate(network.sites):
            if (at := moves.columns(i, "a")).size and site.has_input:
                size = shifts[s].size // targets.shape[0]
                mean = norms.inputs[s].sum(axis=1) / targets.shape[0]
                second = second.at[at].add(by_site[s] / size * mean)
        return second


def zero_shifts(network: Network, inputs: PyTree) -> list[Array]:
    """A zero for every element of every site's input; a scalar where there is no input."""
    _, recorded = jax.eval_shape(network.record, inputs)
    return [
        jnp.zeros(x.shape if site.has_input else (), network.kernels()[layer].dtype)
        for x, (layer, site) in zip(recorded, network.sites, strict=True)
    ]


def shifted_losses(
    network: Network,
    loss: ExampleLoss,
    kernels: list[Array],
    shifts: list[Array],
    inputs: PyTree,
    targets: Array,
) -> Float[Array, " batch"]:
    """Losses with other kernels, and with shifts added to the inputs of the sites."""

    def shift(site: int, layer: int, x: Array, leaf: Array, op: Op) -> Array:
        x = x + shifts[site] if network.sites[site][1].has_input else x
        return op(x, kernels[layer])

    return jax.vmap(loss)(network.run(inputs, shift), targets)
