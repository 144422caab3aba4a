"""A small residual network as one function of its kernels and input shifts, float64."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jmpq.formats import choice_grid
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy
from tests import helpers

W_BITS, A_BITS = (2, 4), (3, 8)


class Dense:
    """Loss, logits and all moves over the flat vector of kernels and input shifts."""

    def __init__(self):
        self.network = helpers.residual_cnn(3)
        self.inputs, self.labels = helpers.images(5, 3)
        self.quantizers = Quantizers(
            weights=calibrate_weights(self.network, KernelSpec(clipping="minmax"), W_BITS),
            activations=calibrate_activations(
                self.network,
                InputSpec(clipping="minmax"),
                A_BITS,
                [self.inputs],
                key=jax.random.key(0),
            ),
        )
        self.moves = MoveNetwork(network=self.network, quantizers=self.quantizers)
        kernels = self.network.kernels()
        zero = [jnp.zeros(())] * 4
        _, seen = helpers.manual_logits(self.network, kernels, zero, self.inputs)
        self.shifts = [jnp.zeros_like(x) for x in seen]
        self.point, self.unravel = ravel_pytree((kernels, self.shifts))
        deltas = []
        for layer, kernel, x in zip(
            range(4), jax.device_get(kernels), jax.device_get(seen), strict=True
        ):
            for b in W_BITS:
                step = np.abs(kernel).max(tuple(range(kernel.ndim - 1))) / (2 ** (b - 1) - 1)
                deltas.append(self.delta(layer, 0, np.round(kernel / step) * step - kernel))
            for b in A_BITS:
                low, high = min(x.min(), 0.0), max(x.max(), 0.0)
                step = (high - low) / (2**b - 1)
                zero_point = np.round(-low / step)
                codes = np.clip(np.round(x / step) + zero_point, 0, 2**b - 1)
                deltas.append(self.delta(layer, 1, (codes - zero_point) * step - x))
        self.deltas = np.stack(deltas)  # [moves, variables]

    def delta(self, layer, part, value):
        tree = jax.tree.map(np.zeros_like, (self.network.kernels(), self.shifts))
        tree[part][layer] = np.asarray(value)
        return ravel_pytree(tree)[0]

    def logits(self, w):
        return helpers.manual_logits(self.network, *self.unravel(w), self.inputs)[0]

    def losses(self, w):
        return jax.vmap(cross_entropy)(self.logits(w), self.labels)

    def analyse(self, metric, **options):
        choices = choice_grid(W_BITS, A_BITS)
        return analyse(self.moves, metric, [(self.inputs, self.labels)], choices, **options)
