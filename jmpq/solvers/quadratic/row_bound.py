"""A cheap lower bound on a loss with cross-layer terms: row minima, then a knapsack's bound.

The bound of `semidefinite` is far stronger and costs more.
"""

import dataclasses
import math

import numpy as np

from jmpq.problem.problem import Reduced
from jmpq.solvers.knapsack.relaxation_bounds import lp_bound


def row_bound(reduced: Reduced) -> float:
    """Lower bound on the loss, nats per example, from the least cross terms of each option.

    Each option takes half of its least cross term with every other group, and the knapsack
    relaxation bounds the sum. Without cross terms it is the relaxation's bound.

    References:
        Gilmore (1962), Optimal and suboptimal algorithms for the quadratic assignment
        problem; Lawler (1963), The quadratic assignment problem.
    """
    cross = reduced.interactions
    if cross is None:
        return lp_bound(reduced)[0]
    # The term of a pair of groups stands in the rows of both options; half of it at each is
    # the whole, and at neither can it be less than the least of the row. So the sum over the
    # groups below is nowhere larger than the loss, and any bound of it is one of the loss.
    least = np.where(reduced.allowed, cross, np.inf).min(axis=3)  # own group: zeros
    least = np.where(reduced.allowed[:, :, None], least, 0.0)
    losses = reduced.losses + 0.5 * least.sum(axis=2)
    separable = dataclasses.replace(reduced, losses=losses, interactions=None)
    # Each sum of a row is off by at most its number of terms in units of rounding.
    magnitude = math.fsum(np.abs(least).max(axis=1).sum(axis=1))
    rounding = float(np.finfo(np.float64).eps) * len(losses) * magnitude
    return lp_bound(separable)[0] - rounding
