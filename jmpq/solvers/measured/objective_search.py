"""Local search over any function that scores a batch of allocations."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.formats import FLOAT_BITS, Choice, labels
from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import Solution, solution_from_choice
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.quadratic.neighbourhood import Allocation, Neighbourhood
from jmpq.solvers.quadratic.row_bound import row_bound
from jmpq.solvers.quadratic.tabu_search import tabu_search
from jmpq.solvers.solver import Solver, check_options

Objective = Callable[[Int[np.ndarray, "allocations layers"]], Float[np.ndarray, " allocations"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSearch:
    """Tabu search that minimises a callback, from the knapsack's answer: a `Solver`.

    Superposed logits, a measured loss, or any other function of joint allocations. A step
    scores every single change in one call (also those that break a budget, which pairs may
    mend), then the pairs of changes whose separate effects promise most, and takes the best
    that holds every budget. No allocation is scored twice.

    The solution says what was minimised; its `loss`, `bound`, `gap` and `status` are those of
    the problem's own loss.

    Attributes:
        objective: Scores allocations, rows of columns of `Problem.choices`, one per layer.
        name: What it is called in the solution.
        max_evaluations: Allocations scored, all calls together.
        time_limit_s: Seconds; a call of `objective` is not interrupted.
        batch: Most allocations in one call.
        max_pairs: Pairs of changes scored in a step.
        restarts: Random kicks of the best allocation after the first walk.
        patience: Steps without a better allocation before the next kick.
        tenure: Steps for which a group may not return to a choice.
        seed: Seed of the kicks.
        start: Solves the problem without its cross-layer terms.
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

    def __call__(self, problem: Problem) -> Solution:
        """Search.

        Raises:
            Infeasible: If no allocation meets the budgets.
            ValueError: If the objective does not return one number for every allocation.
        """
        started = time.perf_counter()
        reduced = problem.reduced(interactions=True)
        cheapest = cheapest_allocation(problem, reduced)
        choice = reduced.collapse(self.start(problem.separable()).choice)
        scores = _Scores(self, reduced, started + self.time_limit_s)
        best, least = tabu_search(
            Neighbourhood(reduced),
            lambda choice: _Scored(choice, scores, self.max_pairs),
            choice,
            cheapest,
            restarts=self.restarts,
            patience=self.patience,
            tenure=self.tenure,
            seed=self.seed,
            stop=lambda: scores.exhausted,
        )
        solution = solution_from_choice(
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

    choice: Allocation
    scores: "_Scores"
    max_pairs: int

    @property
    def value(self) -> float:
        """The objective; of an allocation that a move led to it is known."""
        return float(self.scores(self.choice[None])[0])

    def best_move(
        self, near: Neighbourhood, banned: Bool[np.ndarray, " options"], below: float
    ) -> tuple[int, ...] | None:
        """The best scored move of no banned option, or that leads below a value."""
        for move, value in scored_moves(near, self.choice, self.scores, self.max_pairs):
            if value < below or not banned[list(move)].any():
                return move
        return None

    def change(self, option: int) -> None:
        """Give a group another choice."""
        group, column = divmod(option, self.scores.reduced.losses.shape[1])
        self.choice = self.choice.copy()
        self.choice[group] = column


def scored_moves(
    near: Neighbourhood,
    choice: Allocation,
    score: Callable[[Int[np.ndarray, "rows groups"]], Float[np.ndarray, " rows"]],
    max_pairs: int,
) -> list[tuple[tuple[int, ...], float]]:
    """Changes of one or two groups that hold every budget, by rising score.

    All single changes are scored, also those that break a budget; then those pairs of them,
    at most `max_pairs`, whose separate effects promise most.
    """
    here = float(score(choice[None])[0])
    singles = np.flatnonzero(near.changes(choice))
    if not len(singles):
        return []
    values = score(np.array([near.apply(choice, (int(o),)) for o in singles]))
    fits = near.single_changes(choice).ravel()[singles]
    moves: list[tuple[int, ...]] = [(int(o),) for o in singles[fits]]
    scored = values[fits].tolist()
    change = np.full(near.reduced.losses.size, np.inf)
    change[singles] = values - here
    options = near.promising(choice, change.reshape(near.reduced.losses.shape))
    promise = change[options][:, None] + change[options][None, :]
    promise = np.where(near.pairs(choice, options), promise, np.inf).ravel()
    order = np.argsort(promise, kind="stable")[:max_pairs]
    order = order[np.isfinite(promise[order])]
    pairs = [tuple(options[list(divmod(int(k), len(options)))].tolist()) for k in order]
    if pairs:
        scored += score(np.array([near.apply(choice, pair) for pair in pairs])).tolist()
        moves += pairs
    order = np.argsort(scored, kind="stable")
    return [(moves[k], scored[k]) for k in order if np.isfinite(scored[k])]


class _Scores:
    """The objective over groups, counted, limited, and never asked twice."""

    def __init__(self, search: ObjectiveSearch, reduced: Reduced, deadline: float) -> None:
        self.search, self.reduced, self.deadline = search, reduced, deadline
        self.known: dict[bytes, float] = {}

    @property
    def exhausted(self) -> bool:
        """Whether evaluations or time are used up."""
        used = len(self.known) >= self.search.max_evaluations
        return used or time.perf_counter() > self.deadline

    def __call__(
        self, choices: Int[np.ndarray, "allocations groups"]
    ) -> Float[np.ndarray, " allocations"]:
        """Scores; +inf for what is no longer asked because the limits are reached."""
        keys = [row.tobytes() for row in choices]
        new = {key: k for k, key in enumerate(keys) if key not in self.known}
        asked = list(new.values())[: self.search.max_evaluations - len(self.known)]
        for start in range(0, len(asked), self.search.batch):
            if self.known and time.perf_counter() > self.deadline:
                break
            rows = asked[start : start + self.search.batch]
            values = np.asarray(
                self.search.objective(choices[rows][:, self.reduced.groups]), dtype=np.float64
            )
            if values.shape != (len(rows),) or np.isnan(values).any():
                raise ValueError(
                    f"Objective {self.search.name!r} must return one number for each of the "
                    f"{len(rows)} allocations (+inf to forbid one), got shape {values.shape} "
                    f"with {int(np.isnan(values).sum())} NaN."
                )
            self.known |= {keys[k]: float(v) for k, v in zip(rows, values, strict=True)}
        return np.array([self.known.get(key, np.inf) for key in keys])


def columns_of(
    problem: Problem, layers: Sequence[str], choices: Sequence[Choice]
) -> Callable[[Int[np.ndarray, "allocations layers"]], Int[np.ndarray, "allocations others"]]:
    """From allocations of a problem to columns of another table of layers and choices.

    `jmpq.Superposed` and sensitivities know every layer of the network; a problem may exclude
    some, which then are unquantized.

    >>> from jmpq.problem import problem_of
    >>> problem = problem_of(np.zeros((2, 2)), {}, {}, layers=["a", "b"])  # W1 and W2
    >>> translate = columns_of(problem, ["b", "head", "a"], [Choice(2), Choice(1), Choice(32)])
    >>> translate(np.array([[0, 1]])).tolist()  # a at W1, b at W2, the head unquantized
    [[0, 2, 1]]

    Raises:
        ValueError: If the table lacks a layer or choice of the problem, or has a layer that
            the problem excludes but no unquantized choice.
    """
    if lacking := [name for name in problem.layers if name not in layers]:
        raise ValueError(
            f"The table knows no layer {lacking[0]!r}: it has {', '.join(layers)}."
        )
    if missing := [choice for choice in problem.choices if choice not in choices]:
        raise ValueError(f"The table knows no {labels(missing)}: it has {labels(choices)}.")
    excluded = [name for name in layers if name not in problem.layers]
    unquantized = Choice(FLOAT_BITS, FLOAT_BITS)
    if excluded and unquantized not in choices:
        raise ValueError(
            f"Layer {excluded[0]!r} is excluded from the problem, but the table has no "
            f"unquantized choice for it: it has {labels(choices)}."
        )
    column = np.array([list(choices).index(choice) for choice in problem.choices])
    at = np.array([list(layers).index(name) for name in problem.layers])
    default = list(choices).index(unquantized) if excluded else 0

    def translate(
        choice: Int[np.ndarray, "allocations layers"],
    ) -> Int[np.ndarray, "allocations others"]:
        out = np.full((len(choice), len(layers)), default)
        out[:, at] = column[choice]
        return out

    return translate
