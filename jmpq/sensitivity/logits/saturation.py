"""Saturating damage: increases that add up after a transform. No JAX."""

import math

import numpy as np
from jaxtyping import Float


def saturate(losses: Float[np.ndarray, "*shape"], c: float) -> Float[np.ndarray, "*shape"]:
    """Damages a = losses/c as b = −log(1 − a), which add up where damage saturates at c.

    If a set S does the damage ``f(S) = c(1 − Π(1 − a_i))``, its b_i add up, and minimising
    their sum minimises the damage: the knapsack stays a knapsack. `unsaturate` takes the sum
    back to nats.

    >>> b = saturate(np.array([1.0, 0.5]), c=2.0)
    >>> float(unsaturate(b.sum(), c=2.0).round(6))  # 2 · (1 − ½ · ¾)
    1.25

    Args:
        losses: Increase of every single move or choice, nats per example; negative ones give
            negative b.
        c: Greatest damage there can be, same unit, the same for all.

    Raises:
        ValueError: If `c` is not positive, or an increase reaches it.

    References:
        Form of f and the transform: reported, not read in the source (arXiv 2607.12266).
        Derived here: the inverse, negative increases. How c is chosen is not known to us; fit
        it to a few measured allocations.
    """
    _check_ceiling(c)
    losses = np.asarray(losses, np.float64)
    if not (losses < c).all():
        raise ValueError(
            f"The greatest increase, {losses.max():g}, is not below the greatest damage "
            f"c={c:g}, so its share is infinite. Raise c, or leave out this candidate."
        )
    return np.asarray(-np.log1p(-losses / c))


def unsaturate(
    sums: Float[np.ndarray, "*shape"] | float, c: float
) -> Float[np.ndarray, "*shape"]:
    """Damage c(1 − e^−Σb) of sets whose b add up to `sums`: the inverse of `saturate`.

    Raises:
        ValueError: If `c` is not positive.
    """
    _check_ceiling(c)
    return np.asarray(-c * np.expm1(-np.asarray(sums, np.float64)))


def _check_ceiling(c: float) -> None:
    if not (c > 0 and math.isfinite(c)):
        raise ValueError(f"c={c:g} is no greatest damage: expected a positive number of nats.")
