import numpy as np
import pytest

from jmpq.problem import Infeasible, with_budgets
from jmpq.solvers import Greedy, MultiplierSearch, lp_bound
from jmpq.solvers.knapsack.multiplier_search import _prefixes, fill
from tests.solvers.instances import QUADRATIC, SHORT, random_problem
from tests.solvers.test_solvers import best_of, check


@pytest.mark.parametrize("name", SHORT)
def test_multipliers_lie_between_bound_and_budget(name):
    check(SHORT[name], MultiplierSearch()(SHORT[name]), best_of(name))


@pytest.mark.parametrize("budgets", [1, 2, 3])
@pytest.mark.parametrize("seed", [0])
def test_the_bound_is_that_of_the_linear_relaxation(budgets, seed):
    problem = random_problem(seed, layers=60, choices=5, budgets=budgets)
    solution = MultiplierSearch()(problem)
    want = lp_bound(problem.reduced())[0]
    assert solution.bound == pytest.approx(want, rel=1e-6)
    assert solution.loss <= Greedy()(problem).loss * 1.05


def test_the_gap_closes_as_groups_become_many():
    problem = random_problem(3, layers=2000, choices=5, budgets=3)
    solution = MultiplierSearch()(problem)
    assert solution.gap < 5e-3
    assert not problem.violated(solution.costs)


@pytest.mark.slow
def test_a_hundred_thousand_groups_under_three_budgets():
    problem = random_problem(4, layers=100_000, choices=8, budgets=3, integer=True)
    solution = MultiplierSearch()(problem)
    assert solution.gap < 1e-4
    assert not problem.violated(solution.costs)


def test_steps_that_do_not_fit_are_passed_over():
    costs = np.array([[2.0, 5.0, 1.0, 3.0, 1.0], [1.0, 1.0, 4.0, 1.0, 1.0]])
    # 2 fits, 5 does not, (1, 4) breaks the second budget, then 3 and 1 fit together
    assert _prefixes(costs, np.array([6.0, 4.0])).tolist() == [0, 3, 4]
    assert _prefixes(costs, np.array([0.5, 9.0])).tolist() == []


def test_filling_never_breaks_a_budget_and_leaves_no_step_that_fits():
    problem = random_problem(5, layers=30, choices=4, budgets=2)
    reduced = problem.reduced()
    start = reduced.costs.sum(axis=0).argmin(axis=1)
    columns = fill(reduced, start, np.ones(2))
    assert reduced.fits(columns)
    for group, column in np.ndindex(reduced.losses.shape):
        other = columns.copy()
        other[group] = column
        if reduced.losses[group, column] < reduced.losses[group, columns[group]]:
            assert not reduced.fits(other)


def test_refusals():
    with pytest.raises(ValueError, match="The multiplier search needs max_iterations"):
        MultiplierSearch(max_iterations=0)
    with pytest.raises(ValueError, match="cross-layer terms"):
        MultiplierSearch()(QUADRATIC["psd0"])
    problem = random_problem(1, budgets=2)
    with pytest.raises(Infeasible, match="cannot be met"):
        MultiplierSearch()(with_budgets(problem, {"cost0": 0.0, "cost1": 1e9}))
