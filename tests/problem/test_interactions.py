import dataclasses
import itertools

import numpy as np
import pytest

from jmpq.formats import Choice
from jmpq.problem import (
    Exclude,
    Overhead,
    Pin,
    build_problem,
    problem_of,
    solution_from_columns,
)
from jmpq.problem.interactions import least_with_interactions
from jmpq.quantizers.spec import KernelSpec
from jmpq.sensitivity.table import Move, Sensitivity
from tests.problem.tables import LAYERS, NAMES, losses_of
from tests.solvers.instances import QUADRATIC, loss_of, quadratic_problem

EVERY = np.arange(3)


def sensitivity(names, seed=0, bits=(2, 4, 8)):
    """A second-order matrix of weight moves, losses its halved diagonal."""
    rng = np.random.default_rng(seed)
    moves = tuple(Move(name, "w", b) for name in names for b in bits)
    factor = rng.normal(size=(len(moves), 5))
    second = factor @ factor.T
    return Sensitivity(
        metric="gauss_newton",
        unit="nats per example",
        layers=tuple(names),
        choices=tuple(Choice(b) for b in bits),
        moves=moves,
        first=np.zeros(len(moves)),
        second=second,
        batch_first=np.zeros((1, len(names), len(bits))),
        batch_second=0.5 * np.diag(second).reshape(1, len(names), len(bits)),
        batch_examples=np.array([4.0]),
    )


def allocations(problem):
    for picks in itertools.product(range(len(problem.choices)), repeat=len(problem.layers)):
        columns = np.array(picks)
        try:
            yield columns, problem.evaluate(columns)[0]
        except ValueError:  # not allowed, or tied layers differ
            continue


@pytest.mark.parametrize("name", ["psd0", "tied", "forbidden"])
def test_loss_counts_every_pair_of_layers_once_and_groups_keep_it(name):
    problem = QUADRATIC[name]
    reduced = problem.reduced(interactions=True)
    first = np.unique(problem.groups, return_index=True)[1]
    values = list(allocations(problem))
    assert len(values) > 20
    for columns, loss in values:
        assert loss == pytest.approx(loss_of(problem, columns), rel=1e-12)
        rows, own = np.arange(len(first)), columns[first]
        taken = reduced.interactions[rows, own][:, rows, own]
        again = reduced.losses[rows, own].sum() + 0.5 * taken.sum()
        assert again == pytest.approx(loss, rel=1e-12, abs=1e-12)
    least = least_with_interactions(problem.losses, problem.allowed, problem.interactions)
    assert least <= min(loss for _, loss in values)
    assert not reduced.interactions[rows, :, rows].any()


def test_a_built_problem_predicts_what_the_sensitivity_predicts():
    found = sensitivity(NAMES[::-1])
    rules = [Exclude("head"), Pin("stem/conv", Choice(8))]
    problem = build_problem(
        LAYERS,
        found,
        overhead=Overhead.of(LAYERS, KernelSpec()),
        rules=rules,
        choices=(Choice(8), Choice(2)),
        interactions=True,
    )
    full = dataclasses.replace(found, second=found.second.copy())
    out = [m for m, move in enumerate(full.moves) if move.layer == "head"]
    full.second[out] = full.second[:, out] = 0.0  # an excluded layer makes no move
    full.batch_second[:, 0] = 0.0
    for drawn, loss in allocations(problem):
        columns = np.zeros(5, int)
        for layer, taken in problem.allocation(drawn).items():
            columns[full.layers.index(layer)] = full.choices.index(taken)
        want = full.predict_columns(columns[None], interactions=True)[0]
        assert loss == pytest.approx(want, rel=1e-12)


def test_interactions_are_refused_where_there_are_none():
    options = {"overhead": Overhead.of(LAYERS, KernelSpec()), "interactions": True}
    with pytest.raises(ValueError, match="has no cross-layer terms: compute a metric"):
        build_problem(LAYERS, losses_of(), **options)
    found = sensitivity(NAMES)
    diagonal = dataclasses.replace(found, second=np.diag(found.second))
    with pytest.raises(ValueError, match="has no cross-layer terms: compute a metric"):
        build_problem(LAYERS, diagonal, **options)


def broken(change, **fields):
    problem = quadratic_problem(0, layers=3)
    interactions = problem.interactions.copy()
    change(interactions)
    return dataclasses.replace(problem, interactions=interactions, **fields)


def test_wrong_interactions_are_refused_by_the_names_of_the_layers():
    with pytest.raises(ValueError, match=r"shape \(2, 3, 2, 3\): expected .* = \(3, 3, 3, 3\)"):
        dataclasses.replace(quadratic_problem(0, layers=3), interactions=np.zeros((2, 3, 2, 3)))

    def infinite(table):
        table[1, 0, 2, 1] = table[2, 1, 1, 0] = np.inf

    with pytest.raises(ValueError, match="'layer1' at W1 with 'layer2' at W2: inf must be fin"):
        broken(infinite)

    def skewed(table):
        table[1, 0, 2, 1] = 7.0

    with pytest.raises(ValueError, match=r"'layer1' at W1 with 'layer2' at W2: 7.0 differs"):
        broken(skewed)

    def own(table):
        table[1, 0, 1, 0] = 3.0

    with pytest.raises(ValueError, match=r"'layer1' at W1 with 'layer1' at W1: 3.0, but a lay"):
        broken(own)


def test_entries_that_are_not_allowed_may_be_anything():
    allowed = np.ones((3, 3), dtype=bool)
    allowed[1, 0] = False

    def spoil(table):
        table[1, 0] = np.nan

    problem = broken(spoil, allowed=allowed)
    want = quadratic_problem(0, layers=3)
    columns = np.array([0, 1, 0])
    assert problem.evaluate(columns)[0] == want.evaluate(columns)[0]
    assert np.isfinite(problem.reduced(interactions=True).interactions).all()
    solution = solution_from_columns(problem, columns, bound=-np.inf, solver="", wall_s=0.0)
    assert -np.inf < solution.bound <= solution.loss


def test_the_gap_is_measured_on_the_larger_of_loss_and_bound():
    interactions = np.zeros((2, 1, 2, 1))
    interactions[0, 0, 1, 0] = interactions[1, 0, 0, 0] = -4.0
    problem = problem_of(np.ones((2, 1)), {}, {}, interactions=interactions)
    solution = solution_from_columns(
        problem, np.zeros(2, int), bound=-np.inf, solver="", wall_s=0.0
    )
    assert solution.loss == -2.0  # one choice: the trivial bound is tight up to rounding
    assert solution.bound == pytest.approx(-2.0, rel=1e-12)
    assert solution.status == "optimal"
