"""The core solver and dynamic programming: optimal, with the proof, for one budget."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings

from jmpq.problem import Infeasible, problem_of, with_budgets
from jmpq.solvers import (
    BranchAndBound,
    BruteForce,
    CoreSearch,
    DynamicProgramming,
    Exact,
    Greedy,
    LocalSearch,
    SeveralBudgets,
    lp_bound,
    make_solver,
    solve,
)
from jmpq.solvers.knapsack.one_budget import core_states
from jmpq.solvers.knapsack.one_budget.whole_units import integer_costs, one_budget
from tests.solvers.instances import (
    PISINGER,
    QUADRATIC,
    SHORT,
    optimum,
    pisinger,
    published,
    quadratic_problem,
    random_problem,
)
from tests.solvers.test_solvers import best_of, check, tables


def binding(problem):
    return [n for n, limit in problem.budgets.items() if problem.range(n)[1] > limit]


def whole(problem):
    return all((problem.costs[n] == np.floor(problem.costs[n])).all() for n in binding(problem))


ONE = [name for name, problem in SHORT.items() if len(binding(problem)) < 2]


@pytest.mark.parametrize("name", ONE)
def test_core_search_is_optimal(name):
    solution = CoreSearch()(SHORT[name])
    check(SHORT[name], solution, best_of(name))
    assert solution.loss == pytest.approx(best_of(name), rel=1e-12, abs=1e-300)
    assert solution.status == "optimal"


@pytest.mark.parametrize("name", [name for name in ONE if whole(SHORT[name])])
def test_dynamic_programming_takes_the_first_of_the_optimal_allocations(name):
    solution = DynamicProgramming()(SHORT[name])
    check(SHORT[name], solution, best_of(name))
    assert solution.status == "optimal"
    np.testing.assert_array_equal(solution.columns, BruteForce()(SHORT[name]).columns)


def test_published_instances_are_solved():
    for problem, assignment, best in published():
        solution = CoreSearch()(problem)
        assert solution.allocation == assignment
        assert solution.loss == pytest.approx(best, rel=1e-12)
        assert solution.status == "optimal"
        if whole(problem):
            np.testing.assert_array_equal(
                DynamicProgramming(memory_limit_bytes=1e8)(problem).columns, solution.columns
            )


@pytest.mark.parametrize("kind", PISINGER)
@pytest.mark.parametrize(
    ("layers", "choices", "percent"), [(15, 3, 30), (60, 5, 50), (300, 8, 70)]
)
def test_both_agree_on_pisingers_classes(kind, layers, choices, percent):
    options = {"layers": layers, "choices": choices, "percent": percent, "most": 1000}
    problem = pisinger(kind, seed=layers, **options)
    core, dynamic = CoreSearch()(problem), DynamicProgramming()(problem)
    greedy = Greedy()(problem)
    assert core.loss == dynamic.loss  # integers: to the last bit
    assert core.status == dynamic.status == "optimal"
    assert greedy.bound <= core.bound <= core.loss <= greedy.loss


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_core_search_agrees_with_the_integer_program(seed):
    problem = random_problem(seed, layers=80, choices=6)
    core, exact = CoreSearch()(problem), Exact()(problem)
    assert core.status == exact.status == "optimal"
    assert core.loss == pytest.approx(exact.loss, rel=1e-12)


def one_budget_of(drawn):
    losses, costs, ties, allowed, column, extra = drawn
    problem = problem_of(losses, {"cost": costs["cost0"]}, {}, ties=ties, allowed=allowed)
    within = problem.evaluate(problem.uniform(problem.choices[column]))[1]
    return with_budgets(problem, {"cost": within["cost"] + extra})


def no_counterexample(drawn):
    problem = one_budget_of(drawn)
    best = optimum(problem)
    solvers = [CoreSearch(), DynamicProgramming()] if whole(problem) else [CoreSearch()]
    for solver in solvers:
        solution = solver(problem)
        check(problem, solution, best)
        assert solution.status == "optimal"
        assert solution.loss == pytest.approx(best, rel=1e-12, abs=1e-12)
    assert Greedy()(problem).loss >= best


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tables())
def test_no_counterexample_among_generated_problems(drawn):
    no_counterexample(drawn)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, derandomize=False)
@given(tables())
def test_no_counterexample_among_two_thousand(drawn):
    no_counterexample(drawn)


@pytest.mark.parametrize("integer", [True, False])
def test_random_problems_of_all_budgets_are_solved(integer):
    for seed, percent in itertools.product(range(4), range(0, 101, 10)):
        problem = random_problem(seed, layers=7, choices=3, integer=integer)
        problem = with_budgets(problem, [f"cost0={percent}%"])
        solution = CoreSearch()(problem)
        assert solution.loss == pytest.approx(optimum(problem), rel=1e-12)
        assert solution.status == "optimal"


def test_a_hundred_thousand_layers_are_solved_with_proof():
    rng = np.random.default_rng(0)
    bits = np.arange(1, 9)
    size = rng.integers(100, 10**6, (10**5, 1))
    losses = rng.lognormal(0, 2, size.shape) * 4.0**-bits * rng.uniform(0.5, 1.5, (10**5, 8))
    problem = problem_of(losses, {"bits": (size * bits).astype(float)}, {})
    problem = with_budgets(problem, ["bits=40%"])
    solution, greedy = CoreSearch()(problem), Greedy()(problem)
    assert solution.status == "optimal"
    assert solution.bound <= solution.loss <= greedy.loss
    assert greedy.bound <= solution.loss


def hard(layers=200):
    """Real costs of one slope: no bound helps, and states hardly dominate each other."""
    rng = np.random.default_rng(0)
    costs = rng.uniform(1, 2, (layers, 4))
    problem = problem_of(-costs + 1e-6 * rng.normal(size=costs.shape), {"cost": costs}, {})
    return with_budgets(problem, ["cost=50.123%"])


def test_out_of_time_or_memory_is_feasible_with_a_real_bound():
    problem = hard()
    for solver in (CoreSearch(time_limit_s=0.05), CoreSearch(memory_limit_bytes=1e5)):
        solution = solver(problem)
        assert solution.status == "feasible"
        assert lp_bound(problem.reduced())[0] <= solution.bound < solution.loss
    short = CoreSearch(memory_limit_bytes=100.0)(SHORT["random0"])
    assert short.bound <= best_of("random0") <= short.loss


def test_a_relative_gap_ends_the_search_early_and_is_kept():
    problem = random_problem(0, layers=200, choices=6)
    best, loose = CoreSearch()(problem), CoreSearch(relative_gap=0.01)(problem)
    assert loose.bound <= best.loss <= loose.loss
    assert loose.loss - loose.bound <= 0.0101 * (loose.loss - problem.losses.min(axis=1).sum())


def test_the_core_solver_is_deterministic():
    problem = random_problem(5, layers=100, choices=8)
    np.testing.assert_array_equal(CoreSearch()(problem).columns, CoreSearch()(problem).columns)


def test_rounded_sums_do_not_break_the_budget():
    """A sum of costs that lies between the limit and what rounding may add to it."""
    costs = np.array([[0.0, 1.0 + 1.00001e-12], [0.0, 0.5]])
    losses = np.array([[1.0, 0.0], [0.5, 0.0]])
    problem = problem_of(losses, {"cost": costs}, {"cost": 1.0})
    solution = CoreSearch()(problem)
    assert not problem.violated(solution.costs)
    assert solution.bound <= optimum(problem) <= solution.loss


@pytest.mark.parametrize("seed", range(20))
def test_a_limit_within_rounding_of_a_sum_is_held_and_nothing_false_is_proven(seed):
    """The dearest allocation exceeds the limit by the last bit, which added up one way only."""
    rng = np.random.default_rng(seed)
    costs = np.stack([np.zeros(6), rng.uniform(0.1, 1, 6)], axis=1)
    losses = np.stack([rng.uniform(1, 2, 6), np.zeros(6)], axis=1)
    limit = math.fsum(costs[:, 1])
    while limit + 1e-12 * limit >= math.fsum(costs[:, 1]):
        limit = float(np.nextafter(limit, 0.0))
    problem = problem_of(losses, {"cost": costs}, {"cost": limit})
    allocations = np.array(list(itertools.product(range(2), repeat=6)))
    values = [problem.evaluate(allocation) for allocation in allocations]
    best = min(loss for loss, used in values if not problem.violated(used))
    assert BruteForce()(problem).loss == best
    solution = CoreSearch()(problem)
    assert solution.bound <= best == solution.loss


def test_a_choice_out_of_reach_does_not_spoil_the_proof():
    """Its cost drowns those of the others: found by hypothesis among two thousand."""
    losses = np.array([[0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    costs = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1e-9]])
    solution = CoreSearch()(problem_of(losses, {"cost": costs}, {"cost": 1e-9}))
    assert (solution.loss, solution.status) == (0.0, "optimal")


def test_what_these_solvers_do_not_take_is_refused():
    several = SHORT["two_budgets0"]
    for solver, name in ((CoreSearch(), "The core solver"), (DynamicProgramming(), "Dynamic")):
        with pytest.raises(ValueError, match=f"{name}.* takes one budget, got 2 .*`Exact`"):
            solver(several)
        with pytest.raises(Infeasible, match=r"Budget cost0=.* cannot be met"):
            solver(with_budgets(random_problem(3), {"cost0": 0.0}))
    with pytest.raises(ValueError, match=r"'layer0' at W1 has cost0 .*Round the costs up"):
        DynamicProgramming()(SHORT["random0"])
    huge = problem_of(
        np.array([[1.0, 0.0]] * 2), {"c": np.array([[0, 2.0**52]] * 2)}, {"c": 9.0}
    )
    with pytest.raises(ValueError, match=r"sum of c exceeds 2\^53"):
        DynamicProgramming()(huge)
    with pytest.raises(
        ValueError, match=r"needs .* bytes for 6 groups .*memory_limit_bytes is"
    ):
        DynamicProgramming(memory_limit_bytes=1000.0)(SHORT["integer0"])


def test_integer_costs_are_counted_in_their_common_unit():
    reduced = one_budget(SHORT["common_divisor"].reduced(), "")
    found = integer_costs(reduced)
    assert found.above(reduced).tolist() == [[0, 1, 2]] * 4
    assert (found.room, found.limit) == (4, 360.0)
    assert integer_costs(SHORT["random0"].reduced()) is None


def test_the_solver_that_suits_the_problem_is_chosen():
    assert make_solver(SHORT["random0"]) == CoreSearch()
    assert make_solver(SHORT["no_budget"]) == CoreSearch()
    several = make_solver(SHORT["two_budgets0"], time_limit_s=5.0)
    assert several == SeveralBudgets(time_limit_s=5.0)
    assert make_solver(SHORT["random0"], "SCIP") == Exact(solver="SCIP")
    assert make_solver(SHORT["integer0"], "dynamic_programming") == DynamicProgramming()
    dual = make_solver(SHORT["two_budgets0"], "greedy_dual_prices")
    assert dual == Greedy(weights="dual_prices")
    assert solve(SHORT["random0"]).solver == "core"
    assert solve(SHORT["two_budgets0"]).solver == "several_budgets"


def test_cross_layer_terms_are_solved_or_refused_but_never_left_out():
    small, large = QUADRATIC["psd0"], quadratic_problem(0, layers=126, choices=8)
    assert make_solver(small, time_limit_s=5.0) == BranchAndBound(time_limit_s=5.0)
    assert make_solver(large) == LocalSearch(time_limit_s=60.0, restarts=None)
    assert make_solver(small, "local_search") == LocalSearch(time_limit_s=60.0)
    assert make_solver(small.separable(), "branch_and_bound") == BranchAndBound()
    for name in ("core", "dynamic_programming", "HIGHS"):
        with pytest.raises(ValueError, match=f"Solver '{name}' takes no cross-layer terms: ch"):
            make_solver(small, name)
    solution = solve(small)
    assert (solution.solver, solution.status) == ("branch_and_bound", "optimal")
    assert solution.loss == pytest.approx(optimum(small), rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_states_are_extended_as_by_enumeration(seed):
    """The states that no cheaper one equals and the bound leaves."""
    rng = np.random.default_rng(seed)
    excess = np.cumsum(rng.integers(1, 20, 30)) - 150.0
    loss = -np.cumsum(rng.integers(1, 20, 30)).astype(float)
    cost_steps = np.append(0.0, rng.integers(-30, 30, 4)).astype(float)
    loss_steps = np.append(0.0, rng.integers(-30, 30, 4)).astype(float)
    slopes, target = (0.7, np.inf if seed % 2 else 1.3), -60.0
    args = excess, loss, cost_steps, loss_steps, *slopes, target
    extended = core_states.extend(*args, 1000)
    made = {
        (e + dc, v + dv)
        for e, v in zip(excess, loss, strict=True)
        for dc, dv in zip(cost_steps, loss_steps, strict=True)
    }
    best = {
        (e, v)
        for e, v in made
        if not any(a <= e and b <= v and (a, b) != (e, v) for a, b in made)
        and v + (slopes[0] * e if e <= 0 else slopes[1] * e) < target
    }
    assert set(zip(*extended[:2], strict=True)) == best
    new_excess, new_loss, parent, columns, complete = extended
    np.testing.assert_array_equal(excess[parent] + cost_steps[columns], new_excess)
    np.testing.assert_array_equal(loss[parent] + loss_steps[columns], new_loss)
    assert complete
    assert not core_states.extend(*args, len(parent) - 1)[4]
