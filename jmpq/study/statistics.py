"""Statistics of a study: paired differences, rank correlations, ranks, many comparisons.

What is compared was measured on the same examples and, in every draw, calibrated on the same
examples: differences are paired. Two things vary from one draw to the next: the calibration
and, where draws leave different examples over, the examples. A standard error over examples
alone leaves out the first, one over draws alone the second.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its standard error.

    Attributes:
        mean: The mean.
        sem: Standard error of the mean.
        df: Degrees of freedom of the standard error.
        draws: Number of draws; from one draw alone the standard error leaves out their spread.
        examples: Number of different examples.
    """

    mean: float
    sem: float
    df: float
    draws: int
    examples: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval by Student's t."""
        half = float(stats.t.ppf(0.5 + level / 2, self.df)) * self.sem
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Two-sided p-value of mean zero; 1 where all values are zero."""
        if self.sem == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.mean) / self.sem, self.df))


def two_level_mean(
    values: Float[np.ndarray, " n"], draws: Shaped[np.ndarray, " n"],
    examples: Shaped[np.ndarray, " n"],
) -> Estimate:  # fmt: skip
    """Mean of values that share draws and examples, with a standard error for both.

    The model is ``value = mean + draw + example + rest``, crossed and unbalanced: an example
    may be missing in some draws. The three variances come from moments that are unbiased for
    any pattern; the variance of the mean follows from them, with Satterthwaite's degrees of
    freedom.

    Args:
        values: One value a draw and example.
        draws: Draw of every value.
        examples: Identity of its example.

    Raises:
        ValueError: If there are fewer than two values, or a pair occurs twice.

    References:
        Gao, Owen (2017), Efficient moment calculations for variance components in large
        unbalanced crossed random effects models, eqs. (3) to (5).
    """
    _, a = np.unique(draws, return_inverse=True)
    _, b = np.unique(examples, return_inverse=True)
    n, n_a, n_b = len(values), np.bincount(a), np.bincount(b)
    if n < 2:
        raise ValueError(f"{n} values have no standard error: give at least two.")
    if len(np.unique(a * len(n_b) + b)) < n:
        raise ValueError(
            "An example occurs twice in a draw: give one value for every draw and example."
        )
    mean = float(values.mean())
    within_a = float(np.sum((values - (np.bincount(a, values) / n_a)[a]) ** 2))
    within_b = float(np.sum((values - (np.bincount(b, values) / n_b)[b]) ** 2))
    total = n * float(np.sum((values - mean) ** 2))
    share_a, share_b = float(np.sum(n_a**2)) / n**2, float(np.sum(n_b**2)) / n**2
    count = {"draws": len(n_a), "examples": len(n_b)}
    if len(n_a) == 1:
        return Estimate(mean=mean, sem=math.sqrt(within_a / (n - 1) / n), df=n - 1.0, **count)
    if len(n_b) == 1:  # one number a draw
        return Estimate(mean=mean, sem=math.sqrt(within_b / (n - 1) / n), df=n - 1.0, **count)
    # Rows: expectations of the three sums by the variances of draw, example and rest.
    rows = [
        [0.0, n - len(n_a), n - len(n_a)],
        [n - len(n_b), 0.0, n - len(n_b)],
        [n**2 * (1 - share_a), n**2 * (1 - share_b), n**2 - n],
    ]
    sums = [within_a, within_b, total]
    if len(n_b) == n:  # no example twice: its variance is part of the rest
        rows[0][1] = rows[2][1] = 0.0
        rows[1] = [0.0, 1.0, 0.0]
    if len(n_a) == n:  # no draw twice
        rows[1][0] = rows[2][0] = 0.0
        rows[0] = [1.0, 0.0, 0.0]
    draw, example, rest = np.maximum(np.linalg.solve(rows, sums), 0.0).tolist()
    of_draws, of_examples = draw * share_a + rest / n, example * share_b
    variance = of_draws + of_examples
    spread = of_draws**2 / (len(n_a) - 1) + of_examples**2 / (len(n_b) - 1)
    df = variance**2 / spread if spread > 0 else n - 1.0
    return Estimate(mean=mean, sem=math.sqrt(variance), df=df, **count)


def paired_difference(
    one: Float[np.ndarray, " n"],
    other: Float[np.ndarray, " n"],
    draws: Shaped[np.ndarray, " n"],
    examples: Shaped[np.ndarray, " n"],
) -> Estimate:
    """Mean of ``one − other`` over the same draws and examples (`two_level_mean`)."""
    return two_level_mean(one - other, draws, examples)


class Correlation(NamedTuple):
    """A rank correlation, or a difference of two, with an interval."""

    value: float
    low: float
    high: float


def rank_correlation(
    predicted: Float[np.ndarray, " allocations"],
    measured: Float[np.ndarray, " allocations"],
    *,
    groups: Shaped[np.ndarray, " allocations"] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Correlation:
    """Spearman's rank correlation, with a bootstrap interval over allocations.

    The standard error is bootstrapped on Fisher's scale, atanh ρ, where its distribution is
    nearly normal; the interval is brought back from there.

    Args:
        predicted: Predictions.
        measured: Measurements.
        groups: Group of every allocation, as its budget: the correlation is taken within
            groups, which a predictor that only knows the budget cannot pass, and averaged over
            them by their sizes. Groups are resampled each by itself.
        level: Level of the interval.
        resamples: Bootstrap samples.
        seed: Seed of the samples.

    Raises:
        ValueError: If a group has fewer than three allocations.
    """
    parts = _parts(len(measured), groups)
    found, drawn = _bootstrap(np.stack([predicted, measured]), parts, resamples, seed)
    value = float(found[0])
    # One has no place on Fisher's scale: it stands where two neighbours that swap would.
    count = sum(map(len, parts))
    most = 1 - min(len(part) / count * 6 / (len(part) ** 3 - len(part)) for part in parts)
    drawn = np.arctanh(np.clip(drawn[:, 0], -most, most))
    centre = math.atanh(min(max(value, -most), most))
    half = float(stats.norm.ppf(0.5 + level / 2) * np.std(drawn, ddof=1))
    low, high = math.tanh(centre - half), math.tanh(centre + half)
    return Correlation(value, min(low, value), max(high, value))


def rank_correlation_difference(
    one: Float[np.ndarray, " allocations"],
    other: Float[np.ndarray, " allocations"],
    measured: Float[np.ndarray, " allocations"],
    *,
    groups: Shaped[np.ndarray, " allocations"] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Correlation:
    """By how much one predictor's rank correlation is above another's; paired bootstrap.

    Both are scored on the same resampled allocations, with the same measurements. Options as
    in `rank_correlation`; the interval is the estimate ± quantile × standard error.
    """
    parts = _parts(len(measured), groups)
    found, drawn = _bootstrap(np.stack([one, other, measured]), parts, resamples, seed)
    value = float(found[0] - found[1])
    half = float(stats.norm.ppf(0.5 + level / 2) * np.std(drawn[:, 0] - drawn[:, 1], ddof=1))
    return Correlation(value, value - half, value + half)


class Ranks(NamedTuple):
    """Ranks of methods over blocks: means, standard errors, and a test that all are alike."""

    mean: Float[np.ndarray, " methods"]
    sem: Float[np.ndarray, " methods"]
    p_value: float


def mean_ranks(values: Float[np.ndarray, "methods blocks"]) -> Ranks:
    """Mean rank of every method, 1 the least value, ranked within every block.

    A block is a budget, or a budget and a draw: values of different budgets are never compared.
    Ties share their mean rank. The p-value is Friedman's, that all methods are alike.

    Raises:
        ValueError: If there are fewer than three methods or two blocks.
    """
    methods, blocks = values.shape
    if methods < 3 or blocks < 2:
        raise ValueError(
            f"Ranks of {methods} methods over {blocks} blocks tell nothing: give at least "
            "three methods and two blocks."
        )
    ranks = stats.rankdata(values, axis=0)
    sem = ranks.std(axis=1, ddof=1) / math.sqrt(blocks)
    p_value = float(stats.friedmanchisquare(*values).pvalue) if np.ptp(ranks) else 1.0
    return Ranks(ranks.mean(axis=1), sem, p_value)


def holm(p_values: Float[np.ndarray, " comparisons"]) -> Float[np.ndarray, " comparisons"]:
    """p-values corrected for their number: below α only where Holm's procedure rejects at α.

    The chance of one wrong rejection or more is at most α, however the tests depend.

    References:
        Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _parts(
    count: int, groups: Shaped[np.ndarray, " allocations"] | None
) -> list[Int[np.ndarray, " _"]]:
    """Positions of the allocations of every group."""
    if groups is None:
        groups = np.zeros(count, int)
    parts = [np.flatnonzero(groups == group) for group in dict.fromkeys(groups.tolist())]
    if least := [part for part in parts if len(part) < 3]:
        raise ValueError(
            f"Group {groups[least[0][0]]!r} has {len(least[0])} allocations: a rank "
            "correlation takes at least three."
        )
    return parts


def _bootstrap(
    rows: Float[np.ndarray, "rows _"],
    parts: Sequence[Int[np.ndarray, " _"]],
    resamples: int,
    seed: int,
) -> tuple[Float[np.ndarray, " _"], Float[np.ndarray, "resamples _"]]:
    """Correlations of all rows but the last with the last: as they are, and resampled."""
    rng = np.random.default_rng(seed)
    drawn = [part[rng.integers(len(part), size=(resamples, len(part)))] for part in parts]
    return _within(rows, [part[None] for part in parts])[0], _within(rows, drawn)


def _within(
    rows: Float[np.ndarray, "rows _"], parts: Sequence[Int[np.ndarray, "samples _"]]
) -> Float[np.ndarray, "samples _"]:
    """Spearman's correlation of all rows but the last with the last, averaged over groups."""
    total: Any = 0.0
    for part in parts:
        ranks = stats.rankdata(rows[:, part], axis=-1)
        ranks -= ranks.mean(axis=-1, keepdims=True)
        norms = np.sqrt((ranks**2).sum(axis=-1))
        products = (ranks[:-1] * ranks[-1]).sum(axis=-1)
        scales = norms[:-1] * norms[-1]
        safe = np.where(scales > 0, scales, 1.0)  # a constant row: no correlation
        total = total + part.shape[-1] * products / safe
    return (total / sum(part.shape[-1] for part in parts)).T
