"""Refinement by measurement: the model proposes swaps, the measured loss decides."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

from jmpq.allocation import Allocation
from jmpq.journal import Journal
from jmpq.kinds import check_kinds
from jmpq.problem.problem import Problem
from jmpq.solvers.measured.loss_field import LossField
from jmpq.solvers.measured.neighbourhood import Neighbourhood
from jmpq.solvers.measured.objective_search import Measurement, Objective, scored_moves

MOST_PAIRS = 256  # swaps that are predicted for a ranking


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Refinement:
    """Result of a refinement.

    Attributes:
        allocation: Allocation of least measured loss.
        measured: Measured loss of that allocation, in the unit of the measurement.
        start: Measured loss of the first allocation.
        path: Measured losses of the first allocation and after every accepted swap.
        evaluations: Number of allocations measured, including those read from a journal.
        fresh: Number of allocations measured in this call.
        finished: Whether the proposals ran out or `patience` of them failed in a row; False if
            the evaluations ran out first.
    """

    allocation: Allocation
    measured: float
    start: float
    path: tuple[float, ...]
    evaluations: int
    fresh: int
    finished: bool


@check_kinds
def refine(
    problem: Problem,
    allocation: Allocation,
    evaluate: Measurement,
    *,
    max_evaluations: int = 200,
    patience: int = 40,
    batch: int = 8,
    least_gain: float = 0.0,
    predict: Objective | None = None,
    journal: pathlib.Path | None = None,
    progress: Callable[[int, float], None] = lambda evaluations, best: None,
) -> Refinement:
    """Improve an allocation by swaps that lower the measured loss.

    All single changes and swaps of two groups that keep every budget are ranked by predicted
    loss: the problem's own, cross-layer terms included, or `predict`. They are measured in this
    order, a batch at a time. The best of the first batch that measures below the current
    allocation is accepted, and the ranking restarts from there. No allocation is measured
    twice.

    Args:
        problem: Problem that ranks the proposals; every measured allocation meets its budgets.
        allocation: First allocation, for example a solver's answer.
        evaluate: Function from a batch of allocations to their measured losses.
        max_evaluations: Largest number of allocations measured, including the first and those
            in the journal.
        patience: Failed proposals in a row that end the search.
        batch: Number of allocations in one call of `evaluate`.
        least_gain: Least gain of an accepted swap, in the unit of the measurement; set it to
            the noise of the measurement.
        predict: Function from a table of allocations to predicted losses, in place of the
            problem's. Only the `MOST_PAIRS` swaps with the best separate effects are ranked.
        journal: Journal file, one entry per evaluation. Evaluations that it holds are not
            repeated, so an interrupted refinement resumes and a longer one extends a shorter.
        progress: Callback ``(evaluations, least measured loss)`` after every batch.

    Raises:
        ValueError: If the first allocation breaks a budget, an option makes no sense, a
            measurement is not finite, or the journal belongs to another problem.

    References:
        CASA (arXiv 2609.25916): swaps after the knapsack, accepted by measured loss.
    """
    if min(max_evaluations, patience, batch) < 1 or least_gain < 0:
        raise ValueError(
            "Refinement needs max_evaluations, patience and batch of at least 1 and a "
            f"least_gain of at least 0; got {max_evaluations}, {patience}, {batch} and "
            f"{least_gain}."
        )
    columns = problem.columns(allocation)
    if over := problem.violated(problem.evaluate(columns)[1]):
        raise ValueError(f"The first allocation breaks budget {', '.join(over)}.")
    reduced = problem.reduced(interactions=True)
    measure = _Measurements(problem, evaluate, journal, max_evaluations)
    here = reduced.collapse(columns)
    (start,) = measure([columns])
    path, failed, finished = [start], 0, False
    while not finished:
        finished, taken = True, None
        waiting: list[Int[np.ndarray, " groups"]] = []
        for proposal in _proposals(Neighbourhood(reduced), here, predict):
            waiting.append(proposal)
            if len(waiting) < min(batch, patience - failed):
                continue
            taken = _better(measure, waiting, problem.groups, path[-1] - least_gain)
            failed += len(waiting)
            waiting = []
            progress(measure.evaluations, path[-1] if taken is None else taken[1])
            if taken is not None or failed >= patience or measure.full:
                break
        if taken is None and waiting and failed < patience and not measure.full:
            taken = _better(measure, waiting, problem.groups, path[-1] - least_gain)
        if taken is not None:
            here, failed, finished = taken[0], 0, False
            path.append(taken[1])
        if measure.full:
            finished = finished and failed >= patience
            break
    return Refinement(
        allocation=problem.allocation(here[problem.groups]),
        measured=path[-1],
        start=start,
        path=tuple(path),
        evaluations=measure.evaluations,
        fresh=measure.fresh,
        finished=finished,
    )


def _proposals(
    near: Neighbourhood, columns: Int[np.ndarray, " groups"], predict: Objective | None
) -> Iterator[Int[np.ndarray, " groups"]]:
    """Neighbours within the budgets, by rising predicted loss."""
    if predict is not None:
        groups = near.reduced.groups
        moves = scored_moves(near, columns, lambda rows: predict(rows[:, groups]), MOST_PAIRS)
        yield from (near.apply(columns, taken) for taken, _ in moves)
        return
    field = LossField.of(near.reduced, columns)
    change = field.field - field.field[np.arange(len(columns)), columns][:, None]
    single = np.where(near.single_changes(columns), change, np.inf).ravel()
    options = near.promising(columns, change)
    pair = field.pair_changes(near, options, change.ravel()[options]).ravel()
    both = np.concatenate([single, pair])
    for at in np.argsort(both, kind="stable"):
        if not np.isfinite(both[at]):
            return
        if at < len(single):
            yield near.apply(columns, (int(at),))
        else:
            a, b = divmod(int(at) - len(single), len(options))
            yield near.apply(columns, (int(options[a]), int(options[b])))


def _better(
    measure: "_Measurements",
    proposals: list[Int[np.ndarray, " groups"]],
    groups: Int[np.ndarray, " layers"],
    below: float,
) -> tuple[Int[np.ndarray, " groups"], float] | None:
    """The proposal of least measured loss, if that is below a value."""
    values = measure([proposal[groups] for proposal in proposals])
    best = min(range(len(values)), key=values.__getitem__)
    return (proposals[best], values[best]) if values[best] < below else None


class _Measurements:
    """Measured losses by allocation, kept in the journal, up to the limit."""

    def __init__(
        self, problem: Problem, evaluate: Measurement, path: pathlib.Path | None, limit: int
    ) -> None:
        self.problem, self.evaluate, self.limit = problem, evaluate, limit
        choices = [choice.label for choice in problem.choices]
        work = {"refinement of": list(problem.layers), "choices": choices}
        self.journal = Journal(path, work, anew=False)
        self.known: dict[tuple[int, ...], float] = {}
        for key in self.journal.keys:
            if (entry := self.journal.get(key)) is not None:
                self.known[tuple(json.loads(key))] = float(entry.value)
        self.fresh, self.full = 0, False  # full: a measurement was refused

    @property
    def evaluations(self) -> int:
        return len(self.known)

    def __call__(self, rows: list[Int[np.ndarray, " layers"]]) -> list[float]:
        """Measured losses; +inf for allocations beyond the limit, which are not measured."""
        keys = [tuple(columns.tolist()) for columns in rows]
        asked = [key for key in dict.fromkeys(keys) if key not in self.known]
        left = max(self.limit - self.evaluations, 0)
        self.full, asked = self.full or len(asked) > left, asked[:left]
        if asked:
            allocations = [self.problem.allocation(np.array(key)) for key in asked]
            values = np.asarray(self.evaluate(allocations), dtype=np.float64)
            if values.shape != (len(asked),) or not np.isfinite(values).all():
                raise ValueError(
                    f"The evaluation must return one finite loss for each of the {len(asked)} "
                    f"allocations, got {values.tolist()}."
                )
            for key, value in zip(asked, values.tolist(), strict=True):
                self.journal.keep(json.dumps(key), value)
                self.known[key] = value
            self.fresh += len(asked)
        return [self.known.get(key, math.inf) for key in keys]
