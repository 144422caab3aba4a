"""Rounding by GPTQ, which reduces the error of a layer's output: NumPy, float64."""

import numpy as np
import scipy.linalg
from jaxtyping import Float

from jmpq.quantizers.rounding.code_lines import CodeLines

DAMPING = 0.01  # addition to the Hessian's diagonal, relative to its mean, as in GPTQ
BLOCK = 128  # columns between two matrix products


def round_by_hessian(
    matrix: Float[np.ndarray, "rows columns"],
    hessian: Float[np.ndarray, "columns columns"],
    scale: Float[np.ndarray, "bits rows #columns"],
    zero_point: Float[np.ndarray, "bits rows #columns"],
    lines: CodeLines,
    *,
    damping: float = DAMPING,
) -> Float[np.ndarray, "bits rows columns"]:
    """Codes of small output error tr(ΔHΔᵀ), where Δ = scale·(codes − zero point) − W.

    Columns are rounded one after the other, the column of the greatest input first. Each is
    first moved to compensate the errors of the columns already rounded. With H = RᵀR, R upper
    triangular and the last column first, the moved column is
    w_j + Σ_(k>j) (R_jk/R_jj)(w_k − q_k). GPTQ computes the same values from H⁻¹; the method is
    also known as Babai's nearest plane. All rows and all schemes are processed together. A row
    that rounding to nearest leaves with less error is rounded to nearest.

    Args:
        matrix: Kernel W, output features along rows.
        hessian: Matrix H = XᵀX of the input rows X.
        scale: Scale of every element.
        zero_point: Zero point of every element; zero if the grid has none.
        lines: Codes of every scheme.
        damping: Addition to the diagonal of H, as a multiple of its mean. The compared errors
            include it.

    Returns:
        Codes of every scheme: integers, or values of a float format.

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
        own = lines if isinstance(at, slice) else lines.of_column
        return own.clip(own.nearest(x / scale[..., at]) + zero_point[..., at])

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
    """H plus `damping` times its mean diagonal entry on the diagonal; plus 1 if H is zero."""
    mean = np.trace(hessian) / len(hessian)
    return hessian + (damping * mean if mean > 0 else 1.0) * np.eye(len(hessian))


def _output_error(
    error: Float[np.ndarray, "bits rows columns"], root: Float[np.ndarray, "columns columns"]
) -> Float[np.ndarray, "bits rows"]:
    """Diagonal of ΔHΔᵀ, where H = RᵀR."""
    return np.square(error @ root.T).sum(axis=-1)
