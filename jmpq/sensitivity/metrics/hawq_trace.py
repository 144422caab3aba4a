"""HAWQ-V2: mean Hessian trace of a layer times the squared perturbation."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jmpq.curvature.ggn_trace import example_traces
from jmpq.curvature.trace import block_trace_sample
from jmpq.journal import Journal
from jmpq.network.network import Network
from jmpq.network.piecewise import piecewise_linear
from jmpq.network.sites import Op, Site
from jmpq.sensitivity.metric import About, Preparation, Program, Terms
from jmpq.sensitivity.metrics.squared_error import squared_norms
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import ExampleLoss, cross_entropy

# Probes that exact traces have to beat, fewer being of little use: so many still leave a
# standard error of a third of a layer's trace (ResNet-20, median layer; `experiments.bench`).
USEFUL_PROBES = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class HawqTrace:
    """½ · Tr(H_i)/n_i · ‖δ_i‖², weights and activations.

    H_i is the Hessian block of a kernel, or of the input of a site. HAWQ-V2 leaves out the ½,
    which ranks alike, and estimates the traces by Hutchinson's probes: one Hessian-vector
    product for all blocks, whose cross terms are noise in each of them. A few probes say little
    about a small block and may give it a negative trace.

    In a network that is piecewise linear in each block (`jmpq.network.piecewise`, every kernel
    used once) the blocks are Gauss-Newton blocks, almost everywhere, and their traces take a
    backward pass for every output of an example, without any sampling error. On a CPU one
    output costs about 0.6 of a probe (ResNet-20). Several devices do not share this work. In
    other networks the Gauss-Newton trace is another quantity than HAWQ-V2's, which may be
    negative, and does not take its place.

    Attributes:
        traces: ``exact``; ``probes``, as HAWQ-V2; or ``auto``: exact where they are valid and
            the network has no more outputs than `USEFUL_PROBES`, or than `num_probes` where
            that is more. The provenance says which, and why.
        num_probes: Rademacher probes per batch, where probes are taken.

    Raises:
        ValueError: If exact traces are asked of a network that is not piecewise linear in each
            block; when called.

    References:
        Dong et al. (2020), HAWQ-V2, arXiv 1911.03852, section 3.
    """

    traces: Literal["auto", "exact", "probes"] = "auto"
    num_probes: int = 1
    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="hawq_trace", additive=False, independent=True)

    def way(self, network: Network) -> tuple[Literal["exact", "probes"], str]:
        """How traces are taken, and why, in a few words."""
        obstacle, outputs = curved_in(network), num_outputs(network)
        if self.traces == "probes":
            return "probes", "asked for"
        if self.traces == "exact":
            if obstacle:
                raise ValueError(
                    "traces='exact' needs a network that is piecewise linear in each kernel "
                    f"and input, but {obstacle}: its Hessian traces are not Gauss-Newton "
                    "traces. Choose 'probes' or 'auto'."
                )
            return "exact", "asked for"
        if obstacle:
            return "probes", obstacle
        if outputs > (most := max(USEFUL_PROBES, self.num_probes)):
            return "probes", f"{outputs} outputs cost more than {most} probes"
        return "exact", f"piecewise linear, {outputs} outputs cost less than {most} probes"

    def prepare(
        self,
        moves: MoveNetwork,
        batches: Sequence[tuple[MoveNetwork, PyTree, Any]],
        key: Array,
        *,
        progress: Callable[[int, int], None],
        journal: Journal,
    ) -> Preparation:
        """Say how traces are taken; the metric stays as it is."""
        way, why = self.way(moves.network)
        said = way if way == "exact" else f"{self.num_probes} probes a batch"
        record = {"traces": way, "why": why, "outputs": num_outputs(moves.network)}
        return Preparation(self, record, f"traces: {said} ({why})")

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
    ) -> list[Program]:
        if self.way(moves.network)[0] == "probes":
            return [Program(HawqTrace.sample, (self, moves, inputs, targets, key))]
        args = (moves, self.loss, inputs, targets, jnp.asarray(0))
        traces = Program(traces_of, args)
        return [traces, Program(scaled_norms, (moves, inputs, *traces.results()))]

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        if self.way(moves.network)[0] == "exact":
            second = self._exact(moves, inputs, targets)
        else:
            keys = jax.random.split(key, self.num_probes)
            samples = [self.sample(moves, inputs, targets, k) for k in keys]
            second = jnp.stack(samples).mean(axis=0)
        return Terms(jnp.zeros_like(second), second)

    def _exact(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array
    ) -> Float[Array, " moves"]:
        """Tr(H_i)/n_i · ‖δ‖² of every move, example by example."""
        traces = mean_over_examples(
            lambda index: traces_of(moves, self.loss, inputs, targets, index), targets.shape[0]
        )
        return scaled_norms(moves, inputs, *traces)

    @functools.partial(jax.jit, static_argnums=0)
    def sample(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> Float[Array, " moves"]:
        """Tr(H_i)/n_i · ‖δ‖² of every move, the traces by one probe."""
        network = moves.network
        shifts = zero_shifts(network, inputs)

        def mean_loss(point: tuple[list[Array], list[Array]]) -> Float[Array, ""]:
            return shifted_losses(network, self.loss, *point, inputs, targets).mean()

        traces = block_trace_sample(mean_loss, (network.kernels(), shifts), key)
        return scaled_norms(moves, inputs, *traces)


def mean_over_examples(one: Callable[[Array], PyTree], count: int) -> PyTree:
    """Mean over examples of what a compiled function of an example's position returns."""
    total = None
    for index in range(count):
        found = jax.block_until_ready(one(jnp.asarray(index)))  # see `ExactHessian`
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return jax.tree.map(lambda x: x / count, total)


def curved_in(network: Network) -> str:
    """Why the network is not piecewise linear in each kernel and input; empty if it is."""
    if not piecewise_linear(network.tap):
        return "something between its layers is curved (a smooth activation, a product)"
    used = [site.layer_index for site in network.sites]
    for i, layer in enumerate(network.layers):
        if used.count(i) > 1:
            return f"the kernel of layer {layer.name!r} is used {used.count(i)} times"
    return ""


def num_outputs(network: Network) -> int:
    """Outputs of one example."""
    return math.prod(network.tap.jaxpr.outvars[0].aval.shape[1:])


@functools.partial(jax.jit, static_argnums=1)
def traces_of(
    moves: MoveNetwork, loss: ExampleLoss, inputs: PyTree, targets: Array, index: Int[Array, ""]
) -> tuple[list[Array], list[Array]]:
    """Gauss-Newton traces of every kernel and of every site's input, for one example.

    One by one: the gradients of all outputs share the example's activations, so that each is
    one operation of its layer, where those of several examples would be one for each. Every
    device of a mesh does the same: XLA (of JAX 0.10.2, on CPUs) partitions such gradients of
    convolution kernels wrongly when examples are mapped.
    """
    network = moves.network
    example = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1), inputs)

    def logits(point: tuple[list[Array], list[Array]]) -> Float[Array, "*output"]:
        return shifted_logits(network, *point, example)[0]

    point = network.kernels(), zero_shifts(network, example)
    return example_traces(logits, loss, point, targets[index])


@jax.jit
def scaled_norms(
    moves: MoveNetwork, inputs: PyTree, by_kernel: list[Array], by_site: list[Array]
) -> Float[Array, " moves"]:
    """Tr(H_i)/n_i · ‖δ‖² of every move from the traces of kernels and inputs."""
    network = moves.network
    examples = jax.tree.leaves(inputs)[0].shape[0]
    shifts = jax.eval_shape(functools.partial(zero_shifts, network), inputs)
    norms = squared_norms(moves, inputs)
    second = jnp.zeros(len(moves.moves), norms.kernels[0].dtype)
    for i, layer in enumerate(network.layers):
        curvature = by_kernel[i] / max(layer.parameters, 1)
        second = second.at[moves.columns(i, "w")].add(curvature * norms.kernels[i])
    for s, site in enumerate(network.sites):
        if (at := moves.columns(site.layer_index, "a")).size and site.has_input:
            size = shifts[s].size // examples
            mean = norms.inputs[s].sum(axis=1) / examples
            second = second.at[at].add(by_site[s] / size * mean)
    return second


def zero_shifts(network: Network, inputs: PyTree) -> list[Array]:
    """A zero for every element of every site's input; a scalar where there is no input."""
    _, recorded = jax.eval_shape(network.record, inputs)
    return [
        jnp.zeros(x.shape if site.has_input else (), site.kernel.dtype)
        for x, site in zip(recorded, network.sites, strict=True)
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
    return jax.vmap(loss)(shifted_logits(network, kernels, shifts, inputs), targets)


def shifted_logits(
    network: Network, kernels: list[Array], shifts: list[Array], inputs: PyTree
) -> Float[Array, "batch *output"]:
    """Logits with other kernels, and with shifts added to the inputs of the sites."""

    def shift(site: Site, x: Array, op: Op) -> Array:
        x = x + shifts[site.index].astype(x.dtype) if site.has_input else x
        return op(x, kernels[site.layer_index])

    return network.run(inputs, shift)
