"""Hessian-vector products and what follows from them along given directions."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, PyTree

Params = PyTree[Float[Array, "..."]]
Scalar = Float[Array, ""]


def hvp(loss: Callable[[Params], Scalar], params: Params, tangent: Params) -> Params:
    """Hessian-vector product ``H @ tangent``, forward over reverse."""
    return jax.jvp(jax.grad(loss), (params,), (tangent,))[1]


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
