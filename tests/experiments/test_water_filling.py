import dataclasses

import numpy as np
import pytest
from scipy import optimize

from experiments.common.water_filling import BitModel, fit_bit_model, water_filling
from jmpq.formats import choice_grid
from jmpq.problem import problem_of
from jmpq.solvers import Exact


def model(seed=0, layers=7, spread=3.0):
    rng = np.random.default_rng(seed)
    return BitModel(
        layers=tuple(f"layer{i}" for i in range(layers)),
        coefficients=rng.lognormal(0, spread, layers),
        cost_per_bit=rng.lognormal(0, 1, layers),
        fixed_cost=3.0,
        least=np.full(layers, 1.0),
        most=np.full(layers, 8.0),
    )


def cost_at(given, fraction):
    low = given.fixed_cost + given.cost_per_bit @ given.least
    return low + fraction * given.cost_per_bit @ (given.most - given.least)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_water_filling_meets_the_conditions_of_the_optimum(seed, fraction):
    given = model(seed)
    budget = cost_at(given, fraction)
    found = water_filling(given, budget)
    assert found.cost == pytest.approx(budget, rel=1e-12)
    assert (found.bits >= 1).all()
    assert (found.bits <= 8).all()
    slope = given.coefficients * np.log(4) * 4.0**-found.bits / given.cost_per_bit
    inside = (found.bits > 1 + 1e-12) & (found.bits < 8 - 1e-12)
    np.testing.assert_allclose(slope[inside], found.price, rtol=1e-9)
    if 0 < fraction < 1:
        assert (slope[found.bits <= 1 + 1e-12] <= found.price * (1 + 1e-9)).all()
        assert (slope[found.bits >= 8 - 1e-12] >= found.price * (1 - 1e-9)).all()
    assert found.loss == pytest.approx((given.coefficients * 4.0**-found.bits).sum())


def test_water_filling_agrees_with_a_general_solver():
    given = model(5, layers=5, spread=1.0)
    budget = cost_at(given, 0.4)
    result = optimize.minimize(
        lambda b: (given.coefficients * 4.0**-b).sum(),
        np.full(5, 2.0),
        jac=lambda b: -np.log(4) * given.coefficients * 4.0**-b,
        bounds=[(1, 8)] * 5,
        constraints={
            "type": "ineq",
            "fun": lambda b: budget - given.fixed_cost - given.cost_per_bit @ b,
            "jac": lambda b: -given.cost_per_bit,
        },
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert water_filling(given, budget).loss == pytest.approx(result.fun, rel=1e-6)


def test_equal_layers_share_equally_and_no_budget_means_most_bits():
    given = dataclasses.replace(
        model(layers=4), coefficients=np.ones(4), cost_per_bit=np.ones(4)
    )
    found = water_filling(given, 3.0 + 4 * 5.5)
    np.testing.assert_allclose(found.bits, 5.5, rtol=1e-12)
    free = water_filling(given, 1e9)
    assert free.bits.tolist() == [8.0] * 4
    assert free.price == 0.0


def test_a_problem_that_follows_the_model_is_fitted_exactly():
    """And the continuous optimum then is a bound on the integer one."""
    given = model(3, layers=6, spread=1.0)
    bits = np.arange(1.0, 9.0)
    problem = problem_of(
        given.coefficients[:, None] * 4.0**-bits,
        {"size_bytes": 0.5 + given.cost_per_bit[:, None] * bits},
        {"size_bytes": cost_at(given, 0.35)},
        choices=choice_grid(range(1, 9)),
        constants={"size_bytes": 0.0},
    )
    fitted = fit_bit_model(problem, "size_bytes")
    np.testing.assert_allclose(fitted.coefficients, given.coefficients, rtol=1e-12)
    np.testing.assert_allclose(fitted.cost_per_bit, given.cost_per_bit, rtol=1e-12)
    assert fitted.fixed_cost == pytest.approx(3.0)
    found = water_filling(fitted, problem.budgets["size_bytes"])
    exact = Exact()(problem)
    assert found.loss <= exact.loss * (1 + 1e-12)
    assert exact.loss <= 4 * found.loss  # rounding all bits down fits, at most 4 times the loss


def test_refusals_name_the_layer():
    losses = np.array([[4.0, 1.0], [4.0, 0.0]])
    costs = {"size_bytes": np.array([[2.0, 4.0], [2.0, 4.0]])}
    problem = problem_of(losses, costs, {}, choices=choice_grid([2, 4]))
    with pytest.raises(ValueError, match="'layer1' at W4 has loss 0: the model"):
        fit_bit_model(problem, "size_bytes")
    with pytest.raises(ValueError, match="There is no cost 'bops': expected one of size_bytes"):
        fit_bit_model(problem, "bops")
    mixed = problem_of(losses + 1, costs, {}, choices=choice_grid([2], [4, 8]))
    with pytest.raises(ValueError, match="differ in their weight bits alone, got W2A4"):
        fit_bit_model(mixed, "size_bytes")
    given = model()
    with pytest.raises(ValueError, match="does not pay for the least bits of every layer"):
        water_filling(given, cost_at(given, -0.1))
    free = dataclasses.replace(given, cost_per_bit=np.append(given.cost_per_bit[:-1], 0.0))
    with pytest.raises(ValueError, match="Layer 'layer6' has cost per bit 0 and coefficient"):
        water_filling(free, 1e3)
