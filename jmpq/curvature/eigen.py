"""Extreme eigenvalues and eigenvectors of a Hessian, with residuals, by block Lanczos."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jmpq.curvature.hvp import Params, Product
from jmpq.curvature.krylov import (
    Basis,
    Operator,
    Vector,
    along,
    checked,
    flat_operator,
    highest,
    orthogonalize,
)
from jmpq.kinds import check_kinds

Which = Literal["largest", "magnitude", "smallest"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EigenPairs:
    """Approximate eigenpairs; by Weyl an eigenvalue lies within `residuals` of each value."""

    values: Float[np.ndarray, " k"]  # unit of the function per squared unit of `params`
    vectors: list[Params]  # trees of `params`, of norm one
    residuals: Float[np.ndarray, " k"]  # ‖Hv − λv‖, measured by a product of its own
    converged: Bool[np.ndarray, " k"]  # residual within tolerance
    products: int  # products H @ v spent, the last ones that measure residuals included


@check_kinds
def top_eigenpairs(
    product: Product,
    params: Params,
    k: int = 1,
    *,
    key: Array,
    which: Which = "magnitude",
    tolerance: float = 1e-3,
    max_products: int = 300,
    max_basis: int | None = None,
    block_size: int | None = None,
) -> EigenPairs:
    """The `k` extreme eigenpairs by thick-restarted block Lanczos, fully reorthogonalised.

    Args:
        product: ``H @ tangent``, e.g. ``hessian(loss)``. Called in a loop on the host.
        params: Point of expansion.
        k: Number of eigenpairs.
        key: Random key of the starting vectors.
        which: ``"largest"`` and ``"smallest"`` (most negative) are algebraic;
            ``"magnitude"`` is the largest absolute value. Values come in that order.
        tolerance: Stop where every residual is at most ``tolerance · |λ|`` (or at the
            rounding of the products, 100 ε times the largest |λ| seen: zero eigenvalues).
            Away from its neighbours a value is accurate to the residual squared over the gap.
        max_products: Give up after so many, `k` that measure the residuals not counted.
        max_basis: Vectors held in memory, each as large as `params`; restarts beyond.
        block_size: Starting vectors: eigenvalues are found up to this multiplicity, copies
            beyond may be missed without a sign of it. Default `k`: none of the top `k` are
            missed. One takes the fewest products and finds distinct eigenvalues.

    Returns:
        The best pairs found. Where `converged` is false, more products are needed (or a
        larger tolerance: float32 products have rounding of their own); nothing is hidden.

    Raises:
        ValueError: For sizes that do not fit, or a product that is not finite.

    References:
        Wu, Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue
        problems; Golub, Van Loan (2013), Matrix Computations, section 10.3 (block Lanczos).
    """
    operator = flat_operator(product, params)
    size = operator.size
    if not 1 <= k <= size:
        raise ValueError(f"k={k} eigenpairs of {size} parameters: k must be 1 to {size}.")
    block = min(k if block_size is None else block_size, size)
    rows = min(size, max(2 * k + 20, 4 * block + k) if max_basis is None else max_basis)
    if block < 1 or rows < min(size, k + block + 1):
        raise ValueError(
            f"max_basis={max_basis} and block_size={block_size} do not fit k={k}: block_size "
            f"must be at least 1 and max_basis at least k + block_size + 1 = {k + block + 1}."
        )
    if max_products < k:
        raise ValueError(f"max_products={max_products} must be at least k={k}.")

    def order(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return {"largest": -values, "smallest": values, "magnitude": -abs(values)}[which]

    def bound(values: Float[np.ndarray, " n"], scale: float) -> Float[np.ndarray, " n"]:
        return np.maximum(tolerance * abs(values), 100 * operator.eps * scale)

    space = _Krylov(operator, rows, block, key)
    while True:
        space.expand()
        values, within, residuals = space.ritz()
        best = np.argsort(order(values), kind="stable")
        scale, top = abs(values).max(), best[:k]
        done = len(values) >= k and np.all(residuals[top] <= bound(values[top], scale))
        if done or space.filled == size or space.products >= max_products:
            break
        if space.filled == rows:
            keep = min(k + (rows - k) // 3, rows - block)
            space.restart(values, within, best[:keep])

    pairs = [
        _measure(operator, v) for v in highest(_array(within[:, top].T, space), space.basis)
    ]
    values, residuals = np.array([p[1] for p in pairs]), np.array([p[2] for p in pairs])
    return EigenPairs(
        values=values,
        vectors=[operator.unravel(vector) for vector, _, _ in pairs],
        residuals=residuals,
        converged=residuals <= bound(values, scale),
        products=space.products + k,
    )


class _Krylov:
    """A growing space with ``H Vᵀ = Vᵀ T + Pᵀ C``: basis V, pending vectors P ⊥ V.

    Invariant of `expand` and `restart`; it gives the residual of every Ritz pair (θ, s) of T
    as ‖Pᵀ C s‖ without a product. This is band Lanczos: pending vectors enter one by one.
    """

    def __init__(self, operator: Operator, rows: int, block: int, key: Array) -> None:
        self.operator, self.key = operator, key
        self.basis: Basis = jnp.zeros((rows, operator.size), operator.dtype)
        self.projected = np.zeros((rows, rows))  # T
        self.coupling = np.zeros((block, rows))  # C
        self.pending = jnp.stack([self.random() for _ in range(block)])  # P
        self.gram = np.eye(block)  # P Pᵀ
        self.filled = self.products = self.turn = 0
        self.scale = 0.0

    def random(self) -> Vector:
        self.key, key = jax.random.split(self.key)
        return jax.random.normal(key, (self.operator.size,), self.operator.dtype)

    def expand(self) -> None:
        """Take the next pending vector into the basis: one product."""
        j, i = self.turn, self.filled
        vector, norm = _direction(self.basis, self.pending[j])
        while checked(norm) <= 10 * self.operator.eps * self.scale:
            # The space is invariant along this vector: go on with a fresh one.
            vector, norm = _direction(self.basis, self.random())
        image = self.operator.matvec(vector)
        self.basis, self.pending, column, gram = _absorb(
            self.basis, self.pending, i, j, vector, image
        )
        self.projected[:, i] = self.projected[i, :] = np.asarray(column, np.float64)
        self.gram = np.asarray(gram, np.float64)
        rest = checked(np.sqrt(self.gram[j, j]))
        self.scale = max(self.scale, rest, float(abs(self.projected[i]).max()))
        self.coupling[j] = 0.0
        self.coupling[j, i] = 1.0
        self.filled, self.products = i + 1, self.products + 1
        self.turn = (j + 1) % len(self.coupling)

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values, their vectors within the basis (columns), and residual norms."""
        n = self.filled
        values, within = np.linalg.eigh(self.projected[:n, :n])
        left = self.coupling[:, :n] @ within
        squares = np.einsum("ik,ij,jk->k", left, self.gram, left)
        within = np.vstack([within, np.zeros((len(self.projected) - n, n))])
        return values, within, np.sqrt(np.maximum(squares, 0.0))

    def restart(self, values: np.ndarray, within: np.ndarray, keep: np.ndarray) -> None:
        """Shrink the basis to the Ritz vectors `keep`."""
        n = len(keep)
        chosen = np.zeros_like(self.projected)
        chosen[:, :n] = within[:, keep]
        self.basis = highest(_array(chosen.T, self), self.basis)
        self.coupling = self.coupling @ chosen
        self.projected = np.zeros_like(self.projected)
        self.projected[np.arange(n), np.arange(n)] = values[keep]
        self.filled = n


@jax.jit
def _direction(basis: Basis, vector: Vector) -> tuple[Vector, Float[Array, ""]]:
    """The part of a vector outside the basis: with norm one, and its norm."""
    _, rest, norm = orthogonalize(basis, vector)
    return rest / norm, norm


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _absorb(
    basis: Basis,
    pending: Float[Array, "block size"],
    i: int | Array,
    j: int | Array,
    vector: Vector,
    image: Vector,
) -> tuple[Basis, Float[Array, "block size"], Float[Array, " rows"], Float[Array, "_ _"]]:
    """Put `vector` into row i; the new part of its product becomes pending vector j."""
    basis = basis.at[i].set(vector)
    column, rest, _ = orthogonalize(basis, image)
    pending = pending - jnp.outer(highest(pending, vector), vector)
    pending = pending.at[j].set(rest)
    return basis, pending, column, highest(pending, pending.T)


def _array(matrix: np.ndarray, space: _Krylov) -> Float[Array, "_ _"]:
    return jnp.asarray(matrix, space.operator.dtype)


def _measure(operator: Operator, vector: Vector) -> tuple[Vector, float, float]:
    """The vector with norm one, its Rayleigh quotient and its residual norm."""
    vector = vector / jnp.linalg.norm(vector)
    value, residual = along(vector, operator.matvec(vector))
    return vector, float(value), checked(residual)
