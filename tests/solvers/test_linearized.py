import numpy as np
import pytest

from jmpq.solvers import BranchAndBound, Linearized, LocalSearch
from tests.solvers.instances import QUADRATIC, SHORT, optimum, quadratic_problem
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
    with pytest.raises(ValueError, match="linearized program needs a time limit above 0"):
        Linearized(time_limit_s=0.0)


def test_a_failure_of_the_back_end_is_an_error(monkeypatch):
    import cvxpy

    def fail(*_, **__):
        raise cvxpy.SolverError("out of memory")

    monkeypatch.setattr(cvxpy.Problem, "solve", fail)
    with pytest.raises(RuntimeError, match="HiGHS failed on the linearized program: out of"):
        POOR(QUADRATIC["psd0"])
