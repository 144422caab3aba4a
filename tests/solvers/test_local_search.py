import numpy as np
import pytest

from jmpq.problem import with_budgets
from jmpq.solvers import BruteForce, Exact, Greedy, LocalSearch, row_bound, uniform
from jmpq.solvers.quadratic.neighbourhood import Neighbourhood
from jmpq.solvers.quadratic.tabu_search import LossField
from tests.solvers.instances import QUADRATIC, SHORT, loss_of, optimum, quadratic_problem
from tests.solvers.test_solvers import best_of


@pytest.mark.parametrize("name", QUADRATIC)
def test_brute_force_with_interactions_is_the_enumerated_optimum(name):
    problem = QUADRATIC[name]
    solution = BruteForce()(problem)
    assert solution.loss == pytest.approx(optimum(problem), rel=1e-12)
    assert solution.loss == pytest.approx(loss_of(problem, solution.columns), rel=1e-12)
    assert solution.status == "optimal"


@pytest.mark.parametrize("name", QUADRATIC)
def test_local_search_finds_the_optimum_of_small_problems(name):
    problem = QUADRATIC[name]
    best = optimum(problem)
    solution = LocalSearch(restarts=8)(problem)
    assert solution.bound <= best
    assert solution.loss == pytest.approx(best, rel=1e-9)
    assert solution.loss == pytest.approx(loss_of(problem, solution.columns), rel=1e-12)
    assert not problem.violated(solution.costs)
    bound = row_bound(problem.reduced(interactions=True))
    assert bound <= best
    assert solution.bound >= bound - 1e-12 * abs(bound)
    if problem.budgets and name != "tight":
        assert uniform(problem).loss >= best


@pytest.mark.parametrize("name", SHORT)
def test_local_search_of_a_sum_over_layers_is_no_worse_than_greedy(name):
    problem = SHORT[name]
    solution = LocalSearch(restarts=3)(problem)
    assert best_of(name) <= solution.loss + 1e-12 * abs(solution.loss)
    assert solution.loss <= Greedy()(problem).loss
    assert not problem.violated(solution.costs)
    assert solution.bound <= best_of(name)


def test_separable_solvers_refuse_interactions():
    problem = QUADRATIC["psd0"]
    for solve in (Greedy(), Exact()):
        with pytest.raises(ValueError, match=r"cross-layer terms .* solver does not handle"):
            solve(problem)
        solve(problem.separable())


def test_search_depends_on_its_seed_alone_and_stops_in_time():
    problem = quadratic_problem(3, "indefinite", layers=30, choices=4)
    first = LocalSearch(restarts=3, seed=1)(problem)
    np.testing.assert_array_equal(
        first.columns, LocalSearch(restarts=3, seed=1)(problem).columns
    )
    short = LocalSearch(time_limit_s=1e-6)(problem)
    assert short.loss <= problem.evaluate(Greedy()(problem.separable()).columns)[0]
    assert short.loss > first.loss
    assert short.status == "feasible"


def test_fields_are_kept_up_to_date():
    reduced = quadratic_problem(1, "indefinite", layers=9).reduced(interactions=True)
    rng = np.random.default_rng(0)
    state = LossField.of(reduced, np.zeros(9, int))
    for option in rng.integers(0, 27, 50):
        state.change(int(option))
        fresh = LossField.of(reduced, state.columns)
        np.testing.assert_allclose(state.field, fresh.field, atol=1e-12)
        assert state.loss == pytest.approx(fresh.loss, rel=1e-10)


def test_every_pair_is_priced_as_the_sum_of_two_changes():
    problem = quadratic_problem(2, "indefinite", layers=5, budgets=2)
    reduced = problem.reduced(interactions=True)
    columns = BruteForce()(problem).columns
    near, state = Neighbourhood(reduced), LossField.of(reduced, columns)
    change = state.field - state.field[np.arange(5), columns][:, None]
    options = near.promising(columns, change)
    got = state.pair_changes(near, options, change.ravel()[options])
    seen = 0
    for a, b in np.ndindex(got.shape):
        if a < b and options[a] // 3 != options[b] // 3:
            after = near.apply(columns, (int(options[a]), int(options[b])))
            if reduced.fits(after):
                want = loss_of(problem, after) - loss_of(problem, columns)
                assert got[a, b] == pytest.approx(want, rel=1e-9)
                seen += 1
                continue
        assert np.isinf(got[a, b])
    assert seen > 10


def test_a_large_problem_looks_at_promising_pairs_only():
    problem = quadratic_problem(4, layers=40, choices=4)
    near = Neighbourhood(problem.reduced(interactions=True), max_options=20)
    columns = Greedy()(problem.separable()).columns
    change = np.random.default_rng(0).normal(size=(40, 4))
    options = near.promising(columns, change)
    assert len(options) == 20
    assert change.ravel()[options].mean() < change.mean()
    few = LocalSearch(max_options=20, restarts=1)(problem)
    assert few.loss <= problem.evaluate(columns)[0]


def test_kicks_hold_the_budgets():
    problem = quadratic_problem(5, layers=12, budgets=2, fraction=0.1)
    reduced = problem.reduced(interactions=True)
    near, rng = Neighbourhood(reduced), np.random.default_rng(0)
    cheapest = near.price.argmin(axis=1)
    kicked = [near.kick(cheapest, cheapest, 6, rng) for _ in range(20)]
    assert all(reduced.fits(choice) for choice in kicked)
    assert len({tuple(choice) for choice in kicked}) > 5


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="restarts of at least 0, patience, tenure"):
        LocalSearch(patience=0)
    with pytest.raises(ValueError, match="a time limit above 0"):
        LocalSearch(time_limit_s=0.0)


def test_a_budget_that_cannot_be_met_is_an_error():
    problem = QUADRATIC["psd1"]
    least, _ = problem.range("cost0")
    for solve in (LocalSearch(), BruteForce()):
        with pytest.raises(ValueError, match=r"Budget cost0=.* cannot be met"):
            solve(with_budgets(problem, {"cost0": 0.5 * least}))
