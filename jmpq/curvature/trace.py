"""Stochastic traces of Hessian blocks: one probe serves every block."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.curvature.hvp import Params, Scalar, hvp


def block_trace_sample(
    loss: Callable[[Params], Scalar], params: Params, key: Array
) -> PyTree[Scalar]:
    """One sample of the trace of every leaf's diagonal Hessian block: ``v_i · (Hv)_i``.

    Signs v are independent over all leaves, so the expectation is the trace of block i
    alone: one Hessian-vector product of the whole tree serves all blocks. Exact where the
    Hessian is diagonal.

    References:
        Hutchinson (1990); by blocks as in HAWQ-V2 (arXiv 1911.03852), section 3.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))
    signs = jax.tree.map(lambda x, k: jax.random.rademacher(k, x.shape, x.dtype), params, keys)
    return jax.tree.map(jnp.vdot, signs, hvp(loss, params, signs))


def block_traces(
    loss: Callable[[Params], Scalar], params: Params, *, key: Array, num_probes: int = 1
) -> tuple[PyTree[Scalar], PyTree[Scalar]]:
    """Hutchinson's estimate of the trace of every leaf's diagonal Hessian block.

    Args:
        loss: Scalar function of `params`; compiled once per call of this function.
        params: Point of expansion.
        key: Decides the probes.
        num_probes: Number of Rademacher probes, one after another in a loop on the host
            (inside a compiled loop the CPU is far slower on convolution gradients).

    Returns:
        Trees of `params` with one scalar per leaf: the mean over probes, and its standard
        error (NaN for one probe). Negative curvature is kept.
    """
    sample = jax.jit(functools.partial(block_trace_sample, loss))
    samples = [sample(params, k) for k in jax.random.split(key, num_probes)]

    def over_probes(statistic: Callable[[Array], Array]) -> PyTree[Scalar]:
        return jax.tree.map(lambda *values: statistic(jnp.stack(values)), *samples)

    def sem(values: Float[Array, " probes"]) -> Scalar:
        if num_probes == 1:
            return jnp.full_like(values[0], jnp.nan)
        return values.std(ddof=1) / math.sqrt(num_probes)

    return over_probes(lambda values: values.mean()), over_probes(sem)
