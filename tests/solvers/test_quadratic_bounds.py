import pytest

from jmpq.solvers import lp_bound
from jmpq.solvers.quadratic.row_bound import row_bound
from tests.solvers.instances import QUADRATIC, SHORT, optimum


@pytest.mark.parametrize("name", QUADRATIC)
def test_the_bound_lies_below_the_optimum(name):
    problem = QUADRATIC[name]
    best = optimum(problem)
    assert row_bound(problem.reduced(interactions=True)) <= best + 1e-12 * abs(best)


def test_the_bound_of_a_sum_over_layers_is_that_of_the_knapsack():
    reduced = SHORT["random0"].reduced()
    assert row_bound(reduced) == lp_bound(reduced)[0]
