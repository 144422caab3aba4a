"""Every solver on problems with next to nothing to decide, and on options out of range."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from jmpq.problem import Infeasible, problem_of
from jmpq.solvers import (
    BranchAndBound,
    BruteForce,
    CoreSearch,
    DynamicProgramming,
    Exact,
    Greedy,
    LocalSearch,
    ObjectiveSearch,
    SeveralBudgets,
    cheapest_above,
    least_cost,
    lp_bound,
    pareto_hull,
    random_search,
    refine,
    reversed_search,
    solve,
    uniform,
)
from jmpq.solvers.quadratic.row_bound import row_bound
from jmpq.solvers.quadratic.semidefinite import semidefinite_bound
from tests.solvers.instances import loss_of, optimum

LOSSES = np.array([[5.0, 3.0, 1.0], [4.0, 3.5, 0.5], [6.0, 2.0, 1.5], [3.0, 2.5, 2.0]])
COSTS = np.outer([2.0, 3.0, 1.0, 4.0], [1.0, 2.0, 4.0])


def only(*columns):
    """Which choices are allowed: one of every layer where it is given, else all."""
    allowed = np.ones(LOSSES.shape, dtype=bool)
    for row, column in enumerate(columns):
        if column is not None:
            allowed[row] = np.arange(3) == column
    return allowed


def plain(losses=LOSSES, costs=COSTS, budget=20.0, **options):
    return problem_of(losses, {"cost": costs}, {"cost": budget}, **options)


DEGENERATE = {
    "one_layer": plain(LOSSES[:1], COSTS[:1], 4.0),
    "one_choice": plain(LOSSES[:, :1], COSTS[:, :1]),
    "one_layer_with_one_choice": plain(LOSSES[:1, :1], COSTS[:1, :1]),
    "all_tied": plain(ties=[[0, 1, 2, 3]]),
    "all_fixed": plain(allowed=only(0, 1, 2, 0)),
    "all_but_one_fixed": plain(allowed=only(1, None, 0, 1)),
    "all_but_two_fixed": plain(allowed=only(None, 0, 0, None)),
    "all_but_one_tied_group_fixed": plain(allowed=only(1, None, None, 1), ties=[[1, 2]]),
    "nothing_left_of_the_budget": plain(budget=10.0),
    "everything_within_the_budget": plain(budget=40.0),
    "no_budget": problem_of(LOSSES, {"cost": COSTS}, {}),
    "no_cost_and_no_budget": problem_of(LOSSES, {}, {}),
    "zero_costs": plain(costs=np.zeros(COSTS.shape), budget=0.0),
    "zero_budget": plain(costs=COSTS - COSTS[:, :1], budget=0.0),
    "zero_losses": plain(np.zeros(LOSSES.shape)),
    "negative_losses": plain(-LOSSES[:, ::-1]),
    "equal_choices": plain(np.ones(LOSSES.shape), np.ones(COSTS.shape)),
    # Two choices fit; their difference is so small that a bound rules one of them out.
    "almost_equal_choices": problem_of(
        np.array([[-1.0, 1e-9, 0.0]]),
        {"cost": np.array([[2.0, 1.0, 1.0]]), "other": np.array([[0.0, 2.0, 5.0]])},
        {"cost": 1.5, "other": 5.5},
    ),
}


def crossed(problem, kind):
    """The same problem with cross-layer terms: all zero, or random ones."""
    layers, choices = problem.losses.shape
    shape = (layers, choices, layers, choices)
    terms = np.zeros(shape)
    if kind == "random":
        terms = np.random.default_rng(0).normal(size=shape)
        terms[np.arange(layers), :, np.arange(layers)] = 0.0
    terms = 0.5 * (terms + terms.transpose(2, 3, 0, 1))
    return dataclasses.replace(problem, interactions=terms)


CROSSED = {
    f"{name}/{kind}": crossed(problem, kind)
    for name, problem in DEGENERATE.items()
    for kind in ("zero", "random")
}


def under_more(problem, kind):
    """The same problem under more budgets, which leave its optimum within them."""
    best = BruteForce()(problem).columns
    cost = problem.costs.get("cost", np.ones(problem.losses.shape))
    other = np.arange(cost.shape[1]) != best[:, None]
    tables = {
        "the_same_twice": {"again": cost, "once_more": 2.0 * cost},
        "opposed": {"opposed": cost.max() - cost},
        "zero": {"zero": np.zeros(cost.shape), "none": np.zeros(cost.shape)},
        "nothing_but_the_optimum": {"other": other.astype(float)},
    }[kind]
    used = {
        name: float(table[np.arange(len(cost)), best].sum()) for name, table in tables.items()
    }
    costs, budgets = {**problem.costs, **tables}, {**problem.budgets, **used}
    return dataclasses.replace(problem, costs=costs, budgets=budgets)


SEVERAL = {
    f"{name}/{kind}": under_more(problem, kind)
    for name, problem in DEGENERATE.items()
    for kind in ("the_same_twice", "opposed", "zero", "nothing_but_the_optimum")
}


def search(problem):
    """The search on an objective, which here is the problem's own loss."""
    objective = lambda rows: np.array([loss_of(problem, row) for row in rows])  # noqa: E731
    return ObjectiveSearch(objective=objective, restarts=1, patience=2)(problem)


SHORT = LocalSearch(restarts=1, patience=3)
QUADRATIC_PROOFS = {
    "brute_force": BruteForce(),
    "branch_and_bound": BranchAndBound(search=SHORT),
    "branch_and_bound_on_relaxations_alone": BranchAndBound(search=SHORT, enumerate_up_to=1),
}
PROOFS = {
    **QUADRATIC_PROOFS,
    "solve": solve,
    "core": CoreSearch(),
    "dynamic_programming": DynamicProgramming(),
    "exact": Exact(),
    "several_budgets": SeveralBudgets(),
}
QUADRATIC_SEARCHES = {
    "local_search": SHORT,
    "objective_search": search,
    "uniform": uniform,
    "random": functools.partial(random_search, seed=0),
}
SEARCHES = {
    **QUADRATIC_SEARCHES,
    "greedy": Greedy(),
    "downgrade": Greedy(start="downgrade", fill=False),
    "reversed": reversed_search,
    "several_budgets/search": SeveralBudgets(integer_program=False),
}
best_of = functools.cache(lambda name: optimum({**DEGENERATE, **CROSSED}[name]))


def check(problem, solution, best):
    assert not problem.violated(solution.costs)
    assert solution.loss == pytest.approx(loss_of(problem, solution.columns), rel=1e-12)
    assert solution.bound <= best + 1e-9 * (1 + abs(best))
    assert best <= solution.loss + 1e-12 * (1 + abs(best))


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("solver", PROOFS)
def test_what_proves_finds_the_optimum(solver, name):
    solution = PROOFS[solver](DEGENERATE[name])
    check(DEGENERATE[name], solution, best_of(name))
    assert solution.loss == pytest.approx(best_of(name), rel=1e-12)
    assert solution.status == "optimal"


@pytest.mark.parametrize("name", SEVERAL)
def test_more_budgets_that_leave_the_optimum_change_nothing(name):
    best = best_of(name.partition("/")[0])
    for solve_it in (SeveralBudgets(), Exact(), BruteForce()):
        solution = solve_it(SEVERAL[name])
        check(SEVERAL[name], solution, best)
        assert solution.loss == pytest.approx(best, rel=1e-12)
        assert solution.status == "optimal"
    for solve_it in (
        SeveralBudgets(integer_program=False),
        Greedy(),
        Greedy(weights="dual_prices"),
    ):
        check(SEVERAL[name], solve_it(SEVERAL[name]), best)


@pytest.mark.parametrize("name", CROSSED)
@pytest.mark.parametrize("solver", QUADRATIC_PROOFS)
def test_what_proves_finds_the_optimum_of_cross_layer_terms(solver, name):
    solution = QUADRATIC_PROOFS[solver](CROSSED[name])
    check(CROSSED[name], solution, best_of(name))
    assert solution.loss == pytest.approx(best_of(name), rel=1e-9)
    assert solution.status == "optimal"


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        *itertools.product(SEARCHES, DEGENERATE),
        *itertools.product(QUADRATIC_SEARCHES, CROSSED),
    ],
)
def test_what_searches_stays_within_the_budgets(solver, name):
    problem = {**DEGENERATE, **CROSSED}[name]
    try:
        solution = SEARCHES[solver](problem)
    except Infeasible:
        assert solver == "uniform"
        assert all(
            problem.violated(problem.evaluate(problem.uniform(choice))[1])
            for choice in problem.choices
        )
    else:
        check(problem, solution, best_of(name))


@pytest.mark.parametrize("name", CROSSED)
def test_bounds_lie_below_the_optimum(name):
    reduced, best = CROSSED[name].reduced(interactions=True), best_of(name)
    for bound in (row_bound(reduced), semidefinite_bound(reduced)):
        assert -np.inf < bound <= best + 1e-9 * (1 + abs(best))


@pytest.mark.parametrize("name", DEGENERATE)
def test_bounds_of_sums_lie_below_the_optimum(name):
    reduced, best = DEGENERATE[name].reduced(), best_of(name)
    for bound in (lp_bound(reduced)[0], row_bound(reduced), semidefinite_bound(reduced)):
        assert -np.inf < bound <= best + 1e-9 * (1 + abs(best))


@pytest.mark.parametrize("name", [name for name in DEGENERATE if DEGENERATE[name].costs])
def test_the_inverse_problems_take_them_too(name):
    problem = DEGENERATE[name]
    cheapest, dearest = problem.range("cost")
    hull = pareto_hull(problem, "cost")
    assert (hull.costs[0], hull.losses[-1]) == (cheapest, problem.reduced().losses.min(1).sum())
    ceiling = float(hull.losses[0])
    assert least_cost(problem, "cost", ceiling).cost == cheapest
    found = cheapest_above(hull, lambda rows: np.full(len(rows), 0.5), 0.5)
    assert found.cost == cheapest <= dearest


@pytest.mark.parametrize("name", [*DEGENERATE, *CROSSED])
def test_refinement_of_the_optimum_changes_nothing(name):
    problem = {**DEGENERATE, **CROSSED}[name]
    best = BruteForce()(problem)
    evaluate = lambda taken: np.array([loss_of(problem, problem.columns(a)) for a in taken])  # noqa: E731
    refined = refine(problem, best.allocation, evaluate)
    assert refined.finished
    assert refined.measured == pytest.approx(best.loss, rel=1e-12)


@pytest.mark.parametrize(
    ("solver", "name", "value", "expected"),
    [
        (CoreSearch, "time_limit_s", 0.0, "above 0"),
        (CoreSearch, "memory_limit_bytes", -1.0, "above 0"),
        (CoreSearch, "relative_gap", -1e-9, "at least 0"),
        (CoreSearch, "relative_gap", float("nan"), "at least 0"),
        (Exact, "time_limit_s", 0.0, "above 0"),
        (Exact, "relative_gap", -1.0, "at least 0"),
        (SeveralBudgets, "time_limit_s", 0.0, "above 0"),
        (SeveralBudgets, "relative_gap", -1.0, "at least 0"),
        (BranchAndBound, "time_limit_s", float("nan"), "above 0"),
        (BranchAndBound, "max_parts", 0, "at least 1"),
        (BranchAndBound, "enumerate_up_to", 0, "at least 1"),
        (LocalSearch, "time_limit_s", 0.0, "above 0"),
        (LocalSearch, "restarts", -1, "at least 0"),
        *((LocalSearch, name, 0, "at least 1") for name in ("patience", "tenure")),
        (ObjectiveSearch, "time_limit_s", 0.0, "above 0"),
        (ObjectiveSearch, "restarts", -1, "at least 0"),
        *(
            (ObjectiveSearch, name, 0, "at least 1")
            for name in ("max_evaluations", "batch", "max_pairs", "patience", "tenure")
        ),
    ],
)
def test_options_out_of_range_are_refused(solver, name, value, expected):
    required = {"objective": np.sum} if solver is ObjectiveSearch else {}
    with pytest.raises(
        ValueError, match=f"{solver.__name__} got {name}={value}: expected {expected}"
    ):
        solver(**required, **{name: value})
