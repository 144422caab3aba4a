"""Hessian-vector products and what follows from them along given directions."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.kinds import check_kinds

Params = PyTree[Float[Array, "..."]]
Scalar = Float[Array, ""]
Order = Literal["forward_over_reverse", "reverse_over_forward"]

# product(params, tangent) -> H @ tangent: symmetric, linear in the tangent, compiled by
# whoever makes it. The estimators of this stage take one and call it in a loop on the host:
# inside a compiled loop the CPU is far slower on convolution gradients.
Product = Callable[[Params, Params], Params]


@check_kinds
def hvp(
    loss: Callable[[Params], Scalar],
    params: Params,
    tangent: Params,
    order: Order = "forward_over_reverse",
) -> Params:
    """Hessian-vector product ``H @ tangent``."""
    if order == "reverse_over_forward":
        return jax.grad(lambda at: jax.jvp(loss, (at,), (tangent,))[1])(params)
    return jax.jvp(jax.grad(loss), (params,), (tangent,))[1]


@check_kinds
def hessian(loss: Callable[[Params], Scalar]) -> Product:
    """The Hessian of `loss` as a compiled product; one compilation for all who use it.

    For the Gauss-Newton matrix: ``jax.jit(functools.partial(ggn_product, logits, loss,
    targets))``.

    >>> import jax.numpy as jnp
    >>> product = hessian(lambda x: (x**3).sum())
    >>> product(jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])).tolist()
    [6.0, 12.0]
    """
    return jax.jit(functools.partial(hvp, loss))


def hessian_over(
    loss: Callable[[Params, PyTree], Scalar],
    batches: Sequence[PyTree],
    *,
    order: Order = "forward_over_reverse",
    memory_bytes: int = 0,
) -> Product:
    """The Hessian of the mean loss over all examples of several batches, one after another.

    Micro-batches of 8 to 16 images stay in a CPU's cache; memory is that of one batch, and of
    the linearised gradients that `memory_bytes` allows to be kept.

    Args:
        loss: Mean loss of one batch, nats per example, as a function of ``(params, batch)``.
        batches: Trees whose leaves have one row per example. Compiled once per shape.
        order: Order of differentiation, where nothing is kept. All give the same product.
        memory_bytes: Room for linearised gradients (`linearization_bytes` each), of as many
            batches as fit. A product there does not take the gradient at `params` again, as
            long as the same `params` come (ResNet-20 on a CPU: 0.7 to 0.9 of the time).

    Returns:
        A product (not itself to be traced: it loops on the host) in which every example
        counts alike, also where the last batch is smaller.

    Raises:
        ValueError: Where there are no batches.
    """
    if not batches:
        raise ValueError("`batches` is empty: give at least one batch of examples.")
    counts = [jax.tree.leaves(batch)[0].shape[0] for batch in batches]
    shares = [jnp.asarray(count / sum(counts)) for count in counts]
    linearize = jax.jit(functools.partial(_linearized_gradient, loss))

    @jax.jit
    def add(
        total: Params, share: Float[Array, ""], params: Params, tangent: Params, batch: PyTree
    ) -> Params:
        return _plus(total, share, hvp(lambda at: loss(at, batch), params, tangent, order))

    @jax.jit
    def add_kept(
        total: Params,
        share: Float[Array, ""],
        push: Callable[[Params], Params],
        tangent: Params,
    ) -> Params:
        return _plus(total, share, push(tangent))

    kept: list[Callable[[Params], Params]] = []
    kept_at: list[Array] = []

    def product(params: Params, tangent: Params) -> Params:
        leaves = jax.tree.leaves(params)
        if [id(x) for x in leaves] != [id(x) for x in kept_at]:
            kept[:], kept_at[:], left = [], leaves, memory_bytes
            for batch in batches if memory_bytes else ():
                if (left := left - linearization_bytes(loss, params, batch)) < 0:
                    break
                kept.append(linearize(params, batch))
        total = jax.tree.map(jnp.zeros_like, params)
        for i, (share, batch) in enumerate(zip(shares, batches, strict=True)):
            if i < len(kept):
                total = add_kept(total, share, kept[i], tangent)
            else:
                total = add(total, share, params, tangent, batch)
        return total

    return product


def linearization_bytes(
    loss: Callable[[Params, PyTree], Scalar], params: Params, batch: PyTree
) -> int:
    """Bytes that the linearised gradient of one batch takes; nothing is computed."""
    push = jax.eval_shape(functools.partial(_linearized_gradient, loss), params, batch)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(push))


def _linearized_gradient(
    loss: Callable[[Params, PyTree], Scalar], params: Params, batch: PyTree
) -> Callable[[Params], Params]:
    """``tangent -> H @ tangent`` at `params`: a pytree, so that it can be kept."""
    return jax.linearize(jax.grad(lambda at: loss(at, batch)), params)[1]


def _plus(total: Params, share: Float[Array, ""], part: Params) -> Params:
    return jax.tree.map(lambda t, x: t + share.astype(x.dtype) * x, total, part)


@check_kinds
def second_order_increase(
    loss: Callable[[Params], Scalar], params: Params, delta: Params
) -> Scalar:
    """Predict the loss increase from perturbing the parameters: ½ δᵀHδ.

    Args:
        loss: Mean loss of one batch, nats per example, as a function of `params`.
        params: Point of expansion, any pytree of float arrays.
        delta: Perturbation ``Q(w) - w``: tree and shapes of `params`. Zero leaves
            leave a layer out, so one function serves a layer, a group and the net.

    Returns:
        ½ δᵀHδ, nats per example, by ``jvp`` of ``jvp``: no backward pass. The gradient term
        is left out (small at a trained optimum); negative where H is indefinite along δ,
        never clipped here.

    Raises:
        ValueError: If `delta` and `params` differ in tree structure.

    References:
        LeCun, Denker, Solla (1990), Optimal Brain Damage, eq. (1), Hessian terms.
    """
    if (got := jax.tree.structure(delta)) != (want := jax.tree.structure(params)):
        raise ValueError(f"`delta` must have the tree of `params`: {want}, got {got}.")

    def slope(at: Params) -> Scalar:
        return jax.jvp(loss, (at,), (delta,))[1]

    return 0.5 * jax.jvp(slope, (params,), (delta,))[1]
