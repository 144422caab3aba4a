"""The ε-network: one scalar ε per move, ε = 0 the original network.

A move (layer, weight or activation, scheme) replaces w by w + ε(Q_b(w) − w), or the layer's
input a by a + ε(Q_b(a) − a), the difference taken in the unperturbed network and held
constant. Gradients, Gauss-Newton and Hessian matrices with respect to ε are the first- and
second-order terms of every move and of every pair of moves.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jmpq.allocation import Allocation, bit_arrays
from jmpq.formats import UNQUANTIZED, Choice
from jmpq.kinds import check_kinds
from jmpq.network.network import Network
from jmpq.network.piecewise import reverse_only
from jmpq.network.precision import widened
from jmpq.network.sites import Op, Site, Transform
from jmpq.network.walk import Rule, bind
from jmpq.quantizers.fake_quant import (
    quantize_input,
    quantize_kernel,
    quantize_point,
    quantized_logits,
)
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.stream import Point, Visit, run_on_stream, source_of, stream_bits
from jmpq.sensitivity.table import Move
from jmpq.text import plural, printed


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["network", "quantizers"],
    meta_fields=["shards", "only_caches"],
)
@check_kinds
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MoveNetwork:
    """A network with a scalar on every move: a pytree, so that compiled functions take it.

    Attributes:
        network: The network.
        quantizers: Calibrated quantizers of the network; every calibrated bit-width is a move.
        shards: Number of equal parts of a batch that are spread over devices.
            Results do not depend on it.
        only_caches: Whether no inputs are moved but keys and values.
    """

    network: Network
    quantizers: Quantizers
    shards: int = 1
    only_caches: bool = False

    def __repr__(self) -> str:
        return printed(
            f"MoveNetwork: {plural(len(self.moves), 'move')} of "
            f"{plural(len(self.network.layers), 'layer')}",
            f"{self.quantizers!r}",
        )

    @functools.cached_property
    def moves(self) -> tuple[Move, ...]:
        """All moves: layer by layer, first its weight's bits, then its input's."""
        activations = self.quantizers.activations
        sites = [site for site in self.network.sites if site.has_input]
        if self.only_caches:
            sites = [site for site in sites if not site.has_both]
        inputs = {site.layer_index for site in sites}
        moves = []
        for i, layer in enumerate(self.network.layers):
            if layer.kind != "cache":
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

    def input_deltas(self, site: Site, x: Array) -> Float[Array, "bits ..."]:
        """Q_b(a) − a of a site for every activation bit-width, held constant.

        Float32 of a site in half precision. Where the move quantizes the input as a tensor of
        the stream first, this is the change of both. Metrics that look at one layer by itself
        take it; what else reads that tensor they do not see.
        """
        return self._deltas(lambda bits: (x, self._quantized_input(site, x, bits)[1]))

    def own_deltas(self, site: Site, x: Array) -> Float[Array, "bits ..."]:
        """The part of `input_deltas` that is made at the site, not at a point of the stream."""
        return self._deltas(functools.partial(self._quantized_input, site, x))

    def own_change(self, site: Site, x: Array, bits: Int[Array, ""]) -> Array:
        """One of `own_deltas`, at traced bits, in the type of `x` and not held constant."""
        on_stream, quantized = self._quantized_input(site, x, bits)
        return quantized - on_stream

    def point_deltas(self, point: Point, x: Array) -> Float[Array, "bits ..."]:
        """Changes of a tensor of the stream by the moves of its layer's input."""
        scales = self.quantizers.stream
        assert scales is not None
        return self._deltas(lambda bits: (x, quantize_point(point, x, bits, scales)))

    def point_change(self, point: Point, x: Array, bits: Int[Array, ""]) -> Array:
        """One of `point_deltas`, at traced bits, in the type of `x` and not held constant."""
        assert self.quantizers.stream is not None
        return quantize_point(point, x, bits, self.quantizers.stream) - x

    def run(
        self,
        inputs: PyTree,
        at_site: Transform,
        at_point: Visit,
        rule: Rule = bind,
    ) -> Any:
        """`Network.run`, with `at_point` at the tensors of the stream where it is placed."""
        if self.quantizers.stream is None:
            return self.network.run(inputs, at_site, rule=rule)
        return run_on_stream(self.network, inputs, at_site, at_point, rule=rule)

    def _quantized_input(
        self, site: Site, x: Array, bits: Int[Array, ""]
    ) -> tuple[Array, Array]:
        """A site's input as its move finds it and as it leaves it, in the network as it is."""
        scales = self.quantizers.activations
        assert scales is not None
        point = None if self.quantizers.stream is None else source_of(self.network, site)
        if point is None or point.layer_index != site.layer_index:
            return x, quantize_input(site, x, bits, scales)
        assert self.quantizers.stream is not None
        on_stream = quantize_point(point, x, bits, self.quantizers.stream)
        quantized = quantize_input(site, on_stream, bits, scales)
        return on_stream, jnp.where(stream_bits(bits) == bits, on_stream, quantized)

    def _deltas(
        self, pair: Callable[[Int[Array, ""]], tuple[Array, Array]]
    ) -> Float[Array, "bits ..."]:
        """Changes from the first to the second, for every activation bit-width."""
        scales = self.quantizers.activations
        assert scales is not None
        pairs = [pair(jnp.array(b)) for b in scales.bits]
        deltas = jnp.stack([widened(after) - widened(before) for before, after in pairs])
        return jax.lax.stop_gradient(deltas)

    def logits(
        self, epsilon: Float[Array, " moves"], inputs: PyTree
    ) -> Float[Array, "batch *output"]:
        """Logits with one ε per move, shared by all examples; exact to any order in ε.

        A weight move enters the kernel, so all of a layer's moves cost one operation.
        """

        def at_site(site: Site, x: Array, op: Op) -> Array:
            kernel = site.kernel
            if (at := self._input_columns(site)).size:
                change = jnp.tensordot(epsilon[at], self.own_deltas(site, x), 1)
                x = x + change.astype(x.dtype)
            if (at := self.columns(site.layer_index, "w")).size:
                deltas = self.weight_deltas(site.layer_index, kernel)
                kernel = kernel + jnp.tensordot(epsilon[at], deltas, 1)
            return op(x, kernel)

        def at_point(point: Point, x: Array) -> Array:
            at = self.columns(point.layer_index, "a")
            change = jnp.tensordot(epsilon[at], self.point_deltas(point, x), 1)
            return x + change.astype(x.dtype)

        return self.run(inputs, at_site, at_point)

    def logits_per_example(
        self, epsilon: Float[Array, "batch moves"], inputs: PyTree
    ) -> Float[Array, "batch *output"]:
        """Logits with ε per example and move: for *reverse* derivatives at ε = 0 only.

        One backward pass yields the derivative of every example along every move: where the
        cotangent of a layer's output or input passes by, it is contracted with the changes
        that the layer's own moves make there (the layer applied to its input with the kernel
        δ, or δ of the input). Nothing of a move is computed in the forward pass or kept for
        the backward one, so memory is that of the network's own backward pass and of the
        moves of one layer, however many moves there are.

        Raises:
            ValueError: If a layer's input has the batch axis merged with another one.
        """

        def at_site(site: Site, x: Array, op: Op) -> Array:
            if site.repeat > 1:
                raise _merged(site.layer.name)
            still = jax.lax.stop_gradient(x)
            if (at := self._input_columns(site)).size:
                deltas = functools.partial(self.own_deltas, site)
                axis = site.input_batch_axis
                x = _see_changes(x, epsilon[:, at], deltas, (still,), axis)
            y = op(x)
            if (at := self.columns(site.layer_index, "w")).size:

                def changes(still: Array, kernel: Array) -> Float[Array, "bits ..."]:
                    deltas = self.weight_deltas(site.layer_index, kernel)
                    return jax.vmap(lambda d: op(still, d))(deltas)  # one wider operation

                axis = site.output_batch_axis
                y = _see_changes(y, epsilon[:, at], changes, (still, site.kernel), axis)
            return y

        def at_point(point: Point, x: Array) -> Array:
            if (axis := point.batch_axis) is None:
                raise _merged(point.name)
            at, still = self.columns(point.layer_index, "a"), jax.lax.stop_gradient(x)
            deltas = functools.partial(self.point_deltas, point)
            return _see_changes(x, epsilon[:, at], deltas, (still,), axis)

        return self.run(inputs, at_site, at_point)

    def allocation(self, moves: Iterable[int]) -> Allocation:
        """The allocation that makes just these moves, given by their indices."""
        made: dict[str, Choice] = {}
        for move in (self.moves[m] for m in moves):
            before = made.get(move.layer, UNQUANTIZED)
            made[move.layer] = Choice(
                move.bits if move.kind == "w" else before.weights,
                move.bits if move.kind == "a" else before.activations,
            )
        return Allocation(made)

    def changes_by_difference(
        self, inputs: PyTree
    ) -> tuple[Float[Array, "batch *output"], Float[Array, "batch moves *output"]]:
        """Logits, and their change when each move is made in full: u_m = z(δ_m) − z.

        One forward pass per move; keeps each move's own nonlinearity.
        """
        z = self.network.logits(inputs)

        def change(bits: Array) -> Array:
            w_bits, a_bits = bits
            return quantized_logits(self.network, self.quantizers, w_bits, a_bits, inputs) - z

        return z, jnp.moveaxis(jax.lax.map(change, self.single_moves), 0, 1)

    def changes_by_derivative(
        self, inputs: PyTree
    ) -> tuple[Float[Array, "batch *output"], Float[Array, "batch moves *output"]]:
        """Logits, and their derivative along each move: u_m = J_z δ_m.

        One backward pass per output of an example for all moves, or one ``jvp`` per move,
        whichever is fewer; the former where there is no forward mode.
        """
        return by_shard(self._changes_by_derivative, inputs, self.shards)

    def _changes_by_derivative(
        self, inputs: PyTree
    ) -> tuple[Float[Array, "batch *output"], Float[Array, "batch moves *output"]]:
        z, pull = self.pullback(inputs)
        outputs = z[0].size
        if outputs <= len(self.moves) or reverse_only(self.network.tap):
            seeds = jnp.eye(outputs, dtype=z.dtype)[:, None].repeat(z.shape[0], axis=1)
            slopes = jax.vmap(pull)(seeds.reshape(outputs, *z.shape))
            changes = jnp.moveaxis(slopes, 0, 2)
            return z, changes.reshape(*changes.shape[:2], *z.shape[1:])
        return z, jnp.moveaxis(self._pushforward(inputs), 0, 1)

    def pullback(
        self, inputs: PyTree
    ) -> tuple[
        Float[Array, "batch *output"],
        Callable[[Float[Array, "batch *output"]], Float[Array, "batch moves"]],
    ]:
        """Logits, and the function s ↦ sᵀJ_zδ of every example and move: one backward pass."""
        batch = jax.tree.leaves(inputs)[0].shape[0]
        dtype = jax.tree.leaves(self.network.params)[0].dtype
        zero = jnp.zeros((batch, len(self.moves)), dtype)
        z, pull = jax.vjp(lambda epsilon: self.logits_per_example(epsilon, inputs), zero)
        return z, lambda seed: pull(seed)[0]

    def _pushforward(self, inputs: PyTree) -> Float[Array, "moves batch *output"]:
        """J_zδ of each move by itself: linearised once, then one pass per move."""
        network, activations = self.network, self.quantizers.activations
        kernels = network.kernels()
        recorded, points = [], []

        def keep(site: Site, x: Array, op: Op) -> Array:
            recorded.append(x)
            return op(x)

        def keep_point(point: Point, x: Array) -> Array:
            points.append((point, x))
            return x

        self.run(inputs, keep, keep_point)

        def shifted(deltas: list[Array], shifts: list[Array], moved: list[Array]) -> Array:
            def at_site(site: Site, x: Array, op: Op) -> Array:
                x = x + shifts[site.index] if site.has_input else x
                return op(x, site.kernel + deltas[site.layer_index])

            return self.run(inputs, at_site, lambda point, x: x + moved[point.index])

        # Indices of an embedding are whole numbers: they have no tangent, nor a change.
        zeros = [
            jnp.zeros_like(x) if site.has_input else jnp.zeros((), site.kernel.dtype)
            for x, site in zip(recorded, network.sites, strict=True)
        ]
        still = (
            [jnp.zeros_like(k) for k in kernels],
            zeros,
            [jnp.zeros_like(x) for _, x in points],
        )
        _, push = jax.linearize(shifted, *still)

        def change(bits: Array) -> Array:
            w_bits, a_bits = bits
            deltas = [
                quantize_kernel(network, i, k, w_bits[i], self.quantizers.weights) - k
                for i, k in enumerate(kernels)
            ]
            shifts = zeros
            moved = [self.point_change(p, x, a_bits[p.layer_index]) for p, x in points]
            if activations is not None:
                shifts = [
                    self.own_change(site, x, a_bits[site.layer_index])
                    if site.has_input
                    else zero
                    for x, zero, site in zip(recorded, zeros, network.sites, strict=True)
                ]
            return push(deltas, shifts, moved)

        return jax.lax.map(change, self.single_moves)

    @property
    def single_moves(self) -> Int[Array, "moves 2 layers"]:
        """Weight and activation bits of the allocations that make one move each."""
        names = [layer.name for layer in self.network.layers]
        alone = [self.allocation([m]) for m in range(len(self.moves))]
        return jnp.array(bit_arrays(names, alone))

    def _input_columns(self, site: Site) -> np.ndarray:
        return self.columns(site.layer_index, "a") if site.has_input else np.zeros(0, int)


def _merged(name: str) -> ValueError:
    return ValueError(
        f"Layer {name!r}: its input merges the batch with another axis, so that examples "
        "cannot be told apart. Keep the batch axis, or use a metric by difference."
    )


def by_shard(function: Callable[[PyTree], PyTree], batch: PyTree, shards: int) -> PyTree:
    """A function of examples, on each of `shards` equal parts of a batch by itself.

    The same result. Where `function` maps over something else than examples (classes), JAX
    puts that axis before the examples', and a batch spread over devices would have to be
    gathered; mapped over the parts first, every example stays on its device.
    """
    if shards == 1:
        return function(batch)
    parts = jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), batch)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(function)(parts))


def micro_batches(batch: PyTree, size: int, shards: int) -> Iterator[PyTree]:
    """Parts of a batch, of at most `size` examples of each of `shards` equal parts of it.

    Every device that holds a shard has its share of every part.
    """
    each = jax.tree.leaves(batch)[0].shape[0] // shards

    def take(x: Any, start: int) -> Any:
        rows = x.reshape(shards, each, *x.shape[1:])[:, start : start + size]
        return rows.reshape(-1, *x.shape[1:])

    for start in range(0, each, size):
        yield jax.tree.map(lambda x, start=start: take(x, start), batch)


def _see_changes(
    value: Array,
    epsilon: Float[Array, "batch bits"],
    changes: Callable[..., Float[Array, "bits ..."]],
    args: tuple[Array, ...],
    axis: int,
) -> Array:
    """`value`, which changes by Σ_b ε_nb · changes(*args)_b to first order at ε = 0.

    Reverse mode only; the changes are computed in the backward pass, where their examples
    lie along `axis` of each.
    """

    @jax.custom_vjp
    def seen(value: Array, epsilon: Array, args: tuple[Array, ...]) -> Array:
        return value

    def forward(value: Array, epsilon: Array, args: tuple[Array, ...]) -> tuple[Array, Any]:
        return value, args

    def backward(args: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, None]:
        args, cotangent = jax.lax.optimization_barrier((args, cotangent))  # not before
        batch = cotangent.shape[axis]
        flat = widened(jnp.moveaxis(cotangent, axis, 0).reshape(batch, -1))
        made = widened(jnp.moveaxis(changes(*args), axis + 1, 0))
        slopes = jnp.einsum("nf,nkf->nk", flat, made.reshape(batch, made.shape[1], -1))
        return cotangent, slopes, None

    seen.defvjp(forward, backward)
    return seen(value, epsilon, args)
