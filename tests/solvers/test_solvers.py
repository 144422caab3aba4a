import dataclasses
import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmpq.formats import Choice
from jmpq.problem import Infeasible, problem_of, with_budgets
from jmpq.solvers import (
    BruteForce,
    Exact,
    Greedy,
    draw_allocations,
    lp_bound,
    random_search,
    reversed_search,
    uniform,
)
from jmpq.solvers.knapsack import integer_program as exact
from jmpq.solvers.knapsack.frontier import convex_frontiers, undominated
from jmpq.solvers.knapsack.frontier_steps import longest_prefix
from jmpq.solvers.knapsack.relaxation_bounds import lagrangian_bound
from tests.solvers.instances import SHORT, hawq_v3, optimum, published, random_problem

SEARCHES = {
    **{
        f"{start}/{criterion}/{fill}": Greedy(start=start, criterion=criterion, fill=fill)
        for start, criterion, fill in itertools.product(
            ("upgrade", "downgrade"), ("ratio", "reversed", "random"), (True, False)
        )
    },
    "upgrade/dual_prices": Greedy(weights="dual_prices"),
    "downgrade/dual_prices": Greedy(start="downgrade", weights="dual_prices"),
    "random_search": lambda problem: random_search(problem, seed=3),
    "reversed_search": reversed_search,
}
PROVEN = {"exact": Exact(), "brute_force": BruteForce()}


@functools.cache
def best_of(name):
    return optimum(SHORT[name])


def check(problem, solution, best):
    """What holds of any solution; loss and costs recomputed here from the choice."""
    rows = np.arange(len(problem.layers))
    assert problem.allowed[rows, solution.columns].all()
    for group in range(problem.groups.max() + 1):
        assert len(set(solution.columns[problem.groups == group])) == 1
    assert solution.loss == pytest.approx(
        problem.losses[rows, solution.columns].sum(), rel=1e-9
    )
    for name, limit in problem.budgets.items():
        total = problem.costs[name][rows, solution.columns].sum()
        total += problem.constants.get(name, 0.0)
        assert solution.costs[name] == pytest.approx(total, rel=1e-12)
        assert total <= limit * (1 + 1e-11)
    assert solution.bound <= best
    assert best <= solution.loss
    assert 0 <= solution.gap <= 2
    assert (solution.status == "optimal") == (solution.gap <= 1e-9)


@pytest.mark.parametrize("name", SHORT)
def test_bound_exact_and_brute_force_agree(name):
    problem, best = SHORT[name], best_of(name)
    for solve in PROVEN.values():
        solution = solve(problem)
        check(problem, solution, best)
        assert solution.loss == pytest.approx(best, rel=1e-9, abs=1e-300)
        assert solution.status == "optimal"


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", SHORT)
def test_searches_lie_between_bound_and_budget(name, search):
    check(SHORT[name], SEARCHES[search](SHORT[name]), best_of(name))


@pytest.mark.parametrize("name", SHORT)
def test_uniform_is_the_best_of_the_uniform_allocations(name):
    problem = SHORT[name]
    fitting = [
        loss
        for choice in problem.choices
        for loss, costs in [problem.evaluate(problem.uniform(choice))]
        if not problem.violated(costs)
    ]
    if fitting:
        solution = uniform(problem)
        check(problem, solution, best_of(name))
        assert solution.loss == min(fitting)
    else:
        with pytest.raises(Infeasible, match="No uniform allocation of"):
            uniform(problem)


def test_published_instances_follow_from_the_columns_of_the_notebook():
    data = hawq_v3()
    columns = {name: np.array(values) for name, values in data["notebook"].items()}
    errors = [columns[f"delta_weights_{bits}bit_square"] for bits in data["bits"]]
    bits = np.array(data["bits"])
    expected = {
        "size_MB": columns["parameters"][:, None] * bits / 8 / 1024**2,
        "bops_G": columns["bops"][:, None] * bits**2 / 1e6 / 32**2,
        "latency_ms": np.array(data["costs"]["latency_ms"]),
    }
    losses = columns["Hutchinson_trace"][:, None] * np.stack(errors, axis=1)
    np.testing.assert_allclose(data["losses"], losses, rtol=1e-12)
    for name, table in expected.items():
        np.testing.assert_allclose(data["costs"][name], table, rtol=1e-12)
    wanted = [(name, fraction) for name in expected for fraction in (0.25, 0.5, 0.75)]
    assert [(i["constraint"], i["fraction"]) for i in data["instances"]] == wanted
    for instance, (name, fraction) in zip(data["instances"], wanted, strict=True):
        low, high = expected[name].sum(axis=0)
        assert instance["budget"] == pytest.approx(low + fraction * (high - low), rel=1e-12)


def test_exact_equals_the_nine_published_assignments():
    for problem, assignment, best in published():
        solution = Exact()(problem)
        assert solution.allocation == assignment
        assert solution.loss == pytest.approx(best, rel=1e-12)
        assert solution.status == "optimal"
        np.testing.assert_array_equal(BruteForce()(problem).columns, solution.columns)
        for search in SEARCHES.values():
            check(problem, search(problem), solution.loss)


@st.composite
def tables(draw):
    layers, choices = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    values = st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 1e-9, 1e-3, 7.25, 1e4])
    table = st.lists(values, min_size=layers * choices, max_size=layers * choices)
    signs = draw(st.sampled_from([1.0, -1.0]))
    losses = signs * np.array(draw(table)).reshape(layers, choices)
    costs = {
        f"cost{k}": np.array(draw(table)).reshape(layers, choices)
        for k in range(draw(st.integers(1, 2)))
    }
    ties = [[0, layers - 1]] if layers > 2 and draw(st.booleans()) else []
    allowed = np.ones((layers, choices), dtype=bool)
    if choices > 1 and not ties:
        allowed[draw(st.integers(0, layers - 1)), draw(st.integers(0, choices - 1))] = False
    extra = draw(st.sampled_from([0.0, 1.0, 10.0]))
    return losses, costs, ties, allowed, draw(st.integers(0, choices - 1)), extra


def no_counterexample(drawn):
    losses, costs, ties, allowed, column, extra = drawn
    problem = problem_of(losses, costs, {}, ties=ties, allowed=allowed)
    within = problem.evaluate(problem.uniform(problem.choices[column]))[1]
    problem = with_budgets(problem, {name: within[name] + extra for name in costs})
    best = optimum(problem)
    for solve in (*PROVEN.values(), Greedy(), Greedy(start="downgrade")):
        check(problem, solve(problem), best)
    assert Exact()(problem).loss == pytest.approx(best, rel=1e-9, abs=1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables())
def test_no_counterexample_among_generated_problems(drawn):
    no_counterexample(drawn)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, derandomize=False)
@given(tables())
def test_no_counterexample_among_two_thousand(drawn):
    no_counterexample(drawn)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_larger_budget_never_hurts_the_exact_loss(seed):
    problem = random_problem(seed, layers=20, choices=5, budgets=2)
    losses = []
    for percent in range(0, 101, 10):
        asked = [f"cost0={percent}%", f"cost1={percent}%"]
        solution = Exact()(with_budgets(problem, asked))
        losses.append(solution.loss)
    assert all(a >= b for a, b in itertools.pairwise(losses))
    assert losses[-1] == pytest.approx(problem.losses.min(axis=1).sum(), rel=1e-12)


@pytest.mark.parametrize("solve", [Exact(), Greedy(), Greedy(start="downgrade"), BruteForce()])
def test_permuted_layers_give_the_permuted_answer(solve):
    problem = random_problem(4, layers=8, choices=3)
    order = np.random.default_rng(0).permutation(8)
    permuted = problem_of(
        problem.losses[order],
        {name: table[order] for name, table in problem.costs.items()},
        problem.budgets,
    )
    want, got = solve(problem), solve(permuted)
    np.testing.assert_array_equal(got.columns, want.columns[order])
    assert got.loss == want.loss


def test_exact_closes_instances_beyond_brute_force():
    problem = random_problem(11, layers=120, choices=8, budgets=2, integer=True)
    solution, greedy = Exact()(problem), Greedy()(problem)
    assert solution.status == "optimal"
    assert greedy.bound <= solution.loss <= greedy.loss
    np.testing.assert_array_equal(Exact()(problem).columns, solution.columns)


def test_out_of_time_is_feasible_with_a_real_bound():
    problem = random_problem(11, layers=120, choices=8, budgets=2, integer=True)
    best = Exact()(problem).loss
    solution = Exact(time_limit_s=1e-6)(problem)
    assert solution.status == "feasible"
    assert -np.inf < solution.bound <= best < solution.loss
    loose = Exact(relative_gap=0.5)(problem)
    assert loose.bound <= best <= loose.loss


def test_a_stop_of_the_mixed_integer_solver_is_mapped_case_by_case():
    rng = np.random.default_rng(0)
    weights = rng.integers(10**6, 10**7, (400, 1)) * np.array([1, 2, 3, 5, 8])
    losses = -(weights + rng.integers(0, 99, weights.shape)).astype(float)
    problem = with_budgets(
        problem_of(losses, {"cost": weights.astype(float)}, {}), ["cost=37%"]
    )
    solution = Exact(time_limit_s=0.5)(problem)
    assert solution.bound <= solution.loss <= Greedy()(problem).loss
    assert (solution.status == "optimal") == (solution.gap <= 1e-9)


def test_an_answer_within_tolerance_only_is_cut_off(monkeypatch):
    """Costs whose differences drown in the solver's tolerance: the budget holds exactly."""
    cuts = []
    make = exact._Program.cut
    monkeypatch.setattr(exact._Program, "cut", lambda *args: cuts.append(args) or make(*args))
    base = 10.0**12
    losses = np.array([[3.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    costs = np.array([[0, 2 * base + 1], [0, base], [0, base + 1]])
    problem = problem_of(losses, {"cost": costs}, {"cost": 3 * base})
    solution = Exact()(problem)
    assert solution.loss == optimum(problem) == 3.0
    assert not problem.violated(solution.costs)
    assert cuts


def test_infeasible_budgets_are_told_alone_and_together():
    problem = random_problem(3)
    least, most = problem.range("cost0")
    for solve in (*PROVEN.values(), *SEARCHES.values(), uniform):
        with pytest.raises(Infeasible, match=r"Budget cost0=.* cannot be met") as error:
            solve(with_budgets(problem, {"cost0": 0.9 * least}))
        assert error.value.ranges == {"cost0": (least, most)}
        assert set(error.value.cheapest["cost0"]) == set(problem.layers)
    opposed = SHORT["opposed_costs"]
    free = {**opposed.costs, "c": np.ones((4, 3))}
    opposed = dataclasses.replace(opposed, costs=free, budgets={"a": 8.0, "b": 8.0, "c": 4.0})
    for solve in (*PROVEN.values(), *SEARCHES.values(), uniform):
        with pytest.raises(
            Infeasible, match=r"a=8, b=8 can each be met but not toget"
        ) as error:
            solve(opposed)
        assert error.value.budgets == {"a": 8.0, "b": 8.0}
        assert "with the others held, a is at least 16" in str(error.value)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="4096 allocations are more than brute force may try"):
        BruteForce(max_allocations=4095)(random_problem(0))
    with pytest.raises(ValueError, match="Multipliers must be finite and not negative"):
        lagrangian_bound(random_problem(0).reduced(), np.array([-1.0]))


def test_a_failure_of_the_mixed_integer_solver_is_an_error(monkeypatch):
    import cvxpy

    def fail(*_, **__):
        raise cvxpy.SolverError("out of memory")

    monkeypatch.setattr(cvxpy.Problem, "solve", fail)
    with pytest.raises(RuntimeError, match="HIGHS failed on the integer program: out of mem"):
        Exact()(random_problem(3, layers=20, choices=5, budgets=2))


@pytest.mark.parametrize("seed", range(5))
def test_random_multipliers_bound_the_loss(seed):
    problem = random_problem(seed, budgets=2)
    reduced, best = problem.reduced(), optimum(problem)
    draws = np.random.default_rng(seed).lognormal(-3, 3, (50, 2))
    assert all(lagrangian_bound(reduced, row) <= best for row in draws)
    bound, multipliers = lp_bound(reduced)
    assert bound == lagrangian_bound(reduced, multipliers)
    assert bound >= max(lagrangian_bound(reduced, row) for row in draws) - 1e-9 * abs(best)


def test_lp_bound_of_one_budget_is_the_linear_program():
    from scipy import optimize

    reduced = random_problem(2, layers=10, choices=5).reduced()
    groups = np.kron(np.eye(10), np.ones(5))
    program = optimize.linprog(
        reduced.losses.ravel(),
        A_ub=reduced.costs.reshape(1, -1),
        b_ub=reduced.limits,
        A_eq=groups,
        b_eq=np.ones(10),
    )
    assert lp_bound(reduced)[0] == pytest.approx(program.fun, rel=1e-9)


def test_frontier_holds_the_hull_and_no_dominated_choice():
    losses = np.array([[5.0, 5.0, 3.0, 3.5, 1.0, 1.0]])
    costs = np.array([[1.0, 1.0, 2.0, 3.0, 4.0, 9.0]])
    problem = problem_of(losses, {"cost": costs}, {"cost": 9.0})
    keep = undominated(problem.reduced())
    assert np.flatnonzero(keep[0]).tolist() == [0, 2, 4]
    assert convex_frontiers(losses, costs).tolist() == [[0, 2, 4]]


@pytest.mark.parametrize("groups", [1, 2, 4097])
def test_frontiers_leave_the_tables_as_they_are(groups):
    losses = np.tile([[5.0, 4.0, 1.0]], (groups, 1))
    costs = np.tile([[1.0, 2.0, 3.0]], (groups, 1))
    assert convex_frontiers(losses, costs).tolist() == [[0, 2]] * groups
    assert (losses == [5.0, 4.0, 1.0]).all()
    assert (costs == [1.0, 2.0, 3.0]).all()


@pytest.mark.parametrize("seed", range(4))
def test_frontiers_are_the_lower_hull_of_each_group(seed):
    """Against SciPy's convex hull, with ties and choices that are not allowed."""
    from scipy import spatial

    rng = np.random.default_rng(seed)
    losses = rng.integers(0, 9, (200, 6)) + np.where(rng.random((200, 6)) < 0.2, np.inf, 0.0)
    costs = rng.integers(0, 9, (200, 6)).astype(float)
    losses[:, 0] = np.minimum(losses[:, 0], 4.0)
    for loss, cost, found in zip(losses, costs, convex_frontiers(losses, costs), strict=True):
        points = np.stack([cost, loss], axis=1)[np.isfinite(loss)]
        far = [[99.0, points[:, 1].min()], [points[:, 0].min(), 99.0], [99.0, 99.0]]
        hull = np.concatenate([points, far])
        corners = {tuple(hull[k]) for k in spatial.ConvexHull(hull).vertices}
        inside = sorted(corners - {tuple(corner) for corner in far})
        assert [(cost[k], loss[k]) for k in found if k >= 0] == inside


def hull_of(loss, cost):
    """Columns on one lower hull: drop, round by round, what is not below its neighbours."""
    kept = []
    for k in sorted(np.flatnonzero(np.isfinite(loss)), key=lambda k: (cost[k], loss[k], k)):
        if not kept or loss[k] < loss[kept[-1]]:
            kept.append(k)
    while True:
        saved, added = -np.diff(loss[kept]), np.diff(cost[kept])
        below = saved[:-1] * added[1:] > saved[1:] * added[:-1]
        if below.all():
            return kept
        kept = [kept[0], *np.array(kept[1:-1])[below], kept[-1]]


@pytest.mark.parametrize("seed", range(4))
def test_frontiers_of_many_groups_are_those_of_each_by_itself(seed):
    """Ties, points on a line up to rounding, choices that are not allowed: to the last bit."""
    rng = np.random.default_rng(seed)
    losses = np.concatenate(
        [
            rng.integers(0, 9, (2000, 6)).astype(float),
            rng.lognormal(0, 2, (2000, 6)) * 4.0 ** -np.arange(6),
            np.linspace(1, 0, 6)
            * rng.uniform(0.1, 1, (2000, 1)),  # products differ by rounding
        ]
    )
    costs = np.concatenate(
        [
            rng.integers(0, 9, (2000, 6)).astype(float),
            rng.integers(1, 1000, (2000, 1)) * np.arange(1, 7),
            np.linspace(0, 1, 6) * rng.uniform(0.1, 1, (2000, 1)),
        ]
    )
    losses = np.where(rng.random(losses.shape) < 0.1, np.inf, losses)
    losses[:, 0] = np.minimum(losses[:, 0], 9.0)
    for loss, cost, row in zip(losses, costs, convex_frontiers(losses, costs), strict=True):
        assert [column for column in row if column >= 0] == hull_of(loss, cost)


def test_the_criterion_orders_the_upgrades():
    problem = problem_of(
        np.array([[9.0, 1.0], [5.0, 4.0]]),
        {"cost": np.array([[0.0, 1.0], [0.0, 1.0]])},
        {"cost": 1.0},
    )
    assert Greedy()(problem).columns.tolist() == [1, 0]
    assert reversed_search(problem).columns.tolist() == [0, 1]
    seen = {tuple(random_search(problem, seed=seed).columns) for seed in range(20)}
    assert seen == {(1, 0), (0, 1)}
    names = [Greedy(start=s)(problem).solver for s in ("upgrade", "downgrade")]
    assert names == ["greedy", "greedy/downgrade"]


def test_random_search_depends_on_its_seed_alone():
    problem = random_problem(2, layers=12)
    first = random_search(problem, seed=1).columns
    np.testing.assert_array_equal(first, random_search(problem, seed=1).columns)
    assert any((random_search(problem, seed=s).columns != first).any() for s in range(2, 6))


def test_random_search_spends_the_budget_whatever_the_losses_say():
    costs = {"cost": np.array([[0.0, 1.0, 2.0]] * 3), "other": np.ones((3, 3))}
    problem = problem_of(np.array([[0.0, 1.0, 2.0]] * 3), costs, {"cost": 4.0})
    found = [random_search(problem, seed=seed) for seed in range(20)]
    assert {s.costs["cost"] for s in found} == {4.0}
    assert {tuple(sorted(s.columns.tolist())) for s in found} == {(0, 2, 2), (1, 1, 2)}
    assert all(s.loss == 4.0 and s.bound == 0.0 for s in found)


def test_drawn_allocations_follow_the_rules():
    problem = SHORT["forbidden"]
    drawn = draw_allocations(problem, 500, seed=0)
    assert drawn.shape == (500, 3)
    for row in drawn:
        problem.evaluate(row)
    assert len(np.unique(drawn, axis=0)) == 8
    tied = SHORT["tied"]
    for row in draw_allocations(tied, 20, seed=1):
        tied.evaluate(row)
    np.testing.assert_array_equal(drawn, draw_allocations(problem, 500, seed=0))


def test_solvers_import_neither_jax_nor_cvxpy():
    code = (
        "import sys, jmpq.solvers; "
        "print([m for m in ('jax', 'cvxpy', 'scipy', 'flax') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_choices_are_those_of_the_problem():
    problem = random_problem(0, choices=2)
    assert problem.choices == (Choice(1), Choice(2))


@pytest.mark.parametrize("kind", ["spread", "equal", "few_keys", "heavy", "all", "none"])
def test_the_steps_that_a_budget_pays_for_are_those_of_a_full_sort(kind):
    rng = np.random.default_rng(1)
    count, budgets = 60_000, 2
    change = rng.integers(0, 1000, (budgets, count)).astype(float)
    priority = rng.lognormal(0, 2, count)
    if kind == "equal":
        priority = np.ones(count)
    elif kind == "few_keys":
        priority = rng.integers(0, 3, count).astype(float)
    elif kind == "heavy":
        change[:, ::1000] *= 1e6
    share = {"all": 1.0, "none": 0.0}.get(kind, 0.4)
    room = np.floor(share * change.sum(axis=1)) - (1 if kind == "none" else 0)
    order = np.argsort(-priority, kind="stable")
    fits = (np.cumsum(change[:, order], axis=1) <= room[:, None]).all(axis=0)
    want = np.sort(order[: count if fits.all() else int(np.argmin(fits))])
    np.testing.assert_array_equal(np.flatnonzero(longest_prefix(priority, change, room)), want)
