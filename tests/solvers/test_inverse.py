import csv
import itertools
import math

import numpy as np
import pytest

from jmpq.problem import Infeasible, problem_of, with_budgets
from jmpq.solvers import (
    Exact,
    Greedy,
    least_cost,
    lp_bound,
    pareto_front,
    pareto_hull,
    sweep,
    write_csv,
)
from tests.solvers.instances import QUADRATIC, SHORT, loss_of, random_problem


def everything(problem, name):
    """Cost and loss of every allocation, budgets ignored, straight from the definition."""
    count = int(problem.groups.max()) + 1
    for picks in itertools.product(range(len(problem.choices)), repeat=count):
        columns = np.array(picks)[problem.groups]
        rows = np.arange(len(columns))
        if problem.allowed[rows, columns].all():
            cost = math.fsum(problem.costs[name][rows, columns])
            yield cost + problem.constants.get(name, 0.0), loss_of(problem, columns)


NAMES = ["random0", "integer1", "tied", "forbidden", "constants", "negative_losses",
         "mixed_signs", "degenerate", "equal_layers", "subset_sum", "zero_losses"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_least_cost_is_the_enumerated_one(name):
    problem = SHORT[name]
    (cost,) = problem.budgets
    table = list(everything(problem, cost))
    losses = sorted(loss for _, loss in table)
    for ceiling in (losses[0], losses[len(losses) // 3], losses[-1]):
        found = least_cost(problem, cost, ceiling)
        size = sum(abs(loss) for loss in (losses[0], losses[-1]))
        want = min(c for c, loss in table if loss <= ceiling + 1e-12 * size)
        assert found.cost == pytest.approx(want, rel=1e-9)
        assert found.loss <= ceiling + 1e-11 * size
        assert found.status == "optimal"
        assert found.bound <= found.cost == problem.evaluate(found.allocation)[1][cost]
        assert found.gap <= 1e-9


def test_least_cost_undoes_a_budget():
    problem = random_problem(4, layers=12, choices=4)
    best = Exact()(problem)
    found = least_cost(problem, "cost0", best.loss)
    assert found.cost <= best.costs["cost0"] * (1 + 1e-12)
    again = Exact()(with_budgets(problem, {"cost0": found.cost}))
    assert again.loss == pytest.approx(best.loss, rel=1e-9)


def test_least_cost_holds_the_other_budgets_and_takes_any_solver():
    problem = random_problem(5, layers=8, budgets=2)
    best = Exact()(problem)
    ceiling = 1.5 * best.loss
    found = least_cost(problem, "cost0", ceiling)
    assert not problem.violated({**found.costs, "cost0": 0.0})
    greedy = least_cost(problem, "cost0", ceiling, solver=Greedy())
    assert greedy.bound <= found.cost <= greedy.cost
    assert greedy.solver == "greedy"
    assert greedy.loss <= ceiling * (1 + 1e-12)


def test_least_cost_refuses_what_cannot_be():
    problem = random_problem(1)
    with pytest.raises(ValueError, match="no cost 'bops' to minimise: expected one of cost0"):
        least_cost(problem, "bops", 1.0)
    with pytest.raises(ValueError, match="ceiling on the loss must be finite, got nan"):
        least_cost(problem, "cost0", math.nan)
    with pytest.raises(Infeasible, match=r"loss of at most -1 cannot be met: .* lose from"):
        least_cost(problem, "cost0", -1.0)
    with pytest.raises(ValueError, match="cross-layer terms"):
        least_cost(QUADRATIC["psd0"], "cost0", 1.0)
    tight = with_budgets(random_problem(2, budgets=2), ["cost1=0%"])
    least = tight.losses.min(axis=1).sum()
    with pytest.raises(Infeasible, match=r"loss_above_least=.* not together"):
        least_cost(tight, "cost0", least)


@pytest.mark.parametrize("name", NAMES)
def test_the_front_is_the_enumerated_one(name):
    problem = SHORT[name]
    (cost,) = problem.budgets
    free = with_budgets(problem, {})
    front = pareto_front(free, cost)
    best = {}
    for c, loss in everything(problem, cost):
        best[round(c, 9)] = min(best.get(round(c, 9), math.inf), loss)
    for k in range(len(front.costs)):
        loss, costs = free.evaluate(front.allocation(k))
        assert front.losses[k] == pytest.approx(loss, rel=1e-12, abs=1e-12)
        assert front.costs[k] == pytest.approx(costs[cost], rel=1e-12)
    assert (np.diff(front.costs) > 0).all()
    assert (np.diff(front.losses) < 0).all()
    for c, loss in best.items():  # the front covers every allocation
        at = np.searchsorted(front.costs, c * (1 + 1e-9) + 1e-9, side="right") - 1
        assert front.losses[at] <= loss + 1e-9 * (1 + abs(loss))
    limited = pareto_front(problem, cost)
    inside = front.costs <= problem.budgets[cost] * (1 + 1e-12)
    np.testing.assert_allclose(limited.losses, front.losses[inside], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_hull_points_are_optimal_and_lie_on_the_linear_bound(name):
    problem = SHORT[name]
    (cost,) = problem.budgets
    hull = pareto_hull(problem, cost)
    for k in range(len(hull.costs)):
        loss, costs = problem.evaluate(hull.allocation(k))
        scale = 1e-9 * (1 + abs(loss))
        assert hull.losses[k] == pytest.approx(loss, abs=scale)
        assert hull.costs[k] == pytest.approx(costs[cost], rel=1e-12)
        here = with_budgets(problem, {cost: costs[cost]})
        assert lp_bound(here.reduced())[0] == pytest.approx(loss, abs=scale)
        assert hull.within(float(hull.costs[k])) >= k
    assert hull.losses[-1] == pytest.approx(
        problem.reduced().losses.min(axis=1).sum(), abs=1e-9
    )


def test_fronts_refuse_what_cannot_be():
    problem = random_problem(1)
    with pytest.raises(ValueError, match="There is no cost 'x': expected one of cost0"):
        pareto_front(problem, "x")
    with pytest.raises(ValueError, match="cross-layer terms"):
        pareto_hull(QUADRATIC["psd0"], "cost0")
    with pytest.raises(ValueError, match=r"has \d+ points after 2 of 6 groups, more than"):
        pareto_front(problem, "cost0", max_points=4)
    least, _ = problem.range("cost0")
    with pytest.raises(ValueError, match="cannot be met: the least is"):
        pareto_front(with_budgets(problem, {"cost0": 0.5 * least}), "cost0")
    front, hull = pareto_front(problem, "cost0"), pareto_hull(problem, "cost0")
    with pytest.raises(ValueError, match="The front has points 0 to"):
        front.allocation(len(front.costs))
    with pytest.raises(ValueError, match="The hull has points 0 to"):
        hull.allocation(-1)
    with pytest.raises(ValueError, match="No point of the hull costs at most"):
        hull.within(0.5 * least)


def test_a_sweep_is_a_table_of_budgets_and_solvers(tmp_path):
    problem = random_problem(3, budgets=2)
    seen = []
    budgets = [["cost0=40%"], {"cost0": 1e-9}, ["cost0=60%", "cost1=50%"]]
    solvers = {"exact": Exact(), "greedy": Greedy()}
    records = sweep(problem, budgets, solvers, progress=lambda *at: seen.append(at))
    assert seen == [(k, 6) for k in range(7)]
    assert [r["solver"] for r in records] == ["exact", "greedy"] * 3
    assert [r["status"] == "infeasible" for r in records] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert "cannot be met" in records[2]["error"]
    assert records[0]["loss"] == Exact()(with_budgets(problem, ["cost0=40%"])).loss
    assert records[4]["budget"] == "cost0=60% cost1=50%"
    assert records[0]["loss"] <= records[1]["loss"]
    write_csv(tmp_path / "sweep.csv", records)
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows if row["loss"]] == [
        r["loss"] for r in records if r["loss"] is not None
    ]
    assert rows[0]["choices"].split() == [
        c.label for c in Exact()(with_budgets(problem, ["cost0=40%"])).allocation.values()
    ]


def test_one_group_has_the_front_of_its_choices():
    problem = problem_of(np.array([[5.0, 4.0, 1.0]]), {"c": np.array([[1.0, 2.0, 3.0]])}, {})
    assert pareto_front(problem, "c").losses.tolist() == [5.0, 4.0, 1.0]
    assert pareto_hull(problem, "c").losses.tolist() == [5.0, 1.0]
