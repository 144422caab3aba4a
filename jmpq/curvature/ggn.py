"""Generalised Gauss-Newton: curvature through the logits, J_zᵀ (∂²loss/∂z²) J_z.

The output of an example may have any shape: classes, positions with classes, or one number.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.kinds import check_kinds
from jmpq.training.losses import ExampleLoss


@check_kinds
def ggn_product(
    logits: Callable[[PyTree], Float[Array, "batch *output"]],
    loss: ExampleLoss,
    targets: Array,
    params: PyTree,
    tangent: PyTree,
) -> PyTree:
    """Gauss-Newton-vector product ``mean_n J_nᵀ H_z J_n @ tangent``.

    Args:
        logits: Logits of one batch as a function of `params`.
        loss: Loss of one example, nats.
        targets: One per example.
        params: Point of expansion.
        tangent: Direction: tree and shapes of `params`.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products, eq. (13).
    """
    z, changes = jax.jvp(logits, (params,), (tangent,))
    _, pull = jax.vjp(logits, params)
    curved = jax.vmap(functools.partial(hessian_product, loss))(z, targets, changes)
    return pull(curved / z.shape[0])[0]


def hessian_product(
    loss: ExampleLoss,
    z: Float[Array, "*output"],
    target: Array,
    change: Float[Array, "*output"],
) -> Float[Array, "*output"]:
    """``∂²loss/∂z² @ change`` of one example; (diag p − ppᵀ) @ change for cross-entropy."""
    return jax.jvp(jax.grad(lambda logits: loss(logits, target)), (z,), (change,))[1]


def gradient_of_changes(
    loss: ExampleLoss,
    z: Float[Array, "batch *output"],
    targets: Array,
    changes: Float[Array, "batch moves *output"],
) -> Float[Array, "batch moves"]:
    """First-order loss change of every example and move: ⟨∂loss/∂z, u⟩ (r·u, r = p − y)."""
    slopes = jax.vmap(jax.grad(loss))(z, targets)
    flat = changes.reshape(*changes.shape[:2], -1)
    return jnp.einsum("nc,nmc->nm", slopes.reshape(len(z), -1), flat)


def ggn_of_changes(
    loss: ExampleLoss,
    z: Float[Array, "batch *output"],
    targets: Array,
    changes: Float[Array, "batch moves *output"],
) -> Float[Array, "moves moves"]:
    """Gauss-Newton matrix of all moves from their logit changes: mean_n u_nᵀ H_z u_n.

    For cross-entropy and KL this is mean Cov_p(u_m, u_m'): label-free, positive
    semi-definite, and exactly the Hessian of KL(p ‖ p_quantized) at zero.

    Args:
        loss: Loss of one example, nats.
        z: Logits of the unperturbed network.
        targets: One per example.
        changes: Change u of the logits of each example under each move.
    """
    product = jax.vmap(functools.partial(hessian_product, loss), (None, None, 0))
    curved = jax.vmap(product)(z, targets, changes)
    flat, curved = (x.reshape(*x.shape[:2], -1) for x in (changes, curved))
    return jnp.einsum("nmc,nkc->mk", flat, curved) / z.shape[0]
