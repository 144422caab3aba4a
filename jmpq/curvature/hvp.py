"""Hessian-vector products and what follows from them along given directions."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Params = PyTree[Float[Array, "..."]]
Scalar = Float[Array, ""]

# product(params, tangent) -> H @ tangent: symmetric, linear in the tangent, compiled by
# whoever makes it. The estimators of this stage take one and call it in a loop on the host:
# inside a compiled loop the CPU is far slower on convolution gradients.
Product = Callable[[Params, Params], Params]


def hvp(loss: Callable[[Params], Scalar], params: Params, tangent: Params) -> Params:
    """Hessian-vector product ``H @ tangent``, forward over reverse."""
    return jax.jvp(jax.grad(loss), (params,), (tangent,))[1]


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
    loss: Callable[[Params, PyTree], Scalar], batches: Sequence[PyTree]
) -> Product:
    """The Hessian of the mean loss over all examples of several batches, one after another.

    Micro-batches of 8 to 16 images stay in a CPU's cache; memory is that of one batch.

    Args:
        loss: Mean loss of one batch, nats per example, as a function of ``(params, batch)``.
        batches: Trees whose leaves have one row per example. Compiled once per shape.

    Returns:
        A product (not itself to be traced: it loops on the host) in which every example
        counts alike, also where the last batch is smaller.

    Raises:
        ValueError: Where there are no batches.
    """
    if not batches:
        raise ValueError("`batches` is empty: give at least one batch of examples.")
    counts = [jax.tree.leaves(batch)[0].shape[0] for batch in batches]

    @jax.jit
    def add(
        total: Params, share: Float[Array, ""], params: Params, tangent: Params, batch: PyTree
    ) -> Params:
        part = hvp(lambda at: loss(at, batch), params, tangent)
        return jax.tree.map(lambda t, x: t + share.astype(x.dtype) * x, total, part)

    def product(params: Params, tangent: Params) -> Params:
        total = jax.tree.map(jnp.zeros_like, params)
        for batch, count in zip(batches, counts, strict=True):
            total = add(total, jnp.asarray(count / sum(counts)), params, tangent, batch)
        return total

    return product


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
