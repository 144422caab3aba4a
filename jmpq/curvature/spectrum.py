"""Spectral density of a Hessian by stochastic Lanczos quadrature."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import eigh_tridiagonal

from jmpq.curvature.hvp import Params, Product
from jmpq.curvature.krylov import (
    Operator,
    Vector,
    checked,
    flat_operator,
    orthogonalize,
    put_row,
)
from jmpq.curvature.trace import Estimate
from jmpq.kinds import check_kinds


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Spectrum:
    """Gauss quadrature of the eigenvalue distribution, one rule per probe.

    The mean of f over all eigenvalues is about ``(weights * f(nodes)).sum(-1).mean()``.
    """

    nodes: Float[np.ndarray, "probes steps"]  # eigenvalues of the Lanczos matrices
    weights: Float[np.ndarray, "probes steps"]  # sum to one in each probe
    size: int  # number of eigenvalues: of parameters
    products: int  # products H @ v spent


@check_kinds
def lanczos_spectrum(
    product: Product, params: Params, *, key: Array, probes: int = 8, steps: int = 60
) -> Spectrum:
    """Nodes and weights of the spectral density, `steps` products for each of `probes`.

    Args:
        product: ``H @ tangent``, e.g. ``hessian(loss)``. Called in a loop on the host.
        params: Point of expansion.
        key: Random key of the probes (Rademacher: moments are Hutchinson's).
        probes: Starting vectors; their spread gives the standard errors.
        steps: Lanczos steps, fully reorthogonalised: a rule integrates polynomials up to
            degree ``2 · steps − 1`` exactly for its probe. `steps` vectors are in memory.
            Fewer where a Krylov space is exhausted: the rule is then exact, its last nodes
            repeat with weight zero.

    Returns:
        Extreme nodes sit on extreme eigenvalues with weight about 1/`size` each; the bulk is
        seen smoothed (`density`).

    Raises:
        ValueError: For no probes or steps, or a product that is not finite.

    References:
        Golub, Welsch (1969), Calculation of Gauss quadrature rules; Ubaru, Chen, Saad
        (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature; Ghorbani,
        Krishnan, Xiao (2019), arXiv 1901.10159 (Hessians of networks).
    """
    if probes < 1 or steps < 1:
        raise ValueError(f"probes={probes} and steps={steps} must be at least 1.")
    operator = flat_operator(product, params)
    steps = min(steps, operator.size)
    nodes, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    products = 0
    for i in range(probes):
        start = jax.random.rademacher(
            jax.random.fold_in(key, i), (operator.size,), operator.dtype
        )
        diagonal, beside = _tridiagonal(operator, start / math.sqrt(operator.size), steps)
        values, vectors = eigh_tridiagonal(diagonal, beside)
        n = len(values)
        nodes[i, :n], nodes[i, n:] = values, values[-1]
        weights[i, :n] = vectors[0] ** 2
        products += n
    return Spectrum(nodes=nodes, weights=weights, size=operator.size, products=products)


def _tridiagonal(
    operator: Operator, start: Vector, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal and off-diagonal of the Lanczos matrix."""
    basis = jnp.zeros((steps, operator.size), operator.dtype)
    diagonal: list[float] = []
    beside: list[float] = []
    vector, scale = start, 0.0
    for i in range(steps):
        basis = put_row(basis, i, vector)
        column, rest, norm = orthogonalize(basis, operator.matvec(vector))
        diagonal.append(float(column[i]))
        scale = max(scale, checked(norm), abs(diagonal[-1]))
        if i + 1 == steps or float(norm) <= 10 * operator.eps * scale:
            break
        beside.append(float(norm))
        vector = rest / norm
    return np.array(diagonal), np.array(beside)


def moment(spectrum: Spectrum, order: int) -> Estimate[float]:
    """Σ λ^order over all eigenvalues: 0 counts them, 1 is the trace, 2 ‖H‖²_F.

    Exact for each probe up to ``order = 2 · steps − 1``.
    """
    sums = spectrum.size * (spectrum.weights * spectrum.nodes**order).sum(axis=1)
    return Estimate(
        value=float(sums.mean()),
        sem=float(_sem(sums)),
        probes=len(sums),
        products=spectrum.products,
    )


def density(
    spectrum: Spectrum, grid: Float[np.ndarray, " points"], *, width: float
) -> Estimate[Float[np.ndarray, " points"]]:
    """Density of eigenvalues on a grid, every node a Gaussian of standard deviation `width`.

    Args:
        spectrum: Nodes and weights.
        grid: Points of evaluation, in units of eigenvalues.
        width: Standard deviation, in units of eigenvalues; about the distance of grid points
            or more. The density integrates to one over the real line, whatever the width.

    Returns:
        Per unit of eigenvalue; `sem` over probes does not know what smoothing hides.

    Raises:
        ValueError: For a width that is not positive.
    """
    if not width > 0:
        raise ValueError(f"width={width} must be positive, in units of eigenvalues.")
    distance = (grid[None, :, None] - spectrum.nodes[:, None, :]) / width
    bumps = np.exp(-0.5 * distance**2) / (width * math.sqrt(2 * math.pi))
    curves = np.einsum("pgs,ps->pg", bumps, spectrum.weights)
    return Estimate(
        value=curves.mean(axis=0),
        sem=_sem(curves),
        probes=len(curves),
        products=spectrum.products,
    )


def _sem(samples: np.ndarray) -> np.ndarray:
    """Standard error over the first axis, NaN for one sample."""
    if len(samples) == 1:
        return np.full(samples.shape[1:], np.nan)
    return np.asarray(samples.std(axis=0, ddof=1) / math.sqrt(len(samples)))
