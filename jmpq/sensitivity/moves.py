"""The ε-network: one scalar ε per move, ε = 0 the original network.

A move (layer, weight or activation, bits) replaces w by w + ε(Q_b(w) − w), or the layer's
input a by a + ε(Q_b(a) − a), the difference taken in the unperturbed network and held
constant. Gradients, Gauss-Newton and Hessian matrices with respect to ε are the first- and
second-order terms of every move and of every pair of moves.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmpq.models.network import Network
from jmpq.models.tap import Op
from jmpq.quantizers.choice import FLOAT_BITS
from jmpq.quantizers.fake_quant import (
    Quantizers,
    quantize_input,
    quantize_kernel,
    quantized_logits,
)
from jmpq.sensitivity.result import Move


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["network", "quantizers"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MoveNetwork:
    """A network with a scalar on every move: a pytree, so that compiled functions take it.

    Attributes:
        network: The network.
        quantizers: Its calibrated quantizers; every calibrated bit-width is a move.
    """

    network: Network
    quantizers: Quantizers

    @functools.cached_property
    def moves(self) -> tuple[Move, ...]:
        """All moves: layer by layer, first its weight's bits, then its input's."""
        activations = self.quantizers.activations
        inputs = {layer for layer, site in self.network.sites if site.has_input}
        moves = []
        for i, layer in enumerate(self.network.layers):
            moves += [Move(layer.name, "w", b) for b in self.quantizers.weights.bits]
            if activations is not None and i in inputs:
                moves += [Move(layer.name, "a", b) for b in activations.bits]
        return tuple(moves)

    def columns(self, layer: int, kind: str) -> np.ndarray:
        """Indices of a layer's moves of one kind, bits ascending."""
        name = self.network.layers[layer].name
        return np.array(
            [m for m, move in enumerate(self.moves) if (move.layer, move.kind) == (name, kind)],
            int,
        )

    def weight_deltas(self, layer: int, kernel: Array) -> Float[Array, "bits ..."]:
        """Q_b(w) − w of one layer for every weight bit-width."""
        scales = self.quantizers.weights
        quantize = lambda b: quantize_kernel(self.network, layer, kernel, b, scales)  # noqa: E731
        return jnp.stack([quantize(jnp.array(b)) - kernel for b in scales.bits])

    def input_deltas(self, site: int, x: Array) -> Float[Array, "bits ..."]:
        """Q_b(a) − a of one site for every activation bit-width, held constant."""
        scales = self.quantizers.activations
        assert scales is not None
        quantize = lambda b: quantize_input(self.network, site, x, b, scales)  # noqa: E731
        deltas = jnp.stack([quantize(jnp.array(b)) - x for b in scales.bits])
        return jax.lax.stop_gradient(deltas)

    def logits(
        self, epsilon: Float[Array, " moves"], inputs: PyTree
    ) -> Float[Array, "batch classes"]:
        """Logits with one ε per move, shared by all examples; exact to any order in ε.

        A weight move enters the kernel, so all of a layer's moves cost one operation.
        """

        def at_site(site: int, layer: int, x: Array, leaf: Array, op: Op) -> Array:
            if (at := self._input_columns(site, layer)).size:
                x = x + jnp.tensordot(epsilon[at], self.input_deltas(site, x), 1)
            if (at := self.columns(layer, "w")).size:
                leaf = leaf + jnp.tensordot(epsilon[at], self.weight_deltas(layer, leaf), 1)
            return op(x, leaf)

        return self.network.run(inputs, at_site)

    def logits_per_example(
        self, epsilon: Float[Array, "batch moves"], inputs: PyTree
    ) -> Float[Array, "batch classes"]:
        """Logits with ε per example and move; for *first* derivatives at ε = 0 only.

        A weight move adds ε times the layer applied to its input with the kernel δ, so that
        one backward pass yields the derivative for every example. That term's dependence on
        the input is left out: it does not matter to first order at ε = 0.

        Raises:
            ValueError: If a layer's input has the batch axis merged with another one.
        """

        def at_site(site: int, layer: int, x: Array, leaf: Array, op: Op) -> Array:
            where = self.network.sites[site][1]
            if where.repeat > 1:
                name = self.network.layers[layer].name
                raise ValueError(
                    f"Layer {name!r}: its input merges the batch with another axis, so that "
                    "examples cannot be told apart. Keep the batch axis, or use a metric by "
                    "difference."
                )
            still = jax.lax.stop_gradient(x)
            if (at := self._input_columns(site, layer)).size:
                deltas = self.input_deltas(site, x)
                x = x + _mix(epsilon[:, at], deltas, where.input_batch_axis)
            y = op(x, leaf)
            if (at := self.columns(layer, "w")).size:
                deltas = self.weight_deltas(layer, leaf)
                changes = jax.vmap(lambda d: op(still, d))(deltas)  # one wider operation
                y = y + _mix(epsilon[:, at], changes, where.output_batch_axis)
            return y

        return self.network.run(inputs, at_site)

    def allocation_bits(self, moves: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Weight and activation bits of every layer when just `moves` are made."""
        names = [layer.name for layer in self.network.layers]
        bits = {"w": np.full(len(names), FLOAT_BITS), "a": np.full(len(names), FLOAT_BITS)}
        for m in moves:
            move = self.moves[m]
            bits[move.kind][names.index(move.layer)] = move.bits
        return bits["w"], bits["a"]

    def changes_by_difference(
        self, inputs: PyTree
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch moves classes"]]:
        """Logits, and their change when each move is made in full: u_m = z(δ_m) − z.

        One forward pass per move; keeps each move's own nonlinearity.
        """
        bits = [self.allocation_bits([m]) for m in range(len(self.moves))]
        table = jnp.array(np.array(bits))  # [moves, 2, layers]
        z = self.network.run(inputs, lambda site, layer, x, leaf, op: op(x, leaf))

        def change(bits: Array) -> Array:
            w_bits, a_bits = bits
            return quantized_logits(self.network, self.quantizers, w_bits, a_bits, inputs) - z

        return z, jnp.moveaxis(jax.lax.map(change, table), 0, 1)

    def changes_by_derivative(
        self, inputs: PyTree
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch moves classes"]]:
        """Logits, and their derivative along each move: u_m = J_z δ_m.

        One backward pass per class for all moves, or one ``jvp`` per move, whichever is
        fewer.
        """
        batch = jax.tree.leaves(inputs)[0].shape[0]
        dtype = jax.tree.leaves(self.network.params)[0].dtype
        zero = jnp.zeros((batch, len(self.moves)), dtype)
        at = functools.partial(self.logits_per_example, inputs=inputs)
        z, pull = jax.vjp(at, zero)
        batch, classes = z.shape
        if classes <= len(self.moves):
            seeds = jnp.eye(classes, dtype=z.dtype)[:, None, :].repeat(batch, axis=1)
            jacobian = jax.vmap(lambda seed: pull(seed)[0])(seeds)  # [classes, batch, moves]
            return z, jnp.moveaxis(jacobian, 0, 2)
        _, push = jax.linearize(at, zero)
        tangents = jnp.eye(len(self.moves), dtype=dtype)
        changes = jax.lax.map(lambda t: push(jnp.broadcast_to(t[None], zero.shape)), tangents)
        return z, jnp.moveaxis(changes, 0, 1)

    def _input_columns(self, site: int, layer: int) -> np.ndarray:
        if not self.network.sites[site][1].has_input:
            return np.zeros(0, int)
        return self.columns(layer, "a")


def _mix(epsilon: Float[Array, "batch k"], changes: Float[Array, "k ..."], axis: int) -> Array:
    """Σ_k ε_nk · changes_k, the examples along `axis` of each change."""
    changes = jnp.moveaxis(changes, axis + 1, 0)  # [batch, k, ...]
    mixed = jnp.einsum("nk,nkf->nf", epsilon, changes.reshape(*changes.shape[:2], -1))
    return jnp.moveaxis(mixed.reshape(changes.shape[0], *changes.shape[2:]), 0, axis)
