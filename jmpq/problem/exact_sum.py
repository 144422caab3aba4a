"""Sums that do not depend on the order of their terms."""

import math

import numpy as np
from jaxtyping import Float

_MANY = 1000  # fewer numbers are added one by one


def exact_sum(values: Float[np.ndarray, " _"]) -> float:
    """The sum, correctly rounded: `math.fsum`, faster for many numbers.

    The leading bits of all numbers, as many as add up without error, are split off at once,
    then those of what is left; what remains of few numbers is added one by one.

    References:
        Rump, Ogita, Oishi (2008), Accurate floating-point summation part I: faithful
        rounding, SIAM Journal on Scientific Computing 31, 189-224, algorithm 3.3.
    """
    parts, rest = [], np.asarray(values, dtype=np.float64)
    while len(rest) > _MANY and 0 < (largest := float(np.abs(rest).max())) < 2.0**900:
        unit = math.ldexp(1.0, math.frexp(largest)[1] + (len(rest) + 1).bit_length())
        leading = (rest + unit) - unit
        parts.append(float(leading.sum()))
        rest = rest - leading
        rest = rest[rest != 0]
    return math.fsum([*parts, *rest.tolist()])
