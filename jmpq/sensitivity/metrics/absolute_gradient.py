"""|g·δ|: the first-order change of every example's loss, whatever its sign; a rival."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jmpq.sensitivity.metric import About, Terms
from jmpq.sensitivity.metrics.taylor import example_gradients
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import ExampleLoss, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbsoluteGradient:
    """mean_n |⟨∇L_n, δ⟩|, from the backward pass that gives the empirical Fisher.

    The gradient term of the mean loss is small at a trained optimum because the examples'
    terms cancel; here they do not. Moves of one layer are added.

    References:
        Molchanov et al. (2017), Pruning convolutional neural networks for resource efficient
        inference, eq. (7), with δ in the place of −w.
    """

    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="absolute_gradient", independent=True)

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        slopes = jnp.abs(example_gradients(moves, self.loss, inputs, targets)).mean(axis=0)
        return Terms(jnp.zeros_like(slopes), 2 * slopes)
