"""The accuracy floor: bisection along the hull against trying every point."""

import math

import numpy as np
import pytest

from jmpq.solvers import cheapest_above, pareto_hull
from tests.solvers.instances import loss_of, random_problem


def hull_of(seed):
    problem = random_problem(seed, layers=12, choices=5)
    return problem, pareto_hull(problem, next(iter(problem.costs)))


@pytest.mark.parametrize("seed", range(5))
def test_the_first_point_above_the_floor_is_found_where_quality_rises(seed):
    problem, hull = hull_of(seed)
    calls = []

    def quality(allocations):
        calls.append(len(allocations))
        return np.array([-loss_of(problem, problem.columns(a)) for a in allocations])

    every = [-loss_of(problem, hull.columns(k)) for k in range(len(hull.costs))]
    assert every == sorted(every)
    for wanted in (0, 1, len(every) // 2, len(every) - 1):
        calls.clear()
        found = cheapest_above(hull, quality, every[wanted], steps=20)
        assert found.point == wanted
        assert found.cost == hull.costs[wanted]
        assert found.quality == every[wanted]
        assert found.allocation == hull.allocation(wanted)
        assert found.bracketed == (wanted > 0)
        assert len(calls) == len(found.measured) <= 2 + math.ceil(math.log2(len(every)))


def test_few_steps_end_on_a_point_that_measured_enough_above_one_that_did_not():
    problem, hull = hull_of(0)

    def quality(allocations):
        return np.array([-loss_of(problem, problem.columns(a)) for a in allocations])

    middle = float(quality([hull.allocation(len(hull.costs) // 2)])[0])
    told = []
    found = cheapest_above(
        hull, quality, middle, steps=2, progress=lambda *point: told.append(point)
    )
    known = dict(found.measured)
    assert told == list(found.measured)
    assert known[found.point] >= middle
    below = max(point for point in known if point < found.point)
    assert known[below] < middle


def test_a_limit_on_the_cost_and_noise():
    _, hull = hull_of(1)
    rng = np.random.default_rng(0)
    quality = lambda rows: rng.normal(size=len(rows))  # noqa: E731
    half = float(hull.costs[len(hull.costs) // 2])
    found = cheapest_above(hull, quality, -9.0, limit=half)
    assert found.point == 0
    for _ in range(20):
        try:
            found = cheapest_above(hull, quality, 0.0, limit=half)
        except ValueError:
            continue
        assert found.quality >= 0.0
        assert found.cost <= half


def test_what_cannot_be_is_refused():
    _, hull = hull_of(2)
    with pytest.raises(ValueError, match=r"measures 0\.5, below the floor of 0\.9\. Lower the"):
        cheapest_above(hull, lambda rows: np.array([0.5]), 0.9)
    with pytest.raises(ValueError, match=r"must return one number, got \[nan"):
        cheapest_above(hull, lambda rows: np.array([np.nan]), 0.9)
    with pytest.raises(ValueError, match="steps=0: at least one halving"):
        cheapest_above(hull, lambda rows: np.array([1.0]), 0.9, steps=0)
