import dataclasses
import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmpq.problem import problem_of, with_budgets
from jmpq.solvers import BranchAndBound, Exact, LocalSearch, QuadraticProgram
from jmpq.solvers.quadratic import semidefinite
from jmpq.solvers.quadratic.branch_and_bound import _Tree
from jmpq.solvers.quadratic.lifted import Lifted
from jmpq.solvers.quadratic.row_bound import row_bound
from jmpq.solvers.quadratic.semidefinite import Relaxation, onto_simplex
from jmpq.solvers.quadratic.triangles import Triangles
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
    product = relaxation.solve(max_iterations=20).last.product
    triangles = Triangles.none(size).renewed(relaxation.lifted, product, rng)
    prices = rng.exponential(size=len(triangles.prices))
    priced = triangles.at(prices)
    for multiplier, cuts in itertools.product(multipliers, (None, priced)):
        bound, needs = relaxation.certify(multiplier, cuts)
        assert bound <= best
        for _, loss, taken in allocations:
            assert (needs[taken] <= loss + 1e-12 * abs(loss)).all()
    bound = relaxation.certify(multipliers[-1])[0]
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


@pytest.mark.parametrize("name", SMALL)
def test_no_allocation_below_the_limit_takes_a_barred_pair(name):
    problem = QUADRATIC[name]
    relaxation = Relaxation(Lifted.of_problem(problem.reduced(interactions=True)))
    last = relaxation.solve(max_iterations=100).last
    allocations = list(vectors(problem))
    losses = sorted(loss for _, loss, _ in allocations)
    for limit in (losses[0] * (1 + 1e-9), losses[len(losses) // 4], losses[-1]):
        barred = relaxation.barred(last, limit)
        for _, loss, taken in allocations:
            if loss < limit:
                assert not barred[np.ix_(taken, taken)].any()


@pytest.mark.parametrize("name", SMALL)
def test_triangles_hold_at_every_allocation_and_in_every_part(name):
    problem = QUADRATIC[name]
    lifted = Lifted.of_problem(problem.reduced(interactions=True))
    rng = np.random.default_rng(2)
    product = Relaxation(lifted).solve(max_iterations=20).last.product
    triangles = Triangles.none(len(lifted.matrix)).renewed(lifted, product, rng)
    assert (triangles.excess(product) > 0).all()
    prices = rng.exponential(size=len(triangles.prices))
    matrix = triangles.matrix(prices)
    np.testing.assert_array_equal(matrix, matrix.T)
    keep = np.ones(len(lifted.of), dtype=bool)
    keep[np.flatnonzero(lifted.of == 0)[1:]] = False  # the first group takes its first option
    rest, to = lifted.restrict(keep)
    part = triangles.at(prices).restrict(to)
    assert part.size == len(rest.matrix)
    for y, _, taken in vectors(problem):
        excess = triangles.excess(np.outer(y, y))
        assert (excess <= 1e-12).all()
        assert y @ matrix @ y == pytest.approx(prices @ excess, abs=1e-9)
        if keep[taken].all():
            assert (part.excess(np.outer(y[to.rows], y[to.rows])) <= 1e-12).all()


def test_triangles_of_three_groups_that_cannot_agree_are_found():
    """Three pairs that never agree, at half each: no distribution over triples has them."""
    problem = quadratic_problem(0, "indefinite", layers=3, choices=2, budgets=0)
    lifted = Lifted.of_problem(problem.reduced(interactions=True))
    product = np.full((7, 7), 0.5)
    product[0, 0] = 1.0
    for a, b in itertools.product(range(3), repeat=2):
        product[1 + 2 * a : 3 + 2 * a, 1 + 2 * b : 3 + 2 * b] = (
            0.5 * np.eye(2) if a == b else 0.5 - 0.5 * np.eye(2)
        )
    found = Triangles.none(7).renewed(lifted, product, np.random.default_rng(0))
    assert found.excess(product).max() == pytest.approx(0.5)


def test_bounds_of_whole_losses_are_whole():
    rng = np.random.default_rng(0)
    matrix = 3.0 * rng.integers(-9, 10, size=(27, 27))
    interactions = (matrix + matrix.T).reshape(9, 3, 9, 3)
    interactions[np.arange(9), :, np.arange(9)] = 0.0
    problem = problem_of(np.zeros((9, 3)), {}, {}, interactions=interactions)
    best = optimum(problem)
    cut_short = dataclasses.replace(DIVIDE, max_parts=1)(problem)
    assert cut_short.bound % 3 == 0
    assert cut_short.bound <= best
    solution = DIVIDE(problem)
    assert (solution.loss, solution.bound, solution.status) == (best, best, "optimal")


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


@pytest.mark.parametrize("name", [*SMALL, "four_choices", "tight", "loose", "single_layer"])
def test_cuts_kept_in_all_parts_leave_the_optimum(name, monkeypatch):
    monkeypatch.setattr(semidefinite, "_WORTH", -math.inf)
    monkeypatch.setattr(semidefinite, "_RENEWED", semidefinite._CHUNK)
    problem = QUADRATIC[name]
    best, solution = optimum(problem), DIVIDE(problem)
    assert solution.loss == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert solution.bound <= best + 1e-12 * abs(best)
    assert solution.status == "optimal"


@pytest.mark.parametrize("name", QUADRATIC)
def test_scip_on_the_quadratic_program_agrees(name):
    pytest.importorskip("pyscipopt")
    problem, best = QUADRATIC[name], optimum(QUADRATIC[name])
    solution = QuadraticProgram(time_limit_s=20.0)(problem)
    assert solution.loss == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert solution.bound <= best + 1e-6 * (1 + abs(best))
    assert solution.gap < 1e-4
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


def test_the_search_goes_on_while_the_bound_is_made(monkeypatch):
    problem = quadratic_problem(2, "indefinite", layers=14, budgets=2)
    weak = LocalSearch(restarts=0, patience=1)
    best = LocalSearch()(problem).loss
    assert weak(problem).loss > best
    monkeypatch.setattr(_Tree, "_round", lambda *_: None)  # which would find it too
    one_part = BranchAndBound(search=weak, max_parts=1)(problem)
    assert one_part.loss == pytest.approx(best, rel=1e-12)


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
