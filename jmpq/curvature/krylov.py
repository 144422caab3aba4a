"""A product on flat vectors, and orthogonal bases of them: what the Lanczos methods share."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jmpq.curvature.hvp import Params, Product

Vector = Float[Array, " size"]
Basis = Float[Array, "rows size"]
highest = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # no TF32 on GPUs


class Operator(NamedTuple):
    """A product at fixed parameters, as a symmetric matrix known by its products."""

    matvec: Callable[[Vector], Vector]
    size: int
    dtype: jnp.dtype
    unravel: Callable[[Vector], Params]

    @property
    def eps(self) -> float:
        """Rounding unit of the vectors."""
        return float(jnp.finfo(self.dtype).eps)


def flat_operator(product: Product, params: PyTree) -> Operator:
    """`product` at `params` on flat vectors; refuses what has no real curvature."""
    leaves = jax.tree.leaves(params)
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves):
        raise ValueError(
            f"curvature needs float parameters, got {sorted({str(x.dtype) for x in leaves})}: "
            "keep integers (step counts, keys) out of `params`."
        )
    if not (size := sum(x.size for x in leaves)):
        raise ValueError("`params` is empty: there is nothing to take the curvature of.")
    flat, unravel = ravel_pytree(params)  # `unravel` is hashable, equal for equal trees
    split = functools.partial(_unravel, unravel)
    return Operator(lambda v: _ravel(product(params, split(v))), size, flat.dtype, split)


@jax.jit
def _ravel(tree: Params) -> Vector:
    return ravel_pytree(tree)[0]


@functools.partial(jax.jit, static_argnums=0)
def _unravel(unravel: Callable[[Vector], Params], vector: Vector) -> Params:
    return unravel(vector)


@jax.jit
def orthogonalize(
    basis: Basis, vector: Vector
) -> tuple[Float[Array, " rows"], Vector, Float[Array, ""]]:
    """Coefficients of `vector` in an orthonormal basis, what remains of it, and its norm.

    Classical Gram-Schmidt, twice: orthogonal to rounding. Rows of zeros stand for places not
    yet taken, so that one compilation serves a growing basis.
    """
    first = highest(basis, vector)
    rest = vector - highest(first, basis)
    second = highest(basis, rest)
    rest = rest - highest(second, basis)
    return first + second, rest, jnp.linalg.norm(rest)


@jax.jit
def along(vector: Vector, image: Vector) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Rayleigh quotient of a vector of norm one whose product is `image`, and residual norm."""
    value = highest(vector, image)
    return value, jnp.linalg.norm(image - value * vector)


@functools.partial(jax.jit, donate_argnums=0)
def put_row(basis: Basis, row: int | Array, vector: Vector) -> Basis:
    """`basis` with one row written in place: the old array is given up."""
    return basis.at[row].set(vector)


def checked(number: Array | float) -> float:
    """A norm as a Python float; the place where a product that is not finite is noticed."""
    if not math.isfinite(number := float(number)):
        raise ValueError(
            "the product H @ v is not finite: check the loss and its gradient at `params` "
            "for overflow and NaN."
        )
    return number
