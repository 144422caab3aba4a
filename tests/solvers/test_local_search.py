import time

import numpy as np
import pytest

from jmpq.problem import problem_of, solution_from_columns, with_budgets
from jmpq.solvers import BruteForce, Exact, Greedy, LocalSearch, uniform
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.measured.loss_field import LossField
from jmpq.solvers.measured.neighbourhood import Neighbourhood
from jmpq.solvers.quadratic.priced_walk import Options, PricedWalk
from jmpq.solvers.quadratic.row_bound import row_bound
from jmpq.solvers.quadratic.tabu_search import Walks
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


def test_a_start_may_be_given_and_conflicts_are_named():
    problem = QUADRATIC["two_budgets"]
    best = optimum(problem)
    given = LocalSearch(start=Greedy())(problem)
    assert given.loss == pytest.approx(best, rel=1e-9)
    opposed = with_budgets(SHORT["opposed_costs"], {"a": 6.0, "b": 6.0})
    with pytest.raises(ValueError, match="can each be met but not together"):
        LocalSearch(time_limit_s=0.5)(opposed)


def test_search_depends_on_its_seed_alone_and_stops_in_time():
    problem = quadratic_problem(3, "indefinite", layers=30, choices=4)
    first = LocalSearch(restarts=3, seed=1)(problem)
    np.testing.assert_array_equal(
        first.columns, LocalSearch(restarts=3, seed=1)(problem).columns
    )
    endless = LocalSearch(time_limit_s=0.2, restarts=None)
    started = time.perf_counter()
    short = endless(problem)
    assert time.perf_counter() - started < 5.0
    assert short.loss <= problem.evaluate(Greedy()(problem.separable()).columns)[0]
    assert short.status == "feasible"


def test_fields_are_kept_up_to_date():
    reduced = quadratic_problem(1, "indefinite", layers=9).reduced(interactions=True)
    rng = np.random.default_rng(0)
    state = LossField.of(reduced, np.zeros(9, int))
    for option in rng.integers(0, 27, 50):
        state.change(int(option))
        fresh = LossField.of(reduced, state.columns)
        np.testing.assert_allclose(state.field, fresh.field, atol=1e-12)
        assert state.value == pytest.approx(fresh.value, rel=1e-10)


@pytest.mark.parametrize("name", ["tied", "forbidden", "two_budgets_indefinite", "no_budget"])
def test_a_walk_keeps_the_effect_of_every_change_up_to_date(name):
    problem = QUADRATIC[name]
    reduced = problem.reduced(interactions=True)
    options, rng = Options.of_problem(reduced), np.random.default_rng(0)
    start = BruteForce()(problem).columns
    walk = PricedWalk(options, reduced.collapse(start))
    for option in rng.integers(len(options.of), size=40):
        walk.change(int(option))
        columns = reduced.expand(walk.columns)
        assert walk.loss == pytest.approx(loss_of(problem, columns), rel=1e-9, abs=1e-12)
        assert walk.fits == (not problem.violated(problem.evaluate(columns)[1]))
        change, priced = walk.changes()
        for other in rng.integers(len(options.of), size=5):
            after = columns.copy()
            after[reduced.groups == options.of[other]] = options.choice[other]
            want = loss_of(problem, after) - loss_of(problem, columns)
            assert change[other] == pytest.approx(want, rel=1e-9, abs=1e-9)
            used = reduced.used(reduced.collapse(after))
            if (used <= reduced.limits).all():
                assert priced[other] == pytest.approx(change[other], abs=1e-9)
            else:
                assert priced[other] > change[other]


def test_prices_rise_while_a_budget_is_exceeded_and_fall_while_it_is_not():
    reduced = QUADRATIC["two_budgets"].reduced(interactions=True)
    walk = PricedWalk(Options.of_problem(reduced), reduced.losses.argmin(axis=1))
    before, over = walk.prices.copy(), walk.over > 0
    assert over.any()
    walk.reprice()
    assert ((walk.prices > before) == over).all()
    for _ in range(1000):
        walk.reprice()
    assert np.isfinite(walk.prices).all()
    assert (walk.prices > 0).all()


def test_a_path_leads_to_the_other_allocation():
    problem = quadratic_problem(5, layers=12, budgets=2)
    reduced = problem.reduced(interactions=True)
    here, goal = np.random.default_rng(1).integers(0, 3, (2, 12))
    walk = PricedWalk(Options.of_problem(reduced), here)
    apart = int((here != goal).sum())
    walk.towards(goal, 3)
    assert (walk.columns != goal).sum() == apart - 3
    walk.towards(goal, 100)
    np.testing.assert_array_equal(walk.columns, goal)


@pytest.mark.parametrize("seed", range(3))
def test_a_walk_from_outside_of_the_budgets_comes_back(seed):
    problem = quadratic_problem(seed, "indefinite", layers=10, budgets=3, fraction=0.3)
    reduced = problem.reduced(interactions=True)
    walk = PricedWalk(Options.of_problem(reduced), np.full(10, 2))  # the dearest everywhere
    assert not walk.fits
    found = walk.search(
        np.inf, patience=60, tenure=2, rng=np.random.default_rng(0), stop=lambda: False
    )
    assert reduced.fits(found[0])
    assert loss_of(problem, found[0]) == pytest.approx(found[1], rel=1e-9)


def test_where_walks_meet_no_budget_an_integer_program_finds_an_allocation():
    problem = SHORT["opposed_costs"]
    reduced = problem.reduced()
    asked = []

    def fallback():
        asked.append(1)
        return cheapest_allocation(problem, reduced)

    walks = Walks(LocalSearch(patience=1), reduced, np.zeros(4, int), fallback)
    walks.go_on(np.inf, restarts=0)
    assert reduced.fits(walks.best)
    assert asked == [1]


def test_a_walk_crosses_budgets_that_no_swap_of_two_can():
    """Only three changes at once lead from one allocation within the budgets to another."""
    losses = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.5]])
    costs = np.array([[0.0, 2.0], [0.0, 2.0], [3.0, 0.0]])
    other = np.array([[0.0, 2.0], [0.0, 2.0], [4.0, 0.0]])
    problem = problem_of(
        losses,
        {"a": costs, "b": np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 4.0]]), "c": other},
        {"a": 4.0, "b": 4.0, "c": 4.0},
    )
    near = [
        columns
        for columns in np.ndindex(2, 2, 2)
        if sum(columns) in (1, 2)
        and not problem.violated(problem.evaluate(np.array(columns))[1])
    ]
    assert near == []
    assert LocalSearch(start=lambda _: solution_from(problem, [0, 0, 0]))(problem).loss == 1.5


def solution_from(problem, columns):
    return solution_from_columns(
        problem, np.array(columns), bound=-np.inf, solver="given", wall_s=0.0
    )


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


def test_kicks_hold_the_budgets():
    problem = quadratic_problem(5, layers=12, budgets=2, fraction=0.1)
    reduced = problem.reduced(interactions=True)
    near, rng = Neighbourhood(reduced), np.random.default_rng(0)
    cheapest = near.price.argmin(axis=1)
    kicked = [near.kick(cheapest, cheapest, 6, rng) for _ in range(20)]
    assert all(reduced.fits(choice) for choice in kicked)
    assert len({tuple(choice) for choice in kicked}) > 5


def test_a_budget_that_cannot_be_met_is_an_error():
    problem = QUADRATIC["psd1"]
    least, _ = problem.range("cost0")
    for solve in (LocalSearch(), BruteForce()):
        with pytest.raises(ValueError, match=r"Budget cost0=.* cannot be met"):
            solve(with_budgets(problem, {"cost0": 0.5 * least}))


def test_equal_changes_are_taken_in_all_groups(monkeypatch):
    problem = problem_of(np.zeros((30, 2)), {}, {}, interactions=np.zeros((30, 2, 30, 2)))
    options = Options.of_problem(problem.reduced(interactions=True))
    walk, moved = PricedWalk(options, np.zeros(30, dtype=np.int64)), set()

    def change(option):
        moved.add(int(options.of[option]))
        PricedWalk.change(walk, option)

    monkeypatch.setattr(walk, "change", change)
    rng = np.random.default_rng(0)
    walk.search(np.inf, patience=60, tenure=1, rng=rng, stop=lambda: False)
    assert len(moved) > 15
