"""Stochastic traces of Hessian blocks: one probe serves every block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.curvature.hvp import Params, Scalar, hvp


def block_traces(
    loss: Callable[[Params], Scalar], params: Params, *, key: Array, num_probes: int = 1
) -> tuple[PyTree[Scalar], PyTree[Scalar]]:
    """Hutchinson's estimate of the trace of every leaf's diagonal Hessian block.

    Signs are independent over all leaves, so ``E[v_i · (Hv)_i]`` is the trace of block i
    alone: one Hessian-vector product of the whole tree per probe serves all blocks. Exact
    where the Hessian is diagonal.

    Args:
        loss: Scalar function of `params`.
        params: Point of expansion.
        key: Decides the probes.
        num_probes: Number of Rademacher probes, taken one after another.

    Returns:
        Trees of `params` with one scalar per leaf: the mean over probes, and its standard
        error (NaN for one probe). Negative curvature is kept.

    References:
        Hutchinson (1990); block form as in HAWQ-V2 (arXiv 1911.03852), section 3.
    """
    leaves, tree = jax.tree.flatten(params)

    def probe(key: Array) -> Float[Array, " leaves"]:
        keys = jax.random.split(key, len(leaves))
        signs = [
            jax.random.rademacher(k, leaf.shape, leaf.dtype)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        products = jax.tree.leaves(hvp(loss, params, jax.tree.unflatten(tree, signs)))
        return jnp.stack([jnp.vdot(v, hv) for v, hv in zip(signs, products, strict=True)])

    samples = jax.lax.map(probe, jax.random.split(key, num_probes))
    sem = samples.std(axis=0, ddof=1) / jnp.sqrt(jnp.asarray(num_probes, samples.dtype))
    sem = sem if num_probes > 1 else jnp.full_like(sem, jnp.nan)
    return jax.tree.unflatten(tree, samples.mean(axis=0)), jax.tree.unflatten(tree, sem)
