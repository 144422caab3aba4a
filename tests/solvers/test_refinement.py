import json

import numpy as np
import pytest

from jmpq.problem import problem_of
from jmpq.solvers import Exact, Greedy, refine
from tests.solvers.instances import (
    QUADRATIC,
    loss_of,
    optimum,
    quadratic_problem,
    random_problem,
)


class Measured:
    """A 'measurement': another problem's loss, counted."""

    def __init__(self, problem):
        self.problem, self.batches, self.seen = problem, [], []

    def __call__(self, allocations):
        return self.table(np.array([self.problem.columns(a) for a in allocations]))

    def table(self, rows):
        self.batches.append(len(rows))
        self.seen += [tuple(row) for row in rows]
        return np.array([loss_of(self.problem, row) for row in rows])


@pytest.mark.parametrize("name", ["psd1", "tied", "forbidden", "two_budgets"])
def test_refinement_by_the_true_loss_ends_where_no_swap_helps(name):
    problem = QUADRATIC[name]
    measured = Measured(problem)
    start = Greedy()(problem.separable()).allocation
    found = refine(problem, start, measured, max_evaluations=10_000, patience=10_000)
    assert found.finished
    assert found.start == pytest.approx(loss_of(problem, problem.columns(start)))
    assert found.measured == pytest.approx(loss_of(problem, problem.columns(found.allocation)))
    assert list(found.path) == sorted(found.path, reverse=True)
    assert optimum(problem) <= found.measured + 1e-12
    assert len(set(measured.seen)) == len(measured.seen) == found.evaluations
    for row in measured.seen:
        assert not problem.violated(problem.evaluate(np.array(row))[1])
    # no single change or swap is left that measures less
    for i, c in np.ndindex(problem.losses.shape):
        for j, d in np.ndindex(problem.losses.shape):
            other = problem.columns(found.allocation)
            other[problem.groups == problem.groups[i]] = c
            other[problem.groups == problem.groups[j]] = d
            rows = np.arange(len(other))
            if problem.allowed[rows, other].all():
                loss, costs = problem.evaluate(other)
                assert problem.violated(costs) or loss >= found.measured - 1e-12


def test_a_wrong_model_is_corrected_by_measurement():
    """The model is separable, the truth has interactions."""
    gains = []
    for seed in range(4):
        truth = quadratic_problem(seed, "indefinite", layers=8)
        model = truth.separable()
        start = Greedy()(model).allocation
        found = refine(model, start, Measured(truth), max_evaluations=200, patience=100)
        gains.append(found.start - found.measured)
        assert found.evaluations <= 200
    assert min(gains) >= 0
    assert max(gains) > 0


def test_proposals_come_in_the_order_of_a_prediction_of_whole_allocations():
    truth = quadratic_problem(3, "indefinite", layers=8)
    model, measured = truth.separable(), Measured(truth)
    predict = Measured(truth).table  # a perfect one: the first proposal is the best neighbour
    start = Greedy()(model).allocation
    found = refine(
        model, start, measured, predict=predict, batch=1, patience=3, max_evaluations=60
    )
    assert found.finished
    assert len(found.path) > 2
    accepted = [loss_of(truth, row) for row in measured.seen[: len(found.path)]]
    assert list(found.path) == pytest.approx(accepted)  # no proposal failed before the end
    assert found.evaluations <= len(found.path) + 3
    for row in measured.seen:
        assert not truth.violated(truth.evaluate(np.array(row))[1])
    best = min(
        loss_of(truth, other)
        for i, c in np.ndindex(truth.losses.shape)
        for other in [np.where(np.arange(8) == i, c, truth.columns(found.allocation))]
        if not truth.violated(truth.evaluate(other)[1])
    )
    assert found.measured <= best + 1e-12


def test_evaluations_are_bounded_and_come_in_batches():
    truth = quadratic_problem(2, "indefinite", layers=8)
    measured = Measured(truth)
    found = refine(truth.separable(), Greedy()(truth.separable()).allocation, measured,
                   max_evaluations=21, patience=50, batch=5)  # fmt: skip
    assert found.evaluations == len(measured.seen) == 21
    assert max(measured.batches) <= 5
    assert not found.finished


def test_patience_counts_failures_in_a_row():
    problem = random_problem(3, layers=8)
    best = Exact()(problem)
    measured = Measured(problem)
    found = refine(problem, best.allocation, measured, patience=12, batch=5)
    assert found.finished
    assert found.path == (best.loss,)
    assert found.evaluations == 1 + 12
    first = problem.allocation(np.zeros(8, int))
    noisy = refine(problem, first, measured, least_gain=1e9)
    assert noisy.path == (noisy.start,)


def test_an_interrupted_refinement_goes_on_from_its_journal(tmp_path):
    truth = quadratic_problem(1, "indefinite", layers=8)
    model, path = truth.separable(), tmp_path / "folder" / "journal"
    start = Exact()(model).allocation
    whole = refine(model, start, Measured(truth), max_evaluations=60, patience=1000)

    class Interrupted(Measured):
        def __call__(self, allocations):
            if len(self.seen) > 20:
                raise KeyboardInterrupt
            return super().__call__(allocations)

    with pytest.raises(KeyboardInterrupt):
        refine(model, start, Interrupted(truth), max_evaluations=60, journal=path)
    with path.open("a") as file:
        file.write('{"key": "[0, 1')  # cut off in the middle of a line
    measured = Measured(truth)
    rest = refine(model, start, measured, max_evaluations=60, patience=1000, journal=path)
    assert rest.path == whole.path
    assert rest.allocation == whole.allocation
    assert rest.evaluations == whole.evaluations
    assert 0 < rest.fresh == len(measured.seen) < whole.evaluations
    again = refine(model, start, measured, max_evaluations=60, patience=1000, journal=path)
    assert again.fresh == 0
    assert again.path == whole.path
    assert len(path.read_text().splitlines()) == 1 + whole.evaluations
    (_, first, *_) = path.read_text().splitlines()
    assert json.loads(json.loads(first)["key"]) == model.columns(start).tolist()


def test_a_journal_of_something_else_is_refused(tmp_path):
    problem = random_problem(1)
    start = Greedy()(problem).allocation
    path = tmp_path / "journal"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="belongs to other work"):
        refine(problem, start, Measured(problem), journal=path)
    path.write_text("nonsense\n")
    with pytest.raises(ValueError, match="belongs to other work: choose another file"):
        refine(problem, start, Measured(problem), journal=path)


def test_what_makes_no_sense_is_refused():
    problem = random_problem(1)
    start = Greedy()(problem).allocation
    with pytest.raises(ValueError, match="Refinement needs max_evaluations, patience and"):
        refine(problem, start, Measured(problem), batch=0)
    with pytest.raises(ValueError, match="The first allocation breaks budget cost0"):
        refine(problem, problem.allocation(np.full(6, 3)), Measured(problem))
    with pytest.raises(ValueError, match=r"one finite loss for each of the 1 .* got \[nan\]"):
        refine(problem, start, lambda c: np.full(len(c), np.nan))


def test_a_problem_without_neighbours_is_measured_once():
    problem = problem_of(np.ones((2, 1)), {}, {})
    start = problem.allocation(np.zeros(2, int))
    found = refine(problem, start, Measured(problem))
    assert found.evaluations == 1
    assert found.finished
