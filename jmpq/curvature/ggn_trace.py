"""Exact Gauss-Newton traces of every block, without probes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmpq.curvature.hvp import Params
from jmpq.training.losses import ExampleLoss


def ggn_block_traces(
    logits: Callable[[Params, PyTree], Float[Array, "batch classes"]],
    loss: ExampleLoss,
    params: Params,
    inputs: PyTree,
    targets: Array,
) -> PyTree[Float[np.ndarray, " batch"]]:
    """Tr(J_iᵀ H_z J_i) of every leaf i and every example: no probes, no sampling error.

    One example at a time, one backward pass for all classes: Σ_cc' (H_z)_cc' ⟨J_c, J_c'⟩.
    All leaves come from the same pass. In a network that is piecewise linear in each leaf
    (ReLU) these are the traces of the diagonal Hessian blocks as well, almost everywhere.

    Args:
        logits: Of ``(params, inputs)``; of one example by itself (batch statistics frozen).
        loss: Loss of one example, nats; any curvature, no square root of H_z is taken.
        params: Point of expansion.
        inputs: Tree of arrays with one row per example.
        targets: One per example.

    Returns:
        Tree of `params` with one trace per example and leaf, float64. The mean over examples
        is the block's trace for the batch's mean loss, exact; the spread tells how it would
        change with other examples.

    Memory is classes × parameters, time examples × classes backward passes: for few classes
    (10, 100). For 1000 classes `block_traces` with a Gauss-Newton product is cheaper.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products, eq. (13) for J_zᵀ H_z J_z.
    """

    @jax.jit
    def traces(params: Params, example: PyTree, target: Array) -> PyTree[Float[Array, ""]]:
        of_one = lambda p: logits(p, jax.tree.map(lambda x: x[None], example))[0]  # noqa: E731
        z, pull = jax.vjp(of_one, params)
        (jacobian,) = jax.vmap(pull)(jnp.eye(z.size, dtype=z.dtype))
        curvature = jax.hessian(loss)(z, target)

        def block(rows: Float[Array, "classes ..."]) -> Float[Array, ""]:
            rows = rows.reshape(z.size, -1)
            highest = jax.lax.Precision.HIGHEST
            return jnp.sum(curvature * jnp.matmul(rows, rows.T, precision=highest))

        return jax.tree.map(block, jacobian)

    examples = [
        traces(params, jax.tree.map(lambda x, n=n: x[n], inputs), target)
        for n, target in enumerate(targets)
    ]
    return jax.tree.map(lambda *x: np.asarray(jax.device_get(x), np.float64), *examples)
