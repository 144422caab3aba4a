"""Path attribution: the damage of all moves at once, shared out."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jmpq.allocation import Allocation, bit_arrays
from jmpq.devices import to_host
from jmpq.network.precision import widened
from jmpq.network.sites import Op, Site
from jmpq.quantizers.fake_quant import quantize_kernel
from jmpq.quantizers.stream import Point
from jmpq.sensitivity.metric import About, Program, Terms
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import ExampleLoss, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathAttribution:
    """φ_m = mean over K midpoints t of ⟨∇L(t · all moves of m's bit-width), δ_m⟩.

    For every bit-width b, the straight path from the original network to the one with all
    moves of b made at once, weights and activations; a bit-width that only weights (or only
    activations) have moves only these. By the fundamental theorem of calculus Σφ_m over the
    moves of b is ``L(all moves of b) − L(0)``, the total damage, up to the midpoint rule,
    whose error falls as 1/K² for a smooth network. For another reference allocation see
    `path_attribution`.

    Perturbations are the *moves* of the project: the rounding error of an activation is
    that in the unperturbed network, held constant along the path (with the error recomputed
    in the perturbed network the path would jump, and nothing would add up). The total is
    thus exactly the quantized network's damage for weights, and for activations that of the
    constant perturbations.

    K passes per bit-width, each one forward and one backward pass to the layers' inputs, and
    one more operation a layer; no kernel gradient. φ may be negative.

    Attributes:
        points: Midpoints K; t_k = (k − ½)/K.

    References:
        Reported, not read in the source (arXiv 2607.12266): attribution along the path from
        w to w + δ with K = 2 midpoints. Ours: one path per bit-width, constant perturbations
        of activations.
    """

    points: int = 2
    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="path_attribution", use_first=True)

    def __post_init__(self) -> None:
        _check_points(self.points)

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
    ) -> list[Program]:
        bits = jnp.zeros((2, len(moves.network.layers)), int)
        t = jnp.zeros((), jax.tree.leaves(moves.network.params)[0].dtype)
        return [Program(_slopes, (moves, self.loss, bits, t, inputs, targets))]

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        first = np.zeros(len(moves.moves))
        for b in sorted({move.bits for move in moves.moves}):
            of = [m for m, move in enumerate(moves.moves) if move.bits == b]
            first += path_attribution(
                moves, moves.allocation(of), inputs, targets, points=self.points, loss=self.loss
            )
        dtype = jax.tree.leaves(moves.network.params)[0].dtype
        return Terms(jnp.asarray(first, dtype), jnp.zeros(len(moves.moves), dtype))


def path_attribution(
    moves: MoveNetwork,
    allocation: Allocation,
    inputs: PyTree,
    targets: Array,
    *,
    points: int = 2,
    loss: ExampleLoss = cross_entropy,
) -> Float[np.ndarray, " moves"]:
    """Share of every move in the damage of one allocation; zero for moves it does not make.

    Args:
        moves: Network and quantizers.
        allocation: The allocation at the end of the path.
        inputs: One batch.
        targets: One per example.
        points: Midpoints of the path.
        loss: Loss of one example.

    Returns:
        φ, nats per example: sums to the damage of the allocation up to the midpoint rule.

    Raises:
        ValueError: If there is no point, or a layer is given bits that were not calibrated.
    """
    _check_points(points)
    names = [layer.name for layer in moves.network.layers]
    (bits,) = bit_arrays(names, [allocation])
    moves.quantizers.check(moves.network, *bits.tolist())
    dtype = jax.tree.leaves(moves.network.params)[0].dtype
    shares = np.zeros(bits.shape)
    for k in range(points):
        t = jnp.asarray((k + 0.5) / points, dtype)
        slopes = _slopes(moves, loss, jnp.array(bits), t, inputs, targets)
        shares += to_host(slopes).astype(np.float64)
    first = np.zeros(len(moves.moves))
    for m, move in enumerate(moves.moves):
        kind, layer = "wa".index(move.kind), names.index(move.layer)
        if move.bits == bits[kind, layer]:
            first[m] = shares[kind, layer] / points
    return first


@functools.partial(jax.jit, static_argnums=1)
def _slopes(
    moves: MoveNetwork,
    loss: ExampleLoss,
    bits: Int[Array, "2 layers"],
    t: Float[Array, ""],
    inputs: PyTree,
    targets: Array,
) -> Float[Array, "2 layers"]:
    """Derivative of the mean loss along each layer's two moves, at t times all moves."""
    network, scales = moves.network, moves.quantizers
    recorded: dict[int | str, Array] = {}  # sites by index, points by name

    def keep(site: Site, x: Array, op: Op) -> Array:
        recorded[site.index] = x
        return op(x)

    def keep_point(point: Point, x: Array) -> Array:
        recorded[point.name] = x
        return x

    moves.run(inputs, keep, keep_point)

    def mean_loss(epsilon: Float[Array, "2 layers"]) -> Float[Array, ""]:
        def at_site(site: Site, x: Array, op: Op) -> Array:
            layer, kernel = site.layer_index, site.kernel
            if scales.activations is not None and site.has_input:
                delta = moves.own_change(site, recorded[site.index], bits[1, layer])
                x = x + ((t + epsilon[1, layer]) * widened(delta)).astype(x.dtype)
            if site.operation.kind == "cache":  # it has no kernel
                return op(x)
            quantized = quantize_kernel(network, layer, kernel, bits[0, layer], scales.weights)
            delta = quantized - kernel
            # Its dependence on x does not matter at ε = 0, where the derivative is taken.
            along = op(jax.lax.stop_gradient(x), delta)
            share = epsilon[0, layer] * widened(along)
            return op(x, kernel + t * delta) + share.astype(along.dtype)

        def at_point(point: Point, x: Array) -> Array:
            layer = point.layer_index
            delta = moves.point_change(point, recorded[point.name], bits[1, layer])
            return x + ((t + epsilon[1, layer]) * widened(delta)).astype(x.dtype)

        return jax.vmap(loss)(moves.run(inputs, at_site, at_point), targets).mean()

    return jax.grad(mean_loss)(jnp.zeros(bits.shape, t.dtype))


def _check_points(points: int) -> None:
    if points < 1:
        raise ValueError(f"points={points}: the path needs at least one point.")
