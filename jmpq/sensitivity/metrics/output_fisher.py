"""Output Fisher: squared loss gradient at a layer's output times its squared change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.network.network import Network
from jmpq.network.precision import widened
from jmpq.network.sites import Op, Site
from jmpq.sensitivity.metric import About, Terms
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import ExampleLoss, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputFisher:
    """½ mean Σ g²(Δy)² over the elements of a layer's output, weights and activations.

    g is the gradient of one example's loss with respect to the output y of the layer, Δy the
    change of y by the move: the layer applied to its input with the kernel δ, or to the
    input's δ with its kernel. This is the empirical Fisher with all products of different
    output elements left out, so it knows no interactions; a layer that is used several times
    adds up its uses. NVIDIA's score leaves out the ½, which ranks alike.

    One backward pass to the layers' outputs serves all moves; each move costs one extra
    operation of its layer, one extra network in all per bit-width. No kernel gradient.

    References:
        NVIDIA Model Optimizer, AutoQuantize: Σ g²(Δoutput)² per layer.
    """

    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="output_fisher", independent=True)

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        network = moves.network
        gradients, _ = output_gradients(network, self.loss, inputs, targets)
        second = jnp.zeros(len(moves.moves), widened(gradients[0]).dtype)

        def add(site: Site, x: Array, op: Op) -> Array:
            nonlocal second
            g, layer = widened(gradients[site.index]), site.layer_index

            def fisher(change: Array) -> Float[Array, ""]:
                return jnp.square(g * widened(change)).sum() / targets.shape[0]

            if (at := moves.columns(layer, "w")).size:
                changes = jax.vmap(lambda d: op(x, d))(moves.weight_deltas(layer, site.kernel))
                second = second.at[at].add(jax.vmap(fisher)(changes))
            if (at := moves.columns(layer, "a")).size and site.has_input:
                # One by one: a batch spread over devices stays where it is.
                deltas = moves.input_deltas(site, x).astype(x.dtype)
                terms = [fisher(op(d)) for d in deltas]
                second = second.at[at].add(jnp.stack(terms))
            return op(x)

        network.run(inputs, add)  # the forward pass is shared with that of the gradients
        return Terms(jnp.zeros_like(second), second)


def output_gradients(
    network: Network,
    loss: ExampleLoss,
    inputs: PyTree,
    targets: Array,
    params: PyTree | None = None,
) -> tuple[list[Array], list[Array]]:
    """∂L_n/∂y of every site's output, each example's own loss, and every site's input.

    One backward pass, at the network's parameters or at `params`.
    """

    def outputs(inputs: PyTree) -> list[Array]:
        seen: list[Array] = []

        def keep(site: Site, x: Array, op: Op) -> Array:
            seen.append(op(x))
            return seen[-1]

        network.run(inputs, keep)
        return seen

    def summed_loss(probes: list[Array]) -> tuple[Float[Array, ""], list[Array]]:
        seen: list[Array] = []

        def probe(site: Site, x: Array, op: Op) -> Array:
            seen.append(x)
            return op(x) + probes[site.index]

        return jax.vmap(loss)(network.run(inputs, probe, params), targets).sum(), seen

    shapes = jax.eval_shape(outputs, inputs)
    gradient = jax.grad(summed_loss, has_aux=True)
    return gradient([jnp.zeros(s.shape, s.dtype) for s in shapes])
