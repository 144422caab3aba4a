"""The paper's greedy search, with its variants, and the bound of the linear relaxation."""

import dataclasses
import time
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.kinds import check_kinds
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


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """Greedy search along every layer's convex frontier: a `Solver`.

    Dominated and LP-dominated choices are filtered first. Then single steps along the frontiers
    are taken in the order of loss change per cost. With several budgets the cost of a step is a
    weighted sum (`weights`), and every budget is checked separately. Ties go to the earlier
    layer, so the answer is deterministic.

    Attributes:
        start: Direction: ``upgrade`` from the cheapest allocation while the budgets last, or
            ``downgrade`` from the least loss until they are met.
        criterion: Order of steps. ``ratio`` is the paper's: upgrades of most loss saved per
            cost first, downgrades of least loss added per cost first. ``reversed`` is the
            opposite order, ``random`` one drawn from `seed` (the paper's ablation).
        weights: Weights of costs with several budgets. ``room`` divides a cost by what its
            budget leaves above the cheapest allocation, as in the paper's ratio.
            ``dual_prices`` uses the budgets' dual values in the linear relaxation, the best
            efficiency measure in Puchinger, Raidl, Pferschy; the steps before the break are
            then the relaxation's. Both agree with one budget.
        seed: Seed of ``random``.
        fill: Whether to continue past a step that does not fit (and to upgrade again after a
            downgrade). If False, the search stops there.

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

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Search; the bound is the linear relaxation's for every criterion.

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
        """Take steps that save loss until none fits (`fill`), or until one does not fit.

        With ``ratio`` and one budget, the steps before the break are the relaxation's.
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
        """Priority of the steps by the criterion, highest first."""
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
        priority: Priority of each step, never rising within a group; ties go to the earlier.
        columns: First allocation, within the budgets.
        fill: Whether to continue past a step that does not fit, without later steps of its
            group.
        first: Steps before the first that does not fit, if already known.
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
    """Take each step that fits, in order; skip a group after its first step that does not."""
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
    """Remaining steps that fit alone and whose earlier steps in the group fit alone."""
    fits = (steps.change[:, left] <= room[:, None]).all(axis=0)
    first_bad = np.full(groups, len(steps.group))
    bad = left[~fits][::-1]
    first_bad[steps.group[bad]] = bad  # the earliest stays
    return left[fits & (left < first_bad[steps.group[left]])]
