import numpy as np
import pytest

from experiments.quadratic.iqp_rivals import Linearized, convex_bound, linearized_bound
from jmpq.problem import problem_of
from jmpq.solvers import BranchAndBound, LocalSearch, lp_bound
from jmpq.solvers.quadratic.row_bound import row_bound
from tests.solvers.instances import QUADRATIC, SHORT, optimum, quadratic_problem
from tests.solvers.test_degenerate import CROSSED
from tests.solvers.test_solvers import best_of

POOR = Linearized(search=LocalSearch(restarts=0, patience=1))  # so that HiGHS has to find it
NAMES = ["psd0", "indefinite1", "two_budgets_indefinite", "tied", "forbidden", "tight",
         "single_layer"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_linearized_program_is_the_enumerated_optimum(name):
    problem = QUADRATIC[name]
    solution = POOR(problem)
    assert solution.loss == pytest.approx(optimum(problem), rel=1e-9, abs=1e-12)
    assert solution.bound <= optimum(problem)
    assert solution.status == "optimal"


def test_a_sum_over_layers_is_a_special_case():
    solution = POOR(SHORT["integer0"])
    assert solution.loss == pytest.approx(best_of("integer0"), rel=1e-9)


def test_two_exact_solvers_that_share_no_bound_agree_beyond_brute_force():
    problem = quadratic_problem(1, "psd", layers=8, choices=4, budgets=2)
    one, other = BranchAndBound(enumerate_up_to=100, search=POOR.search)(problem), POOR(problem)
    assert one.status == "optimal"
    np.testing.assert_array_equal(one.columns, other.columns)
    assert other.bound <= one.loss * (1 + 1e-12)
    assert one.bound <= other.loss * (1 + 1e-12)


def test_out_of_time_is_feasible_with_a_real_bound():
    problem = quadratic_problem(2, "psd", layers=12, choices=4)
    solution = Linearized(time_limit_s=0.3)(problem)
    assert solution.status == "feasible"
    assert -np.inf < solution.bound < solution.loss


def test_a_time_limit_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"Linearized got time_limit_s=0\.0: expected above 0"):
        Linearized(time_limit_s=0.0)


def test_a_failure_of_highs_is_an_error(monkeypatch):
    import cvxpy

    def fail(*_, **__):
        raise cvxpy.SolverError("out of memory")

    monkeypatch.setattr(cvxpy.Problem, "solve", fail)
    with pytest.raises(RuntimeError, match="HiGHS failed on the linearized program: out of"):
        POOR(QUADRATIC["psd0"])


BOUNDED = ["psd0", "psd1", "indefinite0", "two_budgets_indefinite", "tied", "forbidden",
         "tight", "no_budget", "single_layer", "one_choice"]  # fmt: skip


@pytest.mark.parametrize("name", CROSSED)
def test_where_next_to_nothing_is_left_to_decide(name):
    problem, best = CROSSED[name], optimum(CROSSED[name])
    reduced, above = problem.reduced(interactions=True), best + 1e-6 * (1 + abs(best))
    assert POOR(problem).loss == pytest.approx(best, rel=1e-9)
    assert convex_bound(reduced) <= above
    assert linearized_bound(reduced) <= above


@pytest.mark.parametrize("name", BOUNDED)
def test_every_bound_lies_below_the_optimum(name):
    problem = QUADRATIC[name]
    reduced, best = problem.reduced(interactions=True), optimum(problem)
    tolerance = 1e-12 * abs(best)
    for bound in (convex_bound, linearized_bound):
        assert bound(reduced) <= best + tolerance
    assert linearized_bound(reduced) >= row_bound(reduced) - tolerance


def test_bounds_of_a_sum_over_layers_are_that_of_the_knapsack():
    reduced = SHORT["random0"].reduced()
    for bound in (convex_bound, linearized_bound):
        assert bound(reduced) == lp_bound(reduced)[0]


def test_the_linearized_bound_is_that_of_the_whole_linear_program():
    import cvxpy

    problem = quadratic_problem(3, "indefinite", layers=4)
    reduced = problem.reduced(interactions=True)
    x = cvxpy.Variable((4, 3), nonneg=True)
    loss, limits = cvxpy.sum(cvxpy.multiply(reduced.losses, x)), [cvxpy.sum(x, axis=1) == 1]
    for g in range(4):
        for h in range(g + 1, 4):
            y = cvxpy.Variable((3, 3), nonneg=True)
            loss += cvxpy.sum(cvxpy.multiply(reduced.interactions[g, :, h], y))
            limits += [cvxpy.sum(y, axis=1) == x[g], cvxpy.sum(y, axis=0) == x[h]]
    limits.append(cvxpy.sum(cvxpy.multiply(reduced.costs[0], x)) <= reduced.limits[0])
    program = cvxpy.Problem(cvxpy.Minimize(loss), limits)
    program.solve(solver=cvxpy.HIGHS)
    assert linearized_bound(reduced) == pytest.approx(program.value, rel=1e-6)


def test_the_convex_bound_is_exact_where_the_relaxed_minimum_is_whole():
    """A convex loss whose relaxed minimum is an allocation: the tangent touches it."""
    interactions = np.zeros((3, 2, 3, 2))
    interactions[0, 1, 1, 1] = interactions[1, 1, 0, 1] = 5.0
    problem = problem_of(
        np.array([[0.0, 9.0]] * 3),
        {"c": np.ones((3, 2))},
        {"c": 3.0},
        interactions=interactions,
    )
    assert convex_bound(problem.reduced(interactions=True)) == pytest.approx(0.0, abs=1e-5)


def test_out_of_time_the_linearized_bound_is_that_of_the_rows():
    reduced = quadratic_problem(5, layers=12, choices=4).reduced(interactions=True)
    assert linearized_bound(reduced, time_limit_s=1e-4) == row_bound(reduced)


def test_a_failure_of_the_convex_program_is_an_error(monkeypatch):
    import cvxpy

    def fail(*_, **__):
        raise cvxpy.SolverError("no memory")

    monkeypatch.setattr(cvxpy.Problem, "solve", fail)
    with pytest.raises(RuntimeError, match="Clarabel failed on the convex program: no memory"):
        convex_bound(QUADRATIC["psd0"].reduced(interactions=True))
