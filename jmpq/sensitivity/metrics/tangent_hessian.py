"""The exact Hessian in ε of a piecewise linear network: forward passes of tangents alone.

With J the derivative of the logits z along the moves and r = ∂loss/∂z, the Hessian of the
mean loss is the Gauss-Newton matrix mean JᵀH_zJ plus the curvature of the logits,
mean Σ_c r_c ∇²z_c. Where a network is piecewise linear between its kernels, the latter comes
from products of two moves alone: move m changes the input x_s of a later layer s by ẋ_s, which
move m' of that layer multiplies by δ_m'. With the gradient ḡ_s at the layer's output,

    U_mm' = ⟨op(ẋ_s, δ_m'), ḡ_s⟩ = ⟨ẋ_s, q_m'⟩,    q_m' = op(·, δ_m')ᵀ ḡ_s,

and the curvature of the logits is U + Uᵀ. One pass of tangents gives ẋ_s at all layers and the
logits' J at its end: about one forward pass of the later layers per move, no backward pass,
where a Hessian-vector product takes six to nine for each move.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jmpq.curvature.ggn import ggn_of_changes
from jmpq.formats import FLOAT_BITS
from jmpq.network.precision import widened
from jmpq.network.sites import Op, Site
from jmpq.network.walk import Path, bind
from jmpq.quantizers.fake_quant import quantize_kernel
from jmpq.quantizers.stream import Point, points_of
from jmpq.sensitivity.metric import Program
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import ExampleLoss

Kind = Literal["w", "a"]


class Pulled(NamedTuple):
    """Results of one backward pass for all moves of a batch."""

    z: Float[Array, "batch *output"]
    first: Float[Array, " moves"]  # ⟨∇L, δ⟩
    at_inputs: list[Array | None]  # q of the weight moves, [bits, *input]; None at indices


class Moving(NamedTuple):
    """A value, and its derivatives along the moves made so far: [rows, *value]."""

    value: Array
    tangents: Array


def exact_terms(
    moves: MoveNetwork, loss: ExampleLoss, inputs: PyTree, targets: Array
) -> tuple[Float[Array, " moves"], Float[Array, "moves moves"]]:
    """Gradient and exact Hessian of the mean loss in ε at zero, of a piecewise linear network.

    Memory is that of as many tangents as there are layers, whatever the number of bits: one
    pass makes one move of every layer.

    Args:
        moves: Network (`jmpq.network.piecewise.piecewise_linear`), quantizers and their moves.
        loss: Loss of one example; its own curvature may be anything.
        inputs: A few examples (4 to 8 stay in a CPU's cache).
        targets: One per example.
    """
    pulled = _pull(moves, loss, inputs, targets)
    upper, changes = {}, {}
    for kind in ("w", "a"):
        layers = _rows(moves, kind)
        scales = moves.quantizers.weights if kind == "w" else moves.quantizers.activations
        for i, bits in enumerate(scales.bits if scales else ()):
            products, along = _push(moves, kind, jnp.asarray(bits), pulled.at_inputs, inputs)
            rows = [moves.columns(layer, kind)[i] for layer in layers]
            upper |= dict(zip(rows, products, strict=True))
            # Not iterated over: of several processes none holds all of it.
            changes |= {row: along[k] for k, row in enumerate(rows)}
    order = range(len(moves.moves))
    return pulled.first, _sum(
        loss,
        pulled.z,
        targets,
        [changes[m] for m in order],
        [upper[m] for m in order],
    )


def exact_programs(
    moves: MoveNetwork, loss: ExampleLoss, inputs: PyTree, targets: Any
) -> list[Program]:
    """Programs that `exact_terms` compiles for a batch or its shapes."""
    pull = Program(_pull, (moves, loss, inputs, targets))
    pulled, programs = pull.results(), [pull]
    changes, upper = [], []
    for kind in ("w", "a"):
        if not (layers := _rows(moves, kind)):
            continue
        args = (moves, kind, jnp.asarray(FLOAT_BITS), pulled.at_inputs, inputs)
        programs.append(Program(_push, args))
        products, along = programs[-1].results()
        count = len(moves.columns(layers[0], kind)) * len(layers)
        upper += [jax.ShapeDtypeStruct(products.shape[1:], products.dtype)] * count
        changes += [jax.ShapeDtypeStruct(along.shape[1:], along.dtype)] * count
    return [*programs, Program(_sum, (loss, pulled.z, targets, changes, upper))]


@functools.partial(jax.jit, static_argnums=0)
def _sum(
    loss: ExampleLoss,
    z: Float[Array, "batch *output"],
    targets: Array,
    changes: list[Float[Array, "batch *output"]],
    upper: list[Float[Array, " moves"]],
) -> Float[Array, "moves moves"]:
    curved = jnp.stack(upper)
    gauss_newton = ggn_of_changes(loss, z, targets, jnp.stack(changes, axis=1))
    return gauss_newton + curved + curved.T


def _rows(moves: MoveNetwork, kind: Kind) -> list[int]:
    """Layers that have moves of a kind, as they first come in the network."""
    layers = dict.fromkeys(site.layer_index for site in moves.network.sites)
    return [layer for layer in layers if moves.columns(layer, kind).size]


@functools.partial(jax.jit, static_argnums=1)
def _pull(moves: MoveNetwork, loss: ExampleLoss, inputs: PyTree, targets: Array) -> Pulled:
    """Logits, gradients, and the weight moves pulled back to the layers' inputs."""
    network = moves.network
    ops: list[Op] = []

    def shifted(shifts: list[Array] | None) -> tuple[Array, Any]:
        data, outs, points = [], [], []

        def at_site(site: Site, x: Array, op: Op) -> Array:
            ops.append(op)
            data.append(x)
            outs.append(op(x) if shifts is None else op(x) + shifts[site.index])
            return outs[-1]

        def at_point(point: Point, x: Array) -> Array:
            points.append(x)
            return x if shifts is None else x + shifts[len(network.sites) + point.index]

        return moves.run(inputs, at_site, at_point), (data, outs, points)

    _, (_, outs, points) = jax.eval_shape(lambda: shifted(None))
    ops.clear()
    zeros = [jnp.zeros(y.shape, y.dtype) for y in (*outs, *points)]
    z, pull, (data, _, points) = jax.vjp(shifted, zeros, has_aux=True)
    (gradients,) = pull(jax.grad(lambda z: jax.vmap(loss)(z, targets).mean())(z))

    first, at_inputs = jnp.zeros(len(moves.moves), z.dtype), []
    kernels = network.kernels()
    at_points = gradients[len(network.sites) :]
    for x, g, point in zip(points, at_points, points_of(network)[: len(points)], strict=True):
        along = jnp.tensordot(moves.point_deltas(point, x), widened(g), x.ndim)
        first = first.at[moves.columns(point.layer_index, "a")].add(along)
    for site, x, g, op in zip(network.sites, data, gradients, ops, strict=False):
        layer, kernel = site.layer_index, kernels[site.layer_index]

        def back(kernel: Array, x: Array = x, g: Array = g, op: Op = op) -> Array:
            return jax.vjp(lambda x: op(x, kernel), x)[1](g)[0]

        q = None
        if (at := moves.columns(layer, "w")).size:
            deltas = moves.weight_deltas(layer, kernel)
            if site.has_input:
                q = jax.vmap(back)(deltas)
                along = jnp.tensordot(widened(q), widened(x), x.ndim)
            else:
                dot = lambda d, x=x, g=g, op=op: jnp.vdot(widened(op(x, d)), widened(g))  # noqa: E731
                along = jax.vmap(dot)(deltas)
            first = first.at[at].add(along)
        if site.has_input and (at := moves.columns(layer, "a")).size:
            deltas = moves.own_deltas(site, x)
            first = first.at[at].add(jnp.tensordot(deltas, widened(back(kernel)), x.ndim))
        at_inputs.append(q)
    return Pulled(z, first, at_inputs)


@functools.partial(jax.jit, static_argnums=1)
def _push(
    moves: MoveNetwork,
    kind: Kind,
    bits: Int[Array, ""],
    at_inputs: list[Array | None],
    inputs: PyTree,
) -> tuple[Float[Array, "rows moves"], Float[Array, "rows batch *output"]]:
    """U and the logits' changes along one move of every layer, the layers as in `_rows`."""
    network, quantizers = moves.network, moves.quantizers
    layers = _rows(moves, kind)
    dtype = network.kernels()[0].dtype
    upper = jnp.zeros((len(layers), len(moves.moves)), dtype)
    made: list[int] = []  # layers whose moves have rows by now

    def with_row(x: Array | Moving, layer: int, change: Array) -> Moving:
        if layer not in made:
            made.append(layer)
        value, tangents = x if isinstance(x, Moving) else (x, jnp.zeros((0, *x.shape), x.dtype))
        tangents = _padded(tangents, len(made))
        return Moving(value, tangents.at[made.index(layer)].add(change))

    def at_site(site: Site, x: Any, op: Op) -> Any:
        nonlocal upper
        layer, kernel = site.layer_index, site.kernel
        if kind == "a" and site.has_input and layer in layers:
            value = x.value if isinstance(x, Moving) else x
            x = with_row(x, layer, moves.own_change(site, value, bits))
        if isinstance(x, Moving) and (q := at_inputs[site.index]) is not None:
            rows = widened(x.tangents.reshape(len(x.tangents), -1))
            products = rows @ widened(q.reshape(len(q), -1)).T
            columns = moves.columns(layer, "w")
            upper = upper.at[: len(products), columns].add(products)
        y = op(x)
        if kind == "w" and layer in layers:
            value = x.value if isinstance(x, Moving) else x
            delta = quantize_kernel(network, layer, kernel, bits, quantizers.weights) - kernel
            y = with_row(y, layer, op(value, delta))
        return y

    def at_point(point: Point, x: Any) -> Any:
        if kind == "w":
            return x
        value = x.value if isinstance(x, Moving) else x
        return with_row(x, point.layer_index, moves.point_change(point, value, bits))

    z = moves.run(inputs, at_site, at_point, rule=_with_tangents)
    return upper, z.tangents


def _with_tangents(eqn: Any, ins: Sequence[Any], path: Path) -> list:
    """Evaluate an equation, the tangents of its inputs with it; absent rows are zero."""
    values = [x.value if isinstance(x, Moving) else x for x in ins]
    outs = bind(eqn, values)
    at = [i for i, x in enumerate(ins) if isinstance(x, Moving)]
    floats = [j for j, y in enumerate(outs) if jnp.issubdtype(y.dtype, jnp.inexact)]
    if not at or not floats:
        return outs
    rows = max(len(ins[i].tangents) for i in at)
    tangents = [_padded(ins[i].tangents, rows) for i in at]

    def moved(*some: Array) -> list[Array]:
        full = list(values)
        for i, x in zip(at, some, strict=True):
            full[i] = x
        moved_outs = bind(eqn, full)
        return [moved_outs[j] for j in floats]

    def push(*some: Array) -> list[Array]:
        return jax.jvp(moved, tuple(values[i] for i in at), some)[1]

    for j, along in zip(floats, jax.vmap(push)(*tangents), strict=True):
        outs[j] = Moving(outs[j], along)
    return outs


def _padded(tangents: Array, rows: int) -> Array:
    missing = rows - len(tangents)
    if not missing:
        return tangents
    return jnp.pad(tangents, [(0, missing)] + [(0, 0)] * (tangents.ndim - 1))
