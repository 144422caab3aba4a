"""Rounding that leaves the least error in a layer's output (GPTQ): NumPy, float64."""

import numpy as np
import scipy.linalg
from jaxtyping import Float

DAMPING = 0.01  # of the mean of the Hessian's diagonal, as in GPTQ
BLOCK = 128  # columns between two matrix products


def round_by_hessian(
    matrix: Float[np.ndarray, "rows columns"],
    hessian: Float[np.ndarray, "columns columns"],
    scale: Float[np.ndarray, "bits rows #columns"],
    zero_point: Float[np.ndarray, "bits rows #columns"],
    least: Float[np.ndarray, "bits 1 1"],
    most: Float[np.ndarray, "bits 1 1"],
    *,
    damping: float = DAMPING,
) -> Float[np.ndarray, "bits rows columns"]:
    """Integer codes with a small output error tr(ΔHΔᵀ), Δ = scale·(codes − zero point) − W.

    Columns are rounded one after the other, that of the greatest input first; each is first
    moved to where it makes up best for the errors of the columns rounded before it. With
    H = RᵀR, R upper triangular and the last column rounded first, that is
    w_j + Σ_(k>j) (R_jk/R_jj)(w_k − q_k): the method of GPTQ, which solves for the same values
    with H⁻¹, and Babai's nearest plane. Whole rows at a time, all bit-widths together. A row
    that plain rounding leaves with less error is rounded plainly: no row is worse for it.

    Args:
        matrix: Kernel W: output features along rows.
        hessian: H = XᵀX, X the input rows.
        scale: Scale of every element.
        zero_point: Zero point of every element; zero where the grid has none.
        least: Least code.
        most: Greatest code.
        damping: Addition to the diagonal of H, as a multiple of its mean; part of the
            error that is compared.

    References:
        Frantar, Ashkboos, Hoefler, Alistarh (2023), GPTQ, algorithm 1, with static scales
        and columns in descending order of the diagonal.
        Frantar, Singh, Alistarh (2022), Optimal Brain Compression, section 5.
    """
    columns, hessian = matrix.shape[1], damped(hessian, damping)
    order = np.argsort(np.diag(hessian), kind="stable")  # from the last to the first
    root = scipy.linalg.cholesky(hessian[np.ix_(order, order)])
    feedback = root / np.diag(root)[:, None]
    shape = np.broadcast_shapes(scale.shape, matrix.shape)
    scale, zero_point = (np.broadcast_to(x, shape)[..., order] for x in (scale, zero_point))
    w = matrix[:, order]

    def nearest(x: np.ndarray, at: int | slice) -> np.ndarray:
        codes = np.round(x / scale[..., at]) + zero_point[..., at]
        low, high = (least, most) if isinstance(at, slice) else (least[..., 0], most[..., 0])
        return np.clip(codes, low, high)

    codes, error = np.empty(shape), np.zeros(shape)  # error = W − Q
    for stop in range(columns, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        moved = w[:, start:stop] + error[..., stop:] @ feedback[start:stop, stop:].T
        for j in reversed(range(start, stop)):
            target = (
                moved[..., j - start] + error[..., j + 1 : stop] @ feedback[j, j + 1 : stop]
            )
            codes[..., j] = nearest(target, j)
            error[..., j] = w[:, j] - scale[..., j] * (codes[..., j] - zero_point[..., j])
    plain = nearest(w, slice(None))
    plain_error = w - scale * (plain - zero_point)
    worse = _output_error(error, root) > _output_error(plain_error, root)
    codes = np.where(worse[..., None], plain, codes)
    return codes[..., np.argsort(order)]


def damped(
    hessian: Float[np.ndarray, "columns columns"], damping: float
) -> Float[np.ndarray, "columns columns"]:
    """H with `damping` times the mean of its diagonal added there, or 1 where that is zero."""
    mean = np.trace(hessian) / len(hessian)
    return hessian + (damping * mean if mean > 0 else 1.0) * np.eye(len(hessian))


def _output_error(
    error: Float[np.ndarray, "bits rows columns"], root: Float[np.ndarray, "columns columns"]
) -> Float[np.ndarray, "bits rows"]:
    """Diagonal of ΔHΔᵀ, H = RᵀR."""
    return np.square(error @ root.T).sum(axis=-1)
