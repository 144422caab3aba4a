"""Fisher trace times squared error: HAWQ-V2's score with the empirical Fisher; a rival."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jmpq.sensitivity.metric import About, Program, Terms
from jmpq.sensitivity.metrics.hawq_trace import (
    mean_over_examples,
    scaled_norms,
    shifted_losses,
    zero_shifts,
)
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import ExampleLoss, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class FisherTrace:
    """½ · mean_n ‖∂L_n/∂w_i‖²/n_i · ‖δ_i‖², weights and activations.

    The trace of the empirical Fisher of a kernel, or of the input of a site, in the place of
    the Hessian's in `HawqTrace`: never negative, without probes, one backward pass an example.
    """

    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="fisher_trace", additive=False, independent=True)

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> list[Program]:
        args = (moves, self.loss, inputs, targets, jnp.asarray(0))
        squares = Program(squared_gradients, args)
        return [squares, Program(scaled_norms, (moves, inputs, *squares.results()))]

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        mean = mean_over_examples(
            lambda index: squared_gradients(moves, self.loss, inputs, targets, index),
            targets.shape[0],
        )
        second = scaled_norms(moves, inputs, *mean)
        return Terms(jnp.zeros_like(second), second)


@functools.partial(jax.jit, static_argnums=1)
def squared_gradients(
    moves: MoveNetwork, loss: ExampleLoss, inputs: PyTree, targets: Array, index: Int[Array, ""]
) -> tuple[list[Float[Array, ""]], list[Float[Array, ""]]]:
    """‖∂L_n/∂w‖² of every kernel and of every site's input, for one example.

    One by one, as `hawq_trace.traces_of` and for its reasons.
    """
    network = moves.network
    example, target = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1), (inputs, targets)
    )

    def own_loss(point: tuple[list[Array], list[Array]]) -> Float[Array, ""]:
        return shifted_losses(network, loss, *point, example, target).sum()

    gradients = jax.grad(own_loss)((network.kernels(), zero_shifts(network, example)))
    return jax.tree.map(lambda g: jnp.square(g).sum(), gradients)
