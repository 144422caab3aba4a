"""The paper's greedy search, with its variants, and the bound of the linear relaxation."""

import dataclasses
import time
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation, combined_costs
from jmpq.solvers.knapsack.frontier import convex_frontiers
from jmpq.solvers.knapsack.frontier_steps import (
    Steps,
    downgrades,
    frontier_ends,
    longest_prefix,
    upgrades,
)
from jmpq.solvers.knapsack.relaxation_bounds import (
    BreakSolution,
    best_bound,
    linear_relaxation,
    lp_bound,
)

_ROUNDS = 20  # of steps taken all at once; the rest, few by then, one by one

Criterion = Literal["ratio", "reversed", "random"]
Weights = Literal["room", "dual_prices"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """Greedy search along every layer's convex frontier: a `Solver`.

    Dominated and LP-dominated choices are filtered first; then single steps along the
    frontiers are taken in the order of loss change per cost. With several budgets the cost
    of a step is a weighted sum of its costs (`weights`); every budget is checked on its own.
    Equal steps are taken in the order of the layers, so the answer is deterministic.

    Attributes:
        start: ``upgrade`` from the cheapest allocation while the budgets last, or
            ``downgrade`` from the least loss until they are met.
        criterion: ``ratio`` is the paper's: upgrades that save most loss per cost first,
            downgrades that add least. ``reversed`` takes the opposite order, ``random`` one
            drawn from `seed` (the paper's ablation).
        weights: With several budgets, ``room`` counts each cost in units of what its budget
            leaves above the cheapest allocation, as the paper's ratio would. ``dual_prices``
            weighs it by its budget's dual value in the linear relaxation, the best of the
            efficiency measures that Puchinger, Raidl, Pferschy compare: steps before the
            break then are those of the relaxation. No difference with one budget.
        seed: For ``random``.
        fill: Go on past a step that does not fit (and upgrade again after a downgrade);
            where False, stop there.

    References:
        Chen, Wang, Cheng (2021), Towards Mixed-Precision Quantization of Neural Networks via
        Constrained Optimization, Algorithm 1 and Proposition 1. Puchinger, Raidl, Pferschy
        (2010), The multidimensional knapsack problem: structure and algorithms, INFORMS
        Journal on Computing 22, 250-265.
    """

    start: Literal["upgrade", "downgrade"] = "upgrade"
    criterion: Criterion = "ratio"
    weights: Weights = "room"
    seed: int = 0
    fill: bool = True

    def __call__(self, problem: Problem) -> Solution:
        """Search; the bound is the linear relaxation's, whatever the criterion.

        Raises:
            Infeasible: If no allocation meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced()
        columns, at_break = cheapest_allocation(problem, reduced), None
        if len(reduced.limits) == 1:
            price = combined_costs(reduced)
            frontiers = convex_frontiers(reduced.losses, price)
            columns = frontiers[:, 0]
            steps = upgrades(reduced, frontiers, columns)
            at_break = linear_relaxation(reduced, columns, steps)  # its frontiers are these
            bound = best_bound(reduced, [np.array([at_break.slope])])[0]
        else:
            bound, multipliers = lp_bound(reduced)
            dual = self.weights == "dual_prices" and multipliers.any()
            price = combined_costs(reduced, multipliers if dual else None)
            frontiers = convex_frontiers(reduced.losses, price)
            if reduced.fits(frontiers[:, 0]):
                columns = frontiers[:, 0]
            steps = upgrades(reduced, frontiers, columns)
        if self.start == "downgrade":
            columns = self._downgrade(reduced, price, frontiers, columns)
            steps, at_break = upgrades(reduced, frontiers, columns), None
        if self.start == "upgrade" or self.fill:
            columns = self._upgrade(reduced, price, steps, columns, at_break)
        name = "greedy" if self.criterion == "ratio" else self.criterion
        name += "/dual_prices" if self.weights == "dual_prices" else ""
        return solution_from_columns(
            problem,
            reduced.expand(columns),
            bound=bound,
            solver=name if self.start == "upgrade" else f"{name}/downgrade",
            wall_s=time.perf_counter() - started,
        )

    def _upgrade(
        self,
        reduced: Reduced,
        price: Float[np.ndarray, "groups choices"],
        steps: Steps,
        columns: Int[np.ndarray, " groups"],
        at_break: BreakSolution | None,
    ) -> Int[np.ndarray, " groups"]:
        """Take steps that save loss until none fits (`fill`) or one does not.

        By the ratio under one budget, the steps before the break are those of the relaxation.
        """
        if at_break and self.criterion == "ratio":
            order, first = at_break.priority, at_break.taken
            return upgrade(reduced, steps, order, columns, fill=self.fill, first=first)
        saved, added = steps.saved(reduced.losses), -steps.saved(price)
        with np.errstate(divide="ignore", over="ignore"):
            ratio = np.where(added > 0, saved / added, np.inf)
        priority = steps.priority(self._order(steps, ratio))
        return upgrade(reduced, steps, priority, columns, fill=self.fill)

    def _downgrade(
        self,
        reduced: Reduced,
        price: Float[np.ndarray, "groups choices"],
        frontiers: Int[np.ndarray, "groups vertices"],
        cheapest: Int[np.ndarray, " groups"],
    ) -> Int[np.ndarray, " groups"]:
        """Take steps that save cost until every budget is met; `cheapest` if none does."""
        steps, columns = downgrades(reduced, frontiers), frontier_ends(frontiers)
        added, saved = -steps.saved(reduced.losses), steps.saved(price)
        priority = steps.priority(self._order(steps, -added / saved))
        order = np.argsort(-priority, kind="stable")
        used = reduced.used(columns)[:, None] + np.cumsum(steps.change[:, order], axis=1)
        met = np.atleast_1d((used <= reduced.limits[:, None]).all(axis=0))
        count = 0 if reduced.fits(columns) else int(met.argmax()) + 1 if met.any() else len(met)
        columns[steps.group[order[:count]]] = steps.after[order[:count]]  # the last step stays
        for step in order[count:]:
            if reduced.fits(columns):  # by exact sums
                return columns
            columns[steps.group[step]] = steps.after[step]
        return columns if reduced.fits(columns) else cheapest

    def _order(
        self, steps: Steps, ratio: Float[np.ndarray, " steps"]
    ) -> Float[np.ndarray, " steps"]:
        """The steps' place by the criterion, the highest first."""
        if self.criterion == "random":
            size = (int(steps.group.max(initial=-1)) + 1, int(steps.after.max(initial=-1)) + 1)
            draws = np.random.default_rng(self.seed).random(size)
            return draws[steps.group, steps.after]
        return -ratio if self.criterion == "reversed" else ratio


def upgrade(
    reduced: Reduced,
    steps: Steps,
    priority: Float[np.ndarray, " steps"],
    columns: Int[np.ndarray, " groups"],
    *,
    fill: bool,
    first: Bool[np.ndarray, " steps"] | None = None,
) -> Int[np.ndarray, " groups"]:
    """Take the steps of highest priority while the budgets last.

    Args:
        reduced: The problem.
        steps: Steps from `columns`.
        priority: Their order, never rising within a group; equal steps in their order.
        columns: Where to start: within the budgets.
        fill: Go on past a step that does not fit, without the later ones of its group.
        first: The steps before the first that does not fit, where they are known.
    """
    used, taken = reduced.used(columns), np.zeros(len(priority), dtype=bool)
    left = np.arange(len(priority))
    monotone = not (steps.change < 0).any()
    for _ in range(_ROUNDS if fill and monotone else 1):
        room = reduced.limits - used
        fits = (
            longest_prefix(priority[left], steps.change[:, left], room)
            if first is None
            else first
        )
        first = None
        used = used + steps.change[:, left[fits]].sum(axis=1)
        taken[left[fits]] = True
        left = left[~fits]
        if monotone:
            left = _reachable(steps, left, reduced.limits - used, len(columns))
    if fill:
        _fill(reduced, steps, left[np.argsort(-priority[left], kind="stable")], used, taken)
    order = np.flatnonzero(taken)
    moved = columns.copy()
    moved[steps.group[order]] = steps.after[order]  # the last step of a group stays
    if not reduced.fits(moved):  # sums of many numbers that are not integers are rounded
        order = order[np.argsort(-priority[order], kind="stable")]
    while not reduced.fits(moved):
        moved[steps.group[order[-1]]] = steps.before[order[-1]]
        order = order[:-1]
    return moved


def _fill(
    reduced: Reduced,
    steps: Steps,
    left: Int[np.ndarray, " left"],
    used: Float[np.ndarray, " budgets"],
    taken: Bool[np.ndarray, " steps"],
) -> None:
    """Take each step that fits, in their order; none of a group after one that does not."""
    blocked: set[int] = set()
    for step, group in zip(left.tolist(), steps.group[left].tolist(), strict=True):
        if group in blocked:
            continue
        after = used + steps.change[:, step]
        if (after <= reduced.limits).all():
            used, taken[step] = after, True
        else:
            blocked.add(group)


def _reachable(
    steps: Steps,
    left: Int[np.ndarray, " left"],
    room: Float[np.ndarray, " budgets"],
    groups: int,
) -> Int[np.ndarray, " reachable"]:
    """The steps left that fit by themselves, as do all earlier ones of their group."""
    fits = (steps.change[:, left] <= room[:, None]).all(axis=0)
    first_bad = np.full(groups, len(steps.group))
    bad = left[~fits][::-1]
    first_bad[steps.group[bad]] = bad  # the earliest stays
    return left[fits & (left < first_bad[steps.group[left]])]
