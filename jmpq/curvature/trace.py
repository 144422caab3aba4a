"""Stochastic traces of Hessian blocks: one probe serves every block."""

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jmpq.curvature.hvp import Params, Product, Scalar, hvp
from jmpq.kinds import check_kinds

Value = TypeVar("Value")  # a number, an array, or a tree with one number per leaf


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Estimate(Generic[Value]):
    """A mean over random probes and its standard error."""

    value: Value
    sem: Value  # standard error of `value` over probes, NaN for one probe
    probes: int  # samples averaged
    products: int  # products H @ v spent


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
    signs = random_signs(params, key)
    return dot_by_leaf(signs, hvp(loss, params, signs))


@jax.jit
def random_signs(params: Params, key: Array) -> Params:
    """Independent Rademacher signs: tree, shapes and dtypes of `params`."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))
    return jax.tree.map(lambda x, k: jax.random.rademacher(k, x.shape, x.dtype), params, keys)


@jax.jit
def dot_by_leaf(a: Params, b: Params) -> PyTree[Scalar]:
    """Inner product of every leaf of two trees."""
    dot = lambda x, y: jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    return jax.tree.map(dot, a, b)


@check_kinds
def block_traces(
    product: Product,
    params: Params,
    *,
    key: Array,
    max_probes: int = 100,
    tolerance: float | None = None,
) -> Estimate[PyTree[float]]:
    """Hutchinson's estimate of the trace of every leaf's diagonal Hessian block.

    Args:
        product: ``H @ tangent``, e.g. ``hessian(loss)``: one per probe, for all blocks.
        params: Point of expansion.
        key: Random key of the probes; more probes repeat the first ones.
        max_probes: Rademacher probes, in a loop on the host.
        tolerance: Stop early, after 8 probes at least, where the standard error of every
            block is at most ``tolerance · |value|``. Stopping on the error that was seen
            makes it a little optimistic.

    Returns:
        Trees of `params` with one number per leaf. Negative curvature is kept.

    Raises:
        ValueError: For no probes, or a product that is not finite.
    """

    def sample(key: Array) -> PyTree[Scalar]:
        signs = random_signs(params, key)
        return dot_by_leaf(signs, product(params, signs))

    values, sems, probes = average(sample, key, max_probes=max_probes, tolerance=tolerance)
    return Estimate(value=values, sem=sems, probes=probes, products=probes)


def trace(
    product: Product,
    params: Params,
    *,
    key: Array,
    max_probes: int = 100,
    tolerance: float | None = None,
) -> Estimate[float]:
    """Hutchinson's estimate of the trace of the whole Hessian; arguments of `block_traces`.

    Its standard error is its own: between blocks the samples are correlated.
    """

    def sample(key: Array) -> float:
        signs = random_signs(params, key)
        parts = jax.tree.leaves(dot_by_leaf(signs, product(params, signs)))
        return float(np.sum([float(x) for x in parts]))

    value, sem, probes = average(sample, key, max_probes=max_probes, tolerance=tolerance)
    return Estimate(value=value, sem=sem, probes=probes, products=probes)


def average(
    sample: Callable[[Array], PyTree],
    key: Array,
    *,
    max_probes: int,
    tolerance: float | None = None,
    min_probes: int = 8,
) -> tuple[PyTree[float], PyTree[float], int]:
    """Mean and standard error of the scalars in ``sample(key)``, float64, until settled."""
    if max_probes < 1:
        raise ValueError(f"max_probes={max_probes}: an estimate takes at least one probe.")
    rows: list[list[float]] = []
    tree = None
    mean = sem = np.zeros(0)
    for i in range(max_probes):
        leaves, tree = jax.tree.flatten(sample(jax.random.fold_in(key, i)))
        rows.append([float(x) for x in jax.device_get(leaves)])
        samples = np.array(rows)
        if not np.isfinite(samples[-1]).all():
            raise ValueError(
                "the product H @ v is not finite: check the loss and its gradient at "
                "`params` for overflow and NaN."
            )
        mean = samples.mean(axis=0)
        sem = np.full_like(mean, np.nan)
        if i > 0:
            sem = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
        if tolerance is not None and len(rows) >= min_probes:
            if np.all(sem <= tolerance * abs(mean)):
                break
    assert tree is not None
    restore = lambda x: jax.tree.unflatten(tree, x.tolist())  # noqa: E731
    return restore(mean), restore(sem), len(rows)
