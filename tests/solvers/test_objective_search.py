import dataclasses

import numpy as np
import pytest

from jmpq.allocation import translate_columns
from jmpq.formats import choice_grid
from jmpq.problem import Choice, problem_of
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.sensitivity.table import Move
from jmpq.solvers import Exact, Greedy, ObjectiveSearch
from tests.solvers.instances import (
    QUADRATIC,
    loss_of,
    optimum,
    quadratic_problem,
    random_problem,
)


class Counted:
    """The problem's own loss, an allocation at a time, counted."""

    def __init__(self, problem):
        self.problem, self.seen, self.largest = problem, [], 0

    def __call__(self, table):
        self.largest = max(self.largest, len(table))
        self.seen += [tuple(row) for row in table]
        return np.array([loss_of(self.problem, row) for row in table])


@pytest.mark.parametrize("name", ["psd0", "indefinite2", "tied", "forbidden", "two_budgets"])
def test_the_search_finds_the_optimum_of_a_callback(name):
    problem = QUADRATIC[name]
    objective = Counted(problem)
    solution = ObjectiveSearch(objective=objective, name="the loss")(problem)
    assert solution.objective_value == pytest.approx(optimum(problem), rel=1e-9)
    assert solution.loss == pytest.approx(solution.objective_value, rel=1e-9)
    assert solution.objective == "the loss"
    assert len(set(objective.seen)) == len(objective.seen)  # nothing is scored twice
    assert not problem.violated(solution.costs)


def test_loss_is_the_problems_whatever_was_minimised():
    problem = random_problem(3, layers=8)
    target = Greedy()(problem).columns
    target[:2] = 0

    def distance(table):
        return np.abs(table - target).sum(axis=1).astype(float)

    solution = ObjectiveSearch(objective=distance, name="distance", start=Exact())(problem)
    np.testing.assert_array_equal(solution.columns, target)
    assert solution.objective_value == 0.0
    assert solution.loss == pytest.approx(loss_of(problem, target), rel=1e-12)
    assert solution.bound <= Exact()(problem).loss < solution.loss
    assert solution.status == "feasible"
    assert Exact()(problem).objective == "loss"


def test_evaluations_batches_and_time_are_limited():
    problem = quadratic_problem(1, layers=10, choices=4)
    start = Greedy()(problem.separable()).columns
    for limit in (1, 7, 100):
        objective = Counted(problem)
        search = ObjectiveSearch(objective=objective, max_evaluations=limit, batch=16)
        solution = search(problem)
        assert len(objective.seen) <= limit
        assert objective.largest <= 16
        assert solution.objective_value <= loss_of(problem, start)
    objective = Counted(problem)
    search = ObjectiveSearch(objective=objective, time_limit_s=1e-9)
    np.testing.assert_array_equal(search(problem).columns, start)
    assert len(objective.seen) == 1


def test_an_objective_that_is_no_objective_is_refused():
    problem = QUADRATIC["psd0"]
    with pytest.raises(ValueError, match=r"'broken' must return one number .* with 1 NaN"):
        ObjectiveSearch(objective=lambda c: np.full(len(c), np.nan), name="broken")(problem)
    with pytest.raises(ValueError, match=r"each of the 1 allocations .* shape \(1, 2\)"):
        ObjectiveSearch(objective=lambda c: np.zeros((len(c), 2)).astype(float)[:, :2].reshape(
            len(c), 2))(problem)  # fmt: skip
    with pytest.raises(ValueError, match="The search needs max_evaluations, batch"):
        ObjectiveSearch(objective=lambda c: np.zeros(len(c)), batch=0)


def test_superposed_logits_are_minimised_from_the_knapsack():
    """Random logit changes; the search against the best of many random allocations."""
    rng = np.random.default_rng(0)
    names, choices = ["a", "b", "c", "d", "head"], choice_grid([2, 4, 8])
    moves = tuple(Move(name, "w", choice.w_bits) for name in names for choice in choices)
    shrink = np.array([1.0, 0.3, 0.05] * 5)[None, :, None]
    superposed = Superposed(
        layers=tuple(names),
        choices=(*choices, Choice(32)),
        moves=moves,
        logits=rng.normal(size=(16, 3)),
        changes=2 * shrink * rng.normal(size=(16, 15, 3)),
        targets=np.zeros(16, int),
    )
    alone = np.full((4, 3, 5), 3)
    alone[np.arange(4), :, np.arange(4)] = np.arange(3)
    losses = superposed.predict_columns(alone.reshape(12, 5)).reshape(4, 3)
    bits = np.array([[2.0, 4.0, 8.0]] * 4)
    problem = problem_of(
        losses, {"bits": bits}, {"bits": 17.0}, layers=names[:4], choices=choices
    )

    def translate(table):
        to = superposed.layers, superposed.choices
        return translate_columns(table, problem.layers, problem.choices, *to)

    search = ObjectiveSearch(
        objective=lambda table: superposed.predict_columns(translate(table)), name="kl"
    )
    solution = search(problem)
    every = np.stack(np.meshgrid(*[np.arange(3)] * 4, indexing="ij")).reshape(4, -1).T
    fits = bits[0][every].sum(axis=1) <= 17
    best = superposed.predict_columns(translate(every[fits])).min()
    assert solution.objective_value == pytest.approx(best, rel=1e-12)
    named = superposed.predict([solution.allocation])  # the head stays unquantized
    assert named == pytest.approx(best, rel=1e-12)


def test_kicks_find_what_one_walk_does_not():
    gains = []
    for seed in range(6):
        problem = quadratic_problem(seed, "psd", layers=12, choices=4)
        walk = ObjectiveSearch(objective=Counted(problem), restarts=0, patience=1, max_pairs=4)
        more = dataclasses.replace(walk, restarts=4, objective=Counted(problem))
        gains.append(walk(problem).objective_value - more(problem).objective_value)
    assert min(gains) >= 0
    assert max(gains) > 0
