"""The cheapest bound with cross-layer terms: half of every least term to each side."""

import dataclasses
import math

import numpy as np

from jmpq.problem.problem import Reduced
from jmpq.solvers.bounds import lp_bound


def row_bound(reduced: Reduced) -> float:
    """Lower bound on the loss of every allocation within the budgets.

    Each option of a group takes half of its least cross term with every other group, which
    leaves a sum over groups: a knapsack, bounded by its linear relaxation. Without cross
    terms it is that relaxation alone.

    References:
        Gilmore (1962), Optimal and suboptimal algorithms for the quadratic assignment
        problem; Lawler (1963), The quadratic assignment problem.
    """
    cross = reduced.interactions
    if cross is None:
        return lp_bound(reduced)[0]
    allowed = np.isfinite(reduced.losses)
    least = np.where(allowed, cross, np.inf).min(axis=3)
    least = np.where(allowed[:, :, None], least, 0.0)
    losses = reduced.losses + 0.5 * least.sum(axis=2)
    bound = lp_bound(dataclasses.replace(reduced, losses=losses, interactions=None))[0]
    magnitude = math.fsum(np.abs(least).max(axis=1).sum(axis=1))
    return bound - float(np.finfo(np.float64).eps) * len(losses) * magnitude
