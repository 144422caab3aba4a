"""Statistics against simulations of the model they assume, and against exact cases."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jmpq.study.statistics import (
    holm,
    mean_ranks,
    paired_difference,
    rank_correlation,
    rank_correlation_difference,
    two_level_mean,
)


def crossed(rng, draws, examples, sd, kept):
    """Values with effects of draw, example and rest, of which a share is kept."""
    d, e = (x.ravel() for x in np.mgrid[:draws, :examples])
    values = sd[0] * rng.normal(size=draws)[d] + sd[1] * rng.normal(size=examples)[e]
    values += sd[2] * rng.normal(size=len(values))
    there = rng.random(len(values)) < kept
    return values[there], d[there], e[there]


@pytest.mark.parametrize(
    ("sd", "kept"),
    [
        ((0.3, 1.0, 0.5), 1.0),
        ((0.0, 1.0, 1.0), 1.0),
        ((0.5, 1.0, 1.0), 0.7),
        ((1, 0, 0.1), 1.0),
    ],
)
def test_two_level_interval_covers_and_its_variance_is_unbiased(sd, kept):
    rng = np.random.default_rng(1)
    found = [two_level_mean(*crossed(rng, 5, 60, sd, kept)) for _ in range(1500)]
    means = np.array([f.mean for f in found])
    inside = np.mean([f.interval()[0] <= 0 <= f.interval()[1] for f in found])
    assert 0.93 <= inside <= 0.985
    variance = np.mean([f.sem**2 for f in found])
    assert variance == pytest.approx(means.var(), rel=0.15)


def test_standard_errors_over_examples_alone_miss_the_draws():
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(500):
        values, _, examples = crossed(rng, 5, 60, (0.3, 1.0, 0.5), 1.0)
        means = np.bincount(examples, values) / 5
        half = 1.96 * means.std(ddof=1) / np.sqrt(60)
        inside.append(abs(means.mean()) <= half)
    assert np.mean(inside) < 0.9  # what `two_level_mean` is for


def test_two_level_mean_of_examples_that_no_two_draws_share():
    rng = np.random.default_rng(3)
    found = []
    for _ in range(1500):
        draws = np.repeat(np.arange(6), 20)
        values = 0.5 * rng.normal(size=6)[draws] + rng.normal(size=120)
        found.append(two_level_mean(values, draws, np.arange(120)))
    means = np.array([f.mean for f in found])
    assert np.mean([f.sem**2 for f in found]) == pytest.approx(means.var(), rel=0.15)
    assert 0.93 <= np.mean([f.p_value > 0.05 for f in found]) <= 0.985


def test_balanced_variance_is_that_of_the_analysis_of_variance():
    values, draws, examples = crossed(np.random.default_rng(4), 4, 9, (1.0, 1.0, 1.0), 1.0)
    table = values.reshape(4, 9)
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns[None] + table.mean()
    squares = 9 * rows.var(ddof=1), 4 * columns.var(ddof=1), np.sum(rest**2) / (3 * 8)
    want = (squares[0] + squares[1] - squares[2]) / 36
    assert two_level_mean(values, draws, examples).sem ** 2 == pytest.approx(want, rel=1e-12)


def test_one_draw_is_the_paired_t_test():
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(2, 30))
    found = paired_difference(one, other, np.zeros(30), np.arange(30))
    want = stats.ttest_rel(one, other)
    assert found.p_value == pytest.approx(want.pvalue, rel=1e-12)
    assert found.interval(0.9) == pytest.approx(tuple(want.confidence_interval(0.9)), rel=1e-12)
    assert (found.draws, found.examples) == (1, 30)
    assert paired_difference(one, one, np.zeros(30), np.arange(30)).p_value == 1


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        two_level_mean(np.ones(1), np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="occurs twice in a draw"):
        two_level_mean(np.ones(3), np.zeros(3), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="at least three"):
        rank_correlation(np.ones(4), np.ones(4), groups=np.array([0, 0, 0, 1]))
    with pytest.raises(ValueError, match="three methods and two blocks"):
        mean_ranks(np.ones((2, 5)))


@pytest.mark.parametrize("pearson", [0.0, 0.6, 0.95])
def test_interval_of_a_rank_correlation_covers(pearson):
    rng, inside = np.random.default_rng(6), []
    true = 6 / np.pi * np.arcsin(pearson / 2)  # of a bivariate normal distribution
    for seed in range(300):
        x = rng.normal(size=60)
        y = pearson * x + np.sqrt(1 - pearson**2) * rng.normal(size=60)
        found = rank_correlation(x, y, resamples=200, seed=seed)
        assert found.value == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
        inside.append(found.low <= true <= found.high)
    assert 0.91 <= np.mean(inside) <= 0.985


def test_correlation_within_groups_forgets_what_tells_groups_apart():
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(4), 50)
    predicted = 10.0 * groups + rng.normal(size=200)
    measured = 10.0 * groups + rng.normal(size=200)
    assert rank_correlation(predicted, measured, resamples=50).value > 0.9
    within = rank_correlation(predicted, measured, groups=groups, resamples=200)
    assert within.low < 0 < within.high
    each = [stats.spearmanr(*p[:, groups == g]).statistic
            for g in range(4) for p in [np.stack([predicted, measured])]]  # fmt: skip
    assert within.value == pytest.approx(np.mean(each), rel=1e-12)


def test_paired_difference_of_correlations_covers_and_is_narrower_than_two_intervals():
    rng, inside, widths = np.random.default_rng(8), [], []
    for seed in range(300):
        true, shared = rng.normal(size=(2, 60))
        one, other = (true + shared + 0.3 * rng.normal(size=60) for _ in range(2))
        found = rank_correlation_difference(one, other, true, resamples=200, seed=seed)
        inside.append(found.low <= 0 <= found.high)
        alone = rank_correlation(one, true, resamples=200, seed=seed)
        widths.append((found.high - found.low) / (alone.high - alone.low))
    assert 0.91 <= np.mean(inside) <= 0.985
    assert np.median(widths) < 0.7


def test_mean_ranks_are_within_blocks_and_alike_methods_are_seldom_told_apart():
    values = np.array([[1.0, 200.0, 5.0], [2.0, 100.0, 5.0], [3.0, 300.0, 6.0]])
    found = mean_ranks(values)
    np.testing.assert_allclose(found.mean, [(1 + 2 + 1.5) / 3, (2 + 1 + 1.5) / 3, 3])
    rng = np.random.default_rng(9)
    alike = [mean_ranks(rng.normal(size=(4, 12))).p_value < 0.05 for _ in range(600)]
    assert np.mean(alike) < 0.08
    shifted = mean_ranks(rng.normal(size=(4, 12)) + np.array([[0.0], [0], [0], [3]]))
    assert shifted.p_value < 0.01
    assert shifted.mean.argmax() == 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_holm_is_the_closed_test_of_bonferroni(seed):
    p_values = np.random.default_rng(seed).random(5) ** 3
    adjusted = holm(p_values)
    for own in range(5):
        sets = (s for n in range(1, 6) for s in itertools.combinations(range(5), n) if own in s)
        closed = max(min(1.0, len(s) * min(p_values[list(s)])) for s in sets)
        assert adjusted[own] == pytest.approx(closed, rel=1e-12)


def test_holm_keeps_the_chance_of_any_wrong_rejection():
    rng = np.random.default_rng(10)
    wrong = []
    for _ in range(4000):
        shared = rng.normal()
        z = 0.7 * shared + np.sqrt(1 - 0.49) * rng.normal(size=8)
        p_values = 2 * stats.norm.sf(np.abs(z))
        p_values[:3] = 1e-6  # three true effects
        wrong.append((holm(p_values)[3:] < 0.05).any())
    assert np.mean(wrong) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("count", [8, 10, 20])
def test_intervals_of_good_predictors_of_few_allocations_are_narrow(count):
    """A bootstrap sample without an error says no more than that there are few."""
    x = np.arange(count, dtype=float)
    swapped = x.copy()
    swapped[[0, 1]] = x[[1, 0]]
    for predicted, least in ((swapped, 0.5), (x, 0.8)):
        found = rank_correlation(predicted, x)
        assert least < found.low <= found.value <= found.high <= 1
