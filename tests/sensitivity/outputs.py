"""Small networks with outputs of every shape, and their metrics by dense float64 formulas."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy, squared_error

W_BITS, A_BITS = (2, 3), (3,)


def softplus(x):
    return jnp.logaddexp(x, 0.0)


@jax.custom_vjp
def reverse_softplus(x):
    """Softplus that JAX can differentiate in reverse mode alone."""
    return softplus(x)


reverse_softplus.defvjp(lambda x: (softplus(x), x), lambda x, g: (g * jax.nn.sigmoid(x),))


def convolved(x, kernel):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)


def text(act):
    """Five words, three positions that look at their mean: [batch, 3, classes]."""

    def layers(put, tokens):
        x = put(0, tokens, lambda tokens, table: table[tokens])
        x = act(put(1, x + x.mean(1, keepdims=True), jnp.matmul))
        return put(2, x, jnp.matmul)

    return layers, [(5, 3), (3, 4), (4, 4)]


def pixels(act):
    """Images 2x2x2 to the classes of every pixel: [batch, 2, 2, 3]."""

    def layers(put, x):
        x = act(put(0, x, convolved))
        return put(1, x, jnp.matmul)

    return layers, [(3, 3, 2, 3), (3, 3)]


def words(act):
    """A class of a text, more classes than moves: [batch, 12]."""

    def layers(put, tokens):
        x = act(put(0, tokens, lambda tokens, table: table[tokens]).mean(1))
        return put(1, x, jnp.matmul)

    return layers, [(5, 3), (3, 12)]


def number(act):
    """One number an image: [batch]."""

    def layers(put, x):
        x = act(put(0, x, convolved)).mean((1, 2))
        return put(1, x, jnp.matmul)[:, 0]

    return layers, [(3, 3, 2, 3), (3, 1)]


def numbers(act):
    """Three numbers an image: [batch, 3]."""

    def layers(put, x):
        x = act(put(0, x, convolved)).mean((1, 2))
        return put(1, x, jnp.matmul)

    return layers, [(3, 3, 2, 3), (3, 3)]


MASKED = np.array([[0, 1, -1], [2, -1, -1], [3, 0, 1]])
SEGMENTS = np.array([[[0, 1], [2, -1]], [[-1, -1], [1, 0]], [[2, 2], [0, 1]]])


@dataclasses.dataclass(eq=False)
class Subject:
    """A network, its moves, and its outputs as a function of kernels and shifts.

    `point` holds all kernels, then shifts of the layers' inputs, then shifts of their outputs.
    """

    make: Callable
    labels: np.ndarray
    loss: Callable = cross_entropy
    act: Callable = softplus

    def __post_init__(self):
        self.layers, shapes = self.make(self.act)
        keys = jax.random.split(jax.random.key(1), len(shapes))
        kernels = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
        count = len(self.labels)
        if self.make in (text, words):
            self.inputs = jnp.asarray(np.random.default_rng(3).integers(0, 5, (count, 3)))
        else:
            self.inputs = jax.random.normal(jax.random.key(4), (count, 2, 2, 2))
        plain = lambda w, x: self.layers(lambda i, x, op: op(x, w[i]), x)  # noqa: E731
        self.network = Network.from_function(plain, kernels, self.inputs)
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
        outs, seen = [], []

        def keep(i, x, op):
            seen.append(x)
            outs.append(op(x, kernels[i]))
            return outs[-1]

        self.layers(keep, self.inputs)
        self.seen = seen
        self.has_input = [jnp.issubdtype(x.dtype, jnp.floating) for x in seen]
        zero = [
            jnp.zeros_like(x) if f else jnp.zeros(0)
            for x, f in zip(seen, self.has_input, strict=True)
        ]
        tree = kernels, zero, [jnp.zeros_like(y) for y in outs]
        self.point, self.unravel = ravel_pytree(tree)
        deltas = []
        for move in self.moves.moves:
            layer = [each.name for each in self.network.layers].index(move.layer)
            w, a, o = jax.tree.map(jnp.zeros_like, tree)
            if move.kind == "w":
                w[layer] = self.moves.weight_deltas(layer, kernels[layer])[
                    W_BITS.index(move.bits)
                ]
            else:
                site = next(s for s in self.network.sites if s.layer_index == layer)
                a[layer] = self.moves.input_deltas(site, seen[layer])[A_BITS.index(move.bits)]
            deltas.append(ravel_pytree((w, a, o))[0])
        self.deltas = np.stack(deltas)  # [moves, variables]

    def outputs(self, point):
        kernels, shifts, outs = self.unravel(point)

        def put(i, x, op):
            x = x + shifts[i] if self.has_input[i] else x
            return op(x, kernels[i]) + outs[i]

        return self.layers(put, self.inputs)

    def example_losses(self, point):
        """By hand, from the definition: the mean over the positions that count."""
        return self._losses(self.outputs(point))

    def _losses(self, z):
        if self.loss is squared_error:
            return 0.5 * jnp.square(z - self.labels).reshape(len(z), -1).sum(1)
        nats = -jax.nn.log_softmax(z, -1)
        return self.mean_of(
            jnp.take_along_axis(nats, jnp.maximum(self.labels, 0)[..., None], -1)[..., 0]
        )

    def mean_of(self, values):
        counts = (np.asarray(self.labels) != -1).reshape(len(values), -1).astype(float)
        return (jnp.asarray(values, float).reshape(counts.shape) * counts).sum(1) / counts.sum(
            1
        )

    def divergences(self, q, z):
        p = jax.nn.softmax(z, -1)
        return self.mean_of(
            (p * (jax.nn.log_softmax(z, -1) - jax.nn.log_softmax(q, -1))).sum(-1)
        )

    def mean_loss(self, point):
        return self.example_losses(point).mean()

    @property
    def output_curvature(self):
        """Hessians of the examples' losses in their outputs: [batch, outputs, outputs]."""
        z = self.outputs(self.point)
        flat = np.asarray(z.reshape(len(z), -1))
        if self.loss is squared_error:
            return np.tile(np.eye(flat.shape[1]), (len(z), 1, 1))
        full = np.zeros((len(z), flat.shape[1], flat.shape[1]))
        classes, counts = z.shape[-1], (np.asarray(self.labels) != -1).reshape(len(z), -1)
        for n in range(len(z)):
            for t in np.flatnonzero(counts[n]):
                here = slice(t * classes, (t + 1) * classes)
                p = np.exp(flat[n, here]) / np.exp(flat[n, here]).sum()
                full[n, here, here] = (np.diag(p) - np.outer(p, p)) / counts[n].sum()
        return full

    def block_of(self, part, layer):
        """Positions of a layer's kernel (0), input (1) or output (2) in the point."""
        marks = jax.tree.map(lambda x: jnp.zeros(x.shape), self.unravel(self.point))
        marks[part][layer] = jnp.ones_like(marks[part][layer])
        return np.flatnonzero(ravel_pytree(marks)[0])
