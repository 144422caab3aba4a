"""Local search over any function that scores a batch of allocations."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.allocation import Allocation
from jmpq.kinds import check_kinds
from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.measured.neighbourhood import Neighbourhood
from jmpq.solvers.measured.tabu_walks import tabu_search
from jmpq.solvers.quadratic.priced_walk import Columns
from jmpq.solvers.quadratic.row_bound import row_bound
from jmpq.solvers.solver import Solver, check_options


@runtime_checkable
class Objective(Protocol):
    """Function that scores allocations in the inner loop of a search; less is better.

    It takes a table with one allocation per row: a column of `Problem.choices` for every layer,
    as `Problem.columns` gives it. A joint predictor's `predict_columns` qualifies. If its
    layers or choices differ from the problem's, translate the table first
    (`jmpq.allocation.translate_columns`).
    """

    def __call__(
        self, table: Int[np.ndarray, "allocations layers"], /
    ) -> Float[np.ndarray, " allocations"]: ...


@runtime_checkable
class Measurement(Protocol):
    """Function that measures allocations given by name, for slow measurements."""

    def __call__(
        self, allocations: Sequence[Allocation], /
    ) -> Float[np.ndarray, " allocations"]: ...


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSearch:
    """Tabu search that minimises an objective, from the knapsack's answer: a `Solver`.

    The objective is any fast function of joint allocations, such as superposed logits. A step
    scores every single change in one call, including changes that break a budget. It then
    scores the pairs of changes with the best separate effects and takes the best move that
    keeps every budget. No allocation is scored twice.

    The solution names the objective. Its `loss`, `bound`, `gap` and `status` refer to the
    problem's own loss.

    Attributes:
        objective: Function that scores tables of allocations (`Objective`).
        name: Name of the objective in the solution.
        max_evaluations: Largest number of allocations scored, over all calls.
        time_limit_s: Seconds; a call of `objective` is not interrupted.
        batch: Largest number of allocations in one call.
        max_pairs: Pairs of changes scored in a step.
        restarts: Random kicks of the best allocation after the first walk.
        patience: Steps without a better allocation before the next kick.
        tenure: Steps for which a group may not return to a choice.
        seed: Seed of the kicks.
        start: Solver of the problem without cross-layer terms, for the first allocation.

    References:
        Glover, Laguna (1997), Tabu search.
    """

    objective: Objective
    name: str = "objective"
    max_evaluations: int = 20_000
    time_limit_s: float = 60.0
    batch: int = 1024
    max_pairs: int = 256
    restarts: int = 3
    patience: int = 8
    tenure: int = 6
    seed: int = 0
    start: Solver = dataclasses.field(default_factory=Greedy)

    def __post_init__(self) -> None:
        counts = ("max_evaluations", "batch", "max_pairs", "patience", "tenure")
        check_options(self, above_0=("time_limit_s",), from_0=("restarts",), from_1=counts)

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Search.

        Raises:
            Infeasible: If no allocation meets the budgets.
            ValueError: If the objective does not return one number per allocation.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        cheapest = cheapest_allocation(problem, reduced)
        columns = reduced.collapse(self.start(problem.separable()).columns)
        scores = _Scores(self, reduced, started + self.time_limit_s)
        best, least = tabu_search(
            Neighbourhood(reduced),
            lambda columns: _Scored(columns, scores, self.max_pairs),
            columns,
            cheapest,
            restarts=self.restarts,
            patience=self.patience,
            tenure=self.tenure,
            seed=self.seed,
            stop=lambda: scores.exhausted,
        )
        solution = solution_from_columns(
            problem,
            reduced.expand(best),
            bound=row_bound(reduced),
            solver="objective_search",
            wall_s=time.perf_counter() - started,
        )
        return dataclasses.replace(solution, objective=self.name, objective_value=least)


@dataclasses.dataclass(eq=False)
class _Scored:
    """A `Walker` on the objective."""

    columns: Columns
    scores: "_Scores"
    max_pairs: int

    @property
    def value(self) -> float:
        """The objective of the current allocation."""
        return float(self.scores(self.columns[None])[0])

    def best_move(
        self, near: Neighbourhood, banned: Bool[np.ndarray, " options"], below: float
    ) -> tuple[int, ...] | None:
        """The best scored move without banned options, or one that leads below a value."""
        for move, value in scored_moves(near, self.columns, self.scores, self.max_pairs):
            if value < below or not banned[list(move)].any():
                return move
        return None

    def change(self, option: int) -> None:
        """Give a group another choice."""
        group, column = divmod(option, self.scores.reduced.losses.shape[1])
        self.columns = self.columns.copy()
        self.columns[group] = column


def scored_moves(
    near: Neighbourhood,
    columns: Columns,
    score: Callable[[Int[np.ndarray, "rows groups"]], Float[np.ndarray, " rows"]],
    max_pairs: int,
) -> list[tuple[tuple[int, ...], float]]:
    """Changes of one or two groups that keep every budget, by rising score.

    All single changes are scored, including those that break a budget; then at most `max_pairs`
    pairs of them, by the sum of their separate effects.
    """
    here = float(score(columns[None])[0])
    singles = np.flatnonzero(near.changes(columns))
    if not len(singles):
        return []
    values = score(np.array([near.apply(columns, (int(o),)) for o in singles]))
    fits = near.single_changes(columns).ravel()[singles]
    moves: list[tuple[int, ...]] = [(int(o),) for o in singles[fits]]
    scored = values[fits].tolist()
    change = np.full(near.reduced.losses.size, np.inf)
    change[singles] = values - here
    options = near.promising(columns, change.reshape(near.reduced.losses.shape))
    promise = change[options][:, None] + change[options][None, :]
    promise = np.where(near.pairs(columns, options), promise, np.inf).ravel()
    order = np.argsort(promise, kind="stable")[:max_pairs]
    order = order[np.isfinite(promise[order])]
    pairs = [tuple(options[list(divmod(int(k), len(options)))].tolist()) for k in order]
    if pairs:
        scored += score(np.array([near.apply(columns, pair) for pair in pairs])).tolist()
        moves += pairs
    order = np.argsort(scored, kind="stable")
    return [(moves[k], scored[k]) for k in order if np.isfinite(scored[k])]


class _Scores:
    """The objective over groups, cached, with a limit on evaluations."""

    def __init__(self, search: ObjectiveSearch, reduced: Reduced, deadline: float) -> None:
        self.search, self.reduced, self.deadline = search, reduced, deadline
        self.known: dict[bytes, float] = {}

    @property
    def exhausted(self) -> bool:
        """Whether evaluations or time are used up."""
        used = len(self.known) >= self.search.max_evaluations
        return used or time.perf_counter() > self.deadline

    def __call__(
        self, table: Int[np.ndarray, "allocations groups"]
    ) -> Float[np.ndarray, " allocations"]:
        """Scores; +inf for allocations beyond the limits, which are not scored."""
        keys = [row.tobytes() for row in table]
        new = {key: k for k, key in enumerate(keys) if key not in self.known}
        asked = list(new.values())[: self.search.max_evaluations - len(self.known)]
        for start in range(0, len(asked), self.search.batch):
            if self.known and time.perf_counter() > self.deadline:
                break
            rows = asked[start : start + self.search.batch]
            values = np.asarray(
                self.search.objective(table[rows][:, self.reduced.groups]), dtype=np.float64
            )
            if values.shape != (len(rows),) or np.isnan(values).any():
                raise ValueError(
                    f"Objective {self.search.name!r} must return one number for each of the "
                    f"{len(rows)} allocations (+inf to forbid one), got shape {values.shape} "
                    f"with {int(np.isnan(values).sum())} NaN."
                )
            self.known |= {keys[k]: float(v) for k, v in zip(rows, values, strict=True)}
        return np.array([self.known.get(key, np.inf) for key in keys])
