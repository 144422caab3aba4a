import itertools

import numpy as np
import pytest
from scipy import optimize, sparse

from experiments.mpq_lib.public import public
from jmpq.problem import Infeasible, problem_of, with_budgets
from jmpq.problem.problem import Reduced
from jmpq.solvers import Greedy, SeveralBudgets, lp_bound
from jmpq.solvers.knapsack import lagrangian_dual
from jmpq.solvers.knapsack.lagrangian_dual import dual_multipliers
from jmpq.solvers.knapsack.relaxation_bounds import lagrangian_bound
from jmpq.solvers.knapsack.several_budgets.meet_in_the_middle import _Matches, joined
from jmpq.solvers.knapsack.several_budgets.reduced_costs import ReducedCosts
from jmpq.solvers.knapsack.several_budgets.repair_and_swap import (
    _prefixes,
    fill,
    raise_prices,
    raised,
    repaired,
    swapped,
)
from tests.solvers.instances import QUADRATIC, SHORT, random_problem
from tests.solvers.test_solvers import best_of, check

SEARCH = SeveralBudgets(integer_program=False)


def tables(seed, layers=5, choices=4):
    """Random tables under two to eight budgets: any signs and correlations, some in lumps."""
    rng = np.random.default_rng(seed)
    shape, budgets = (layers, choices), int(rng.integers(2, 9))
    losses = rng.normal(size=shape) * rng.lognormal(0, 1.5, (layers, 1))
    costs = rng.uniform(0, 1, (budgets, *shape)) * rng.lognormal(0, 1, (layers, 1))
    costs[rng.integers(budgets)] += 0.5 * (losses.max() - losses)
    if seed % 2:
        losses, costs = np.round(10 * losses), np.round(10 * costs)
    if seed % 3 == 0:
        costs[0] = np.where(costs[0] > np.median(costs[0]), 8.0, 0.0)
    allowed = rng.random(shape) < 0.9
    some = rng.integers(choices, size=layers)
    allowed[np.arange(layers), some] = True
    # What some allocation uses and a little more; now and then less, so that none may fit.
    used = costs[:, np.arange(layers), some].sum(axis=1)
    limits = used * rng.uniform(0.8 if seed % 10 == 0 else 1.0, 1.2, budgets)
    if seed % 2:
        limits = np.floor(limits)
    names = [f"cost{k}" for k in range(budgets)]
    return problem_of(
        losses,
        dict(zip(names, costs, strict=True)),
        dict(zip(names, limits.tolist(), strict=True)),
        allowed=allowed,
    )


def enumerated(problem):
    """The least loss within the budgets by enumeration; +inf where nothing is."""
    layers, choices = problem.losses.shape
    every = np.array(list(itertools.product(range(choices), repeat=layers)))
    rows = np.arange(layers)
    within = problem.allowed[rows, every].all(axis=1)
    for name, limit in problem.budgets.items():
        total = problem.costs[name][rows, every].sum(axis=1)
        within &= total <= limit + problem.rounding(name)
    loss = problem.losses[rows, every].sum(axis=1)
    return float(loss[within].min(initial=np.inf))


def assert_between_bound_and_budget(seed):
    problem = tables(seed)
    best = enumerated(problem)
    if best == np.inf:
        for solve in (SeveralBudgets(), SEARCH):
            with pytest.raises(Infeasible):
                solve(problem)
        return
    exact, search = SeveralBudgets()(problem), SEARCH(problem)
    scale = np.abs(problem.losses).max(axis=1).sum()
    assert exact.status == "optimal"
    assert exact.loss == pytest.approx(best, abs=1e-9 * scale)
    for solution in (exact, search):
        assert not problem.violated(solution.costs)
        assert solution.bound <= best + 1e-12 * scale
        assert solution.loss >= best - 1e-12 * scale
    assert search.bound <= exact.bound + 1e-9 * scale


@pytest.mark.parametrize("seed", range(40))
def test_bound_is_below_the_enumerated_optimum_and_the_search_above(seed):
    assert_between_bound_and_budget(seed)


@pytest.mark.slow
def test_bound_is_below_two_thousand_enumerated_optima_and_the_search_above():
    for seed in range(2000):
        assert_between_bound_and_budget(seed)


@pytest.mark.parametrize("name", SHORT)
def test_every_short_instance_is_solved(name):
    solution = SeveralBudgets()(SHORT[name])
    check(SHORT[name], solution, best_of(name))
    assert solution.loss == pytest.approx(best_of(name), rel=1e-9, abs=1e-12)
    check(SHORT[name], SEARCH(SHORT[name]), best_of(name))


def linear_program(reduced):
    """The linear relaxation's value by SciPy."""
    rows, columns = np.nonzero(reduced.allowed)
    result = optimize.linprog(
        reduced.losses[rows, columns],
        A_ub=reduced.costs[:, rows, columns],
        b_ub=reduced.limits,
        A_eq=sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows))))),
        b_eq=np.ones(len(reduced.losses)),
        method="highs",
    )
    assert result.status == 0
    return result.fun


@pytest.mark.parametrize("budgets", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_dual_proves_the_linear_relaxation(budgets, seed):
    reduced = random_problem(seed, layers=60, choices=5, budgets=budgets).reduced()
    want = linear_program(reduced)
    assert lagrangian_bound(reduced, dual_multipliers(reduced)) == pytest.approx(want, rel=1e-8)
    assert lp_bound(reduced)[0] == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("seed", range(1, 12, 2))
def test_the_dual_proves_the_linear_relaxation_where_choices_are_forbidden(seed):
    reduced = tables(seed, layers=30).reduced()
    got, want = lagrangian_bound(reduced, dual_multipliers(reduced)), linear_program(reduced)
    assert got <= want + 1e-9 * abs(want)
    assert got == pytest.approx(want, rel=1e-7)


@pytest.mark.parametrize("seed", [0, 1])
def test_sifting_gives_the_prices_of_all_groups(monkeypatch, seed):
    reduced = random_problem(seed, layers=2000, choices=5, budgets=3).reduced()
    whole = lagrangian_bound(reduced, dual_multipliers(reduced))
    monkeypatch.setattr(lagrangian_dual, "_MANY", 200)
    sifted = lagrangian_bound(reduced, dual_multipliers(reduced))
    assert sifted == pytest.approx(whole, rel=1e-8)


def test_budgets_without_room_or_without_effect_have_a_dual():
    losses, cost = np.array([[3.0, 1.0]] * 3), np.array([[1.0, 2.0]] * 3)
    for limit, bound in ((3.0, 9.0), (6.0, 3.0), (1e9, 3.0)):
        reduced = Reduced(
            losses=losses,
            costs=np.stack([cost, np.zeros_like(cost)]),
            limits=np.array([limit, 0.0]),
            names=("cost", "nothing"),
            groups=np.arange(3),
        )
        assert lp_bound(reduced)[0] == pytest.approx(bound, rel=1e-6)


def test_the_gap_is_reduced_costs_and_priced_slack():
    problem = random_problem(3, layers=40, choices=5, budgets=3)
    reduced = problem.reduced()
    bound, prices = lp_bound(reduced)
    costs = ReducedCosts.of(reduced, prices)
    columns = Greedy()(problem).columns
    loss = problem.evaluate(columns)[0]
    assert costs.gap(columns) == pytest.approx(loss - bound, rel=1e-6)
    assert (costs.above >= 0).all()
    assert (costs.above.min(axis=1) == 0).all()


def hard(seed, layers=30, choices=6, budgets=5):
    """Costs that no loss tells anything about, as in the literature's benchmarks."""
    rng = np.random.default_rng(seed)
    losses = -rng.integers(1, 100, (layers, choices)).astype(float)
    tables = rng.integers(0, 20, (budgets, layers, choices)).astype(float)
    limits = np.floor(0.9 * tables.mean(axis=2).sum(axis=1))
    names = [f"cost{k}" for k in range(budgets)]
    return problem_of(
        losses,
        dict(zip(names, tables, strict=True)),
        dict(zip(names, limits.tolist(), strict=True)),
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_joins_improve_on_swaps_and_swaps_on_repair(seed):
    reduced = hard(seed, layers=100, choices=8, budgets=8).reduced()
    costs = ReducedCosts.of(reduced, lp_bound(reduced)[1])
    start = fill(reduced, reduced.costs.sum(axis=0).argmin(axis=1), costs.prices)
    once = swapped(costs, start)
    gaps = [costs.gap(start), costs.gap(once)]
    rng, columns = np.random.default_rng(0), once
    for _ in range(5):
        better = joined(costs, columns, states=2000, rng=rng)
        if better is not None:
            assert reduced.fits(better)
            assert costs.gap(better) < costs.gap(columns)
            columns = better
    gaps.append(costs.gap(columns))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    # Groups that no join touched, and those that it did, keep allowed choices.
    assert np.isfinite(reduced.losses[np.arange(len(columns)), columns]).all()


def test_joins_find_the_optimum_of_a_small_problem_from_any_start():
    problem = hard(7, layers=6, choices=4, budgets=3)
    reduced, best = problem.reduced(), enumerated(problem)
    costs = ReducedCosts.of(reduced, lp_bound(reduced)[1])
    columns = reduced.costs.sum(axis=0).argmin(axis=1)
    assert reduced.fits(columns)
    rng = np.random.default_rng(0)
    for _ in range(60):
        better = joined(costs, columns, states=100, rng=rng)
        columns = columns if better is None else better
    assert problem.evaluate(columns)[0] == best


def test_no_single_change_improves_on_swaps():
    reduced = hard(3).reduced()
    costs = ReducedCosts.of(reduced, lp_bound(reduced)[1])
    columns = repaired(costs)
    assert columns is not None
    for group, column in np.ndindex(reduced.losses.shape):
        other = columns.copy()
        other[group] = column
        if reduced.losses[group, column] < reduced.losses[group, columns[group]]:
            assert not reduced.fits(other)


def test_prices_are_raised_until_the_budgets_are_met():
    reduced = random_problem(6, layers=50, choices=5, budgets=3).reduced()
    costs = ReducedCosts.of(reduced, lp_bound(reduced)[1])
    columns = raised(costs)
    assert columns is not None
    assert reduced.fits(columns)
    assert raise_prices(reduced, np.zeros(3)) is None


def test_rows_in_the_same_cell_are_paired():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (50, 2)).astype(float), rng.integers(0, 4, (60, 2))
    matches = _Matches.of([first, second.astype(float)], np.ones(2), np.zeros(2))
    i, j = matches.pairs(10_000)
    want = np.argwhere((first[:, None] == second).all(axis=2))
    assert len(matches) == len(want)
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == sorted(map(tuple, want.tolist()))
    assert len(matches.pairs(7)[0]) <= 7


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


def test_the_gap_closes_as_groups_become_many():
    problem = random_problem(3, layers=2000, choices=5, budgets=3)
    solution = SEARCH(problem)
    assert solution.gap < 1e-4
    assert not problem.violated(solution.costs)


def test_the_answer_does_not_depend_on_the_run():
    first, second = (SEARCH(hard(5)) for _ in range(2))
    np.testing.assert_array_equal(first.columns, second.columns)
    assert first.bound == second.bound


def test_out_of_time_the_answer_is_feasible_with_a_bound():
    problem = hard(6, layers=60)
    solution = SeveralBudgets(time_limit_s=1e-6)(problem)
    assert solution.status == "feasible"
    assert np.isfinite(solution.bound)
    assert solution.loss <= Greedy(weights="dual_prices")(problem).loss


def test_it_stops_at_the_gap_that_is_asked():
    problem = hard(8, layers=60)
    solution = SeveralBudgets(relative_gap=0.05)(problem)
    least = problem.losses.min(axis=1).sum()
    assert solution.loss - solution.bound <= 0.05 * (solution.loss - least)
    assert solution.wall_s < 10


@pytest.mark.slow
def test_a_hundred_thousand_groups_under_three_budgets():
    problem = random_problem(4, layers=100_000, choices=8, budgets=3, integer=True)
    solution = SeveralBudgets()(problem)
    assert solution.gap < 1e-5
    assert not problem.violated(solution.costs)


def capacitated(folder, names=()):
    """The public instances with several capacities: name, problem, what is known."""
    for given in public(folder, ("mmkp", "hiremath_hill"), names):
        assert given.known is not None
        yield given.name, given.problem, given.known


SMALL = ("I01", "I02", "I05", "I06", "HH5_01", "HH5_02", "HH5_03")


def test_public_instances_come_to_their_exact_values(shared_data):
    for name, problem, known in capacitated(shared_data, SMALL):
        solution = SeveralBudgets()(problem)
        assert solution.status == "optimal", name
        assert solution.loss == pytest.approx(known.loss, rel=1e-12), name


def test_the_search_alone_is_near_the_best_known_values(shared_data):
    for name, problem, known in capacitated(shared_data):
        if not known.optimal:
            solution = SeveralBudgets(integer_program=False, time_limit_s=2.0)(problem)
            assert -solution.loss >= -known.loss * (1 - 3e-3), name


@pytest.mark.slow
def test_public_instances_come_to_the_best_known_values(shared_data):
    for name, problem, known in capacitated(shared_data):
        solution = SeveralBudgets(time_limit_s=60.0)(problem)
        assert -solution.loss >= -known.loss * (1 - 1e-12), name
        if known.optimal:
            assert solution.status == "optimal", name
            assert solution.loss == pytest.approx(known.loss, rel=1e-12), name
        else:
            many = len(problem.layers) >= 200
            assert solution.gap <= (3e-4 if many else 1e-3), name


def test_refusals():
    with pytest.raises(ValueError, match="cross-layer terms"):
        SeveralBudgets()(QUADRATIC["psd0"])
    problem = random_problem(1, budgets=2)
    with pytest.raises(Infeasible, match="cannot be met"):
        SeveralBudgets()(with_budgets(problem, {"cost0": 0.0, "cost1": 1e9}))


def test_dual_prices_weigh_the_greedy_steps_better(shared_data):
    gaps = []
    for _, problem, _ in capacitated(shared_data):
        paper, dual = Greedy()(problem), Greedy(weights="dual_prices")(problem)
        assert dual.solver == "greedy/dual_prices"
        gaps.append((paper.gap, dual.gap))
    assert np.median([gap[1] for gap in gaps]) < 0.5 * np.median([gap[0] for gap in gaps])


def test_one_budget_is_weighed_the_same_by_dual_prices():
    paper, dual = Greedy()(SHORT["random0"]), Greedy(weights="dual_prices")(SHORT["random0"])
    np.testing.assert_array_equal(paper.columns, dual.columns)
