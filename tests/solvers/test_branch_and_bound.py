import dataclasses
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmpq.problem import problem_of, with_budgets
from jmpq.solvers import BranchAndBound, Exact, LocalSearch
from jmpq.solvers.quadratic.lifted import Lifted
from jmpq.solvers.quadratic.semidefinite import Relaxation, onto_simplex
from jmpq.solvers.quadratic.separable_bounds import row_bound
from tests.solvers.instances import QUADRATIC, SHORT, loss_of, optimum, quadratic_problem

# so small that the relaxation and the division into parts do the work, not the enumeration
QUICK = LocalSearch(restarts=1, patience=10)
DIVIDE = BranchAndBound(enumerate_up_to=2, search=QUICK)


def vectors(problem):
    """y of every allocation within the budgets, with its loss and options."""
    reduced = problem.reduced(interactions=True)
    lifted = Lifted.of_problem(reduced)
    groups, choices = reduced.losses.shape
    number = {option: k for k, option in enumerate(lifted.options.tolist())}
    settled = set(lifted.settled.tolist())
    for picks in itertools.product(range(choices), repeat=groups):
        columns = np.array(picks)
        options = [g * choices + c for g, c in enumerate(picks)]
        if not np.isfinite(reduced.losses[np.arange(groups), columns]).all():
            continue
        if not reduced.fits(columns):
            continue
        taken = [number[o] for o in options if o in number]
        assert len(taken) == lifted.groups  # nothing that fits was ruled out
        assert settled <= set(options)
        x = np.zeros(len(lifted.of))
        x[taken] = 1.0
        y = np.concatenate([[1.0], x, lifted.limits - lifted.costs @ x])
        yield y, problem.evaluate(reduced.expand(columns))[0], taken


SMALL = ["psd0", "indefinite1", "two_budgets_indefinite", "tied", "forbidden", "no_budget"]


@pytest.mark.parametrize("name", SMALL)
def test_the_lifted_form_is_the_loss(name):
    problem = QUADRATIC[name]
    lifted = Lifted.of_problem(problem.reduced(interactions=True))
    count = 0
    for y, loss, _ in vectors(problem):
        assert y @ lifted.matrix @ y == pytest.approx(loss, rel=1e-9, abs=1e-12)
        assert (y >= -1e-9).all()
        count += 1
    assert count > 5


@pytest.mark.parametrize("name", SMALL)
def test_every_multiplier_bounds_every_allocation(name):
    problem = QUADRATIC[name]
    relaxation = Relaxation(Lifted.of_problem(problem.reduced(interactions=True)))
    best, size = optimum(problem), len(relaxation.lifted.matrix)
    allocations = list(vectors(problem))
    rng = np.random.default_rng(0)
    multipliers = [np.zeros((size, size))]
    for scale in (1e-2, 1.0, 10.0):
        draw = scale * rng.normal(size=(size, size))
        multipliers += [draw + draw.T, -draw @ draw.T]
    multipliers.append(relaxation.solve(max_iterations=200).last.multiplier)
    for multiplier in multipliers:
        bound, needs = relaxation.certify(multiplier)
        assert bound <= best
        for _, loss, taken in allocations:
            assert (needs[taken] <= loss + 1e-12 * abs(loss)).all()
    assert bound > relaxation.certify(multipliers[0])[0] or bound == pytest.approx(best)


@pytest.mark.parametrize("name", SMALL)
def test_products_of_allocations_are_in_both_sets_of_the_relaxation(name):
    relaxation = Relaxation(Lifted.of_problem(QUADRATIC[name].reduced(interactions=True)))
    basis = relaxation.basis
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    for y, _, _ in itertools.islice(vectors(QUADRATIC[name]), 30):
        product = np.outer(y, y)
        np.testing.assert_allclose(relaxation.project(product), product, atol=1e-9)
        np.testing.assert_allclose(basis @ (basis.T @ y), y, atol=1e-12)
        trace = np.trace(product)
        assert relaxation.least_trace - 1e-9 <= trace <= relaxation.trace + 1e-9


@pytest.mark.parametrize("name", ["psd1", "two_budgets_indefinite"])
def test_the_projection_is_nearer_than_any_other_point_of_the_set(name):
    problem = QUADRATIC[name]
    relaxation = Relaxation(Lifted.of_problem(problem.reduced(interactions=True)))
    rng = np.random.default_rng(1)
    size = len(relaxation.lifted.matrix)
    products = [np.outer(y, y) for y, _, _ in vectors(problem)]
    for _ in range(5):
        point = rng.normal(size=(size, size))
        point = point + point.T
        near = relaxation.project(point)
        np.testing.assert_allclose(relaxation.project(near), near, atol=1e-12)
        for product in products:  # obtuse angle: the mark of a projection onto a convex set
            assert ((point - near) * (product - near)).sum() <= 1e-6


def test_onto_simplex_agrees_with_bisection():
    rows = np.random.default_rng(0).normal(size=(50, 7))
    rows[:, 5] = -np.inf
    got = onto_simplex(rows)
    for row, shares in zip(rows, got, strict=True):
        low, high = row.max() - 1, row.max()
        for _ in range(80):
            middle = 0.5 * (low + high)
            low, high = (
                (middle, high) if np.maximum(row - middle, 0).sum() > 1 else (low, middle)
            )
        np.testing.assert_allclose(shares, np.maximum(row - low, 0), atol=1e-12)


@pytest.mark.parametrize("seed", [1])
def test_the_bound_reaches_that_of_a_semidefinite_solver(seed):
    """The same relaxation stated in cvxpy without any of our reductions, solved by Clarabel."""
    import cvxpy

    problem = quadratic_problem(seed, "indefinite", layers=3, choices=3)
    reduced = problem.reduced(interactions=True)
    lifted = Lifted.of_problem(reduced)
    size, options = len(lifted.matrix), len(lifted.of)
    product = cvxpy.Variable((size, size), PSD=True)
    limits = [product >= 0, product[0, 0] == 1]
    limits += [product[k, k] == product[0, k] for k in range(1, 1 + options)]
    for g in range(lifted.groups):
        members = 1 + np.flatnonzero(lifted.of == g)
        limits += [sum(product[:, int(k)] for k in members) == product[:, 0]]
        limits += [product[int(a), int(b)] == 0 for a in members for b in members if a < b]
    spent = product[:, 1 : 1 + options] @ lifted.costs[0]
    limits += [product[:, -1] == lifted.limits[0] * product[:, 0] - spent]
    fits = lifted.pair_fits()
    limits += [product[1 + a, 1 + b] == 0 for a, b in np.argwhere(~fits) if a < b]
    program = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.multiply(lifted.matrix, product))))
    program = cvxpy.Problem(program.objective, limits)
    program.solve(solver=cvxpy.CLARABEL)
    found = Relaxation(lifted).solve(patience=1e-4, max_iterations=6000)
    assert found.bound <= program.value + 1e-5 * abs(program.value)
    assert found.bound >= program.value - 1e-3 * abs(program.value)


@pytest.mark.parametrize("name", QUADRATIC)
def test_branch_and_bound_is_the_enumerated_optimum(name):
    problem = QUADRATIC[name]
    best = optimum(problem)
    for solve in (BranchAndBound(search=QUICK), DIVIDE):
        solution = solve(problem)
        assert solution.loss == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert solution.loss == pytest.approx(loss_of(problem, solution.columns), rel=1e-12)
        assert solution.bound <= best + 1e-12 * abs(best)
        assert solution.status == "optimal"
        assert not problem.violated(solution.costs)


@pytest.mark.parametrize("name", ["integer0", "mixed_signs", "opposed_costs", "one_choice"])
def test_branch_and_bound_of_a_sum_over_layers_agrees_with_the_integer_program(name):
    problem = SHORT[name]
    solution = DIVIDE(problem)
    assert solution.loss == pytest.approx(Exact()(problem).loss, rel=1e-9, abs=1e-12)
    assert solution.status == "optimal"


def quadratic_from(seed, layers, choices, budgets, tied, column):
    """A problem full of equal values, zeros and ties."""
    rng = np.random.default_rng(seed)
    size = layers * choices
    matrix = rng.choice([0.0, 1.0, -1.0, 2.5, 1e-3, -7.0], size=(size, size))
    interactions = (matrix + matrix.T).reshape(layers, choices, layers, choices)
    interactions[np.arange(layers), :, np.arange(layers)] = 0.0
    losses = rng.choice([0.0, 1.0, -3.0, 1e2], size=(layers, choices))
    names = ["a", "b"][:budgets]
    costs = {name: rng.choice([0.0, 1.0, 2.0, 0.1], size=losses.shape) for name in names}
    allowed = np.ones(losses.shape, dtype=bool)
    if choices > 2:
        allowed[rng.integers(layers), rng.integers(choices)] = False
    problem = problem_of(
        losses,
        costs,
        {},
        ties=[[0, layers - 1]] if tied else [],
        allowed=allowed,
        interactions=interactions,
    )
    within = problem.evaluate(problem.uniform(problem.choices[column]))[1]
    return with_budgets(problem, {name: within[name] for name in names})


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.integers(2, 4),
    st.integers(2, 3),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 1),
)
def test_no_counterexample_among_generated_quadratic_problems(
    seed, layers, choices, budgets, tied, column
):
    problem = quadratic_from(seed, layers, choices, budgets, tied, column)
    best = optimum(problem)
    reduced = problem.reduced(interactions=True)
    assert row_bound(reduced) <= best + 1e-12 * abs(best)
    local = LocalSearch(restarts=2, patience=10)(problem)
    assert local.bound <= best <= local.loss + 1e-12 * abs(local.loss)
    exact = DIVIDE(problem)
    assert exact.loss == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert exact.bound <= best + 1e-12 * abs(best)


def test_out_of_time_and_parts_is_feasible_with_a_real_bound():
    problem = quadratic_problem(2, "psd", layers=9, choices=4)
    best = BranchAndBound(search=QUICK)(problem)
    assert best.status == "optimal"
    root = dataclasses.replace(DIVIDE, max_parts=1)(problem)
    assert root.status == "feasible"
    assert row_bound(problem.reduced(interactions=True)) < root.bound < best.loss
    started = time.perf_counter()
    short = BranchAndBound(time_limit_s=0.2)(problem)
    assert time.perf_counter() - started < 2.0
    assert short.bound <= best.loss <= short.loss
    assert short.status == "feasible"


def test_permuted_layers_give_the_permuted_answer():
    problem = quadratic_problem(4, "indefinite", layers=7)
    order = np.random.default_rng(0).permutation(7)
    permuted = problem_of(
        problem.losses[order],
        {name: table[order] for name, table in problem.costs.items()},
        problem.budgets,
        interactions=problem.interactions[order][:, :, order],
    )
    want, got = DIVIDE(problem), DIVIDE(permuted)
    np.testing.assert_array_equal(got.columns, want.columns[order])


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="Branch and bound needs a time limit above 0"):
        BranchAndBound(time_limit_s=0.0)
    with pytest.raises(ValueError, match="max_parts=0"):
        BranchAndBound(max_parts=0)
