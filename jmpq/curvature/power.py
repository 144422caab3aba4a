"""Power iteration as the HAWQ papers run it: cheap, and silent about what it missed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jmpq.curvature.eigen import EigenPairs
from jmpq.curvature.hvp import Params, Product
from jmpq.curvature.krylov import along, checked, flat_operator


def power_iteration(
    product: Product,
    params: Params,
    *,
    key: Array,
    tolerance: float = 1e-2,
    max_products: int = 100,
) -> EigenPairs:
    """The eigenvalue of largest magnitude, stopped where it changes by less than 1 %.

    For comparison with published numbers. A small change does not bound the error: where the
    two leading eigenvalues are close the iteration stalls between them, and where they
    differ in sign alone it never settles. `residuals` tells; `top_eigenpairs` does better.

    Args:
        product: ``H @ tangent``.
        params: Point of expansion.
        key: Random key of the starting vector (normal, norm one).
        tolerance: Limit of the change of vᵀHv between iterations, relative to its last value.
        max_products: Iterations at most.

    Returns:
        One pair, its residual as of `top_eigenpairs`; `converged` here says only that the
        change fell below `tolerance`. No product is spent beyond the iteration.

    Raises:
        ValueError: For fewer than two products, or one that is not finite.

    References:
        Dong et al. (2019), HAWQ, arXiv 1905.03696; Shen et al. (2020), Q-BERT,
        arXiv 1909.05840 (both: power iteration on Hessian-vector products).
    """
    if max_products < 2:
        raise ValueError(f"max_products={max_products}: a change takes at least 2 products.")
    operator = flat_operator(product, params)
    image = jax.random.normal(key, (operator.size,), operator.dtype)
    value, change, products = 0.0, np.inf, 0
    vector, residual, norm = image, 0.0, checked(jnp.linalg.norm(image))
    while products < max_products and change >= tolerance and norm > 0:
        vector, last = image / norm, value
        image = operator.matvec(vector)
        quotient, rest = along(vector, image)
        value, residual = float(quotient), checked(rest)
        norm = math.hypot(value, residual)  # of the image
        products += 1
        if products > 1:
            change = abs(value - last) / max(abs(last), np.finfo(float).tiny)
    return EigenPairs(
        values=np.array([value]),
        vectors=[operator.unravel(vector)],
        residuals=np.array([residual]),
        converged=np.array([norm == 0 or change < tolerance]),
        products=products,
    )
