"""Hutch++: the trace's large part exactly, by a sketch; the small rest by probes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jmpq.curvature.hvp import Params, Product
from jmpq.curvature.krylov import along, checked, flat_operator, orthogonalize, put_row
from jmpq.curvature.trace import Estimate, average


def hutch_plus_plus(
    product: Product,
    params: Params,
    *,
    key: Array,
    max_products: int = 60,
    rank: int | None = None,
    tolerance: float | None = None,
) -> Estimate[float]:
    """Trace of the whole matrix, error O(1/m) of its size after m products where it is PSD.

    tr(H) = tr(QᵀHQ) + tr((I − QQᵀ)H(I − QQᵀ)), Q an orthonormal basis of H @ signs: the first
    term exactly, the second by Hutchinson. Better than Hutchinson alone where few
    eigenvalues carry the trace's variance; no better where the spectrum is flat.

    Args:
        product: ``H @ tangent``; of one block by `jmpq.curvature.blocks.restrict`.
        params: Point of expansion.
        key: Decides the sketch and the probes.
        max_products: Products in all: `rank` for the sketch, `rank` for tr(QᵀHQ), the rest
            for probes.
        rank: Columns of the sketch, each held in memory; default a third of the products.
        tolerance: As of `block_traces`, relative to the whole trace.

    Returns:
        The trace; `sem` is that of the second term (given Q, the first has no error).

    Raises:
        ValueError: Where no product is left for a probe, or one is not finite.

    References:
        Meyer, Musco, Musco, Woodruff (2021), Hutch++: optimal stochastic trace estimation,
        arXiv 2010.09649, algorithm 1.
    """
    operator = flat_operator(product, params)
    rank = min(max_products // 3 if rank is None else rank, operator.size)
    if rank < 1 or (max_products <= 2 * rank and rank < operator.size):
        raise ValueError(
            f"max_products={max_products} and rank={rank} leave no probe: rank must be at "
            "least 1 and max_products more than twice the rank."
        )
    to_sketch, to_probe = jax.random.split(key)

    def signs(key: Array) -> Array:
        return jax.random.rademacher(key, (operator.size,), operator.dtype)

    basis = jnp.zeros((rank, operator.size), operator.dtype)
    inside, products, taken, scale = 0.0, 0, 0, 0.0
    for i in range(rank):
        image = operator.matvec(signs(jax.random.fold_in(to_sketch, i)))
        products += 1
        scale = max(scale, checked(jnp.linalg.norm(image)))
        _, rest, norm = orthogonalize(basis, image)
        if checked(norm) <= 10 * operator.eps * scale:
            break  # the sketch has the rank of H
        basis = put_row(basis, taken, rest / norm)
        taken += 1
    for row in basis[:taken]:
        inside += float(along(row, operator.matvec(row))[0])
        products += 1
    if taken == operator.size:
        return Estimate(value=inside, sem=0.0, probes=0, products=products)

    def sample(key: Array) -> float:
        _, outside, _ = orthogonalize(basis, signs(key))
        return inside + float(along(outside, operator.matvec(outside))[0])

    value, sem, probes = average(
        sample, to_probe, max_probes=max_products - products, tolerance=tolerance
    )
    assert isinstance(value, float)  # one number goes in and comes out
    assert isinstance(sem, float)
    return Estimate(value=value, sem=sem, probes=probes, products=products + probes)
