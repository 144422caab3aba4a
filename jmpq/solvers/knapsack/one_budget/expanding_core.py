"""The optimum under one budget by an expanding core: exact for a million groups in seconds.

In an optimal allocation nearly every group takes the choice that the linear relaxation gives
it (the break solution); the groups that differ have slopes close to the break slope. So:

1. The linear relaxation gives a bound, the break slope λ and the break solution. The greedy
   search and the best single changes give an incumbent.
2. Choice j of group i has a reduced cost: its loss + λ·cost minus the break choice's. If that
   exceeds the gap, no better allocation takes j. The remaining choices are the core.
3. Groups enter the core in the order of their slopes' distance from λ. The dynamic program
   keeps Pareto-optimal states (cost, loss) whose bound beats the incumbent. The bound uses the
   slopes of the groups that have not entered.
4. The program ends when no state is left: the incumbent is optimal.

Arithmetic. Integer costs are exact in float64 (sums below 2^53). Losses, and costs that are not
integers, are rounded. All states accumulate them in the same order and rounding is monotone, so
the program is exact for the rounded sums, and their distance from the true sums is bounded
along the way. The returned bound is lowered by that distance, and the status follows from it.
Losses are counted from the break solution, so the distance is small if the incumbent's loss is
of the same size. If it is not, the search is stated again with the choices that a better
incumbent leaves.

References:
    Pisinger (1995), A minimal algorithm for the multiple-choice knapsack problem, European
    Journal of Operational Research 83, 394-410.
"""

import dataclasses
import math
import time

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.kinds import check_kinds
from jmpq.problem.exact_sum import exact_sum
from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import OPTIMALITY, Solution, solution_from_columns
from jmpq.solvers.knapsack.feasibility import cheapest_allocation
from jmpq.solvers.knapsack.frontier import convex_frontiers, undominated
from jmpq.solvers.knapsack.frontier_steps import upgrades
from jmpq.solvers.knapsack.one_budget.core_states import extend
from jmpq.solvers.knapsack.one_budget.whole_units import integer_costs, one_budget
from jmpq.solvers.knapsack.relaxation_bounds import (
    cheapest_costs,
    lagrangian_bound,
    linear_relaxation,
)
from jmpq.solvers.solver import check_options

_TIE = 1e-12  # losses count as equal up to this part of their scale
_UNIT = np.finfo(np.float64).eps / 2  # relative error of one rounding
_STATE_BYTES = 2 * 16 + 6  # a state while it is extended, and its trace

_CHUNK = 4096  # groups

Columns = Int[np.ndarray, " groups"]  # of one allocation
Table = Float[np.ndarray, "rows choices"]


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class CoreSearch:
    """Expanding core with dynamic programming: a `Solver` for one budget.

    Budgets that cannot bind are ignored. When time or memory runs out, the best allocation
    found is returned as ``feasible`` with the bound proven so far. Runs that end before a limit
    give the same answer. Dominated choices are never taken, and of identical choices the first
    is taken. The order between other allocations of equal loss is not specified.

    Attributes:
        time_limit_s: Seconds for the whole call, checked between groups.
        memory_limit_bytes: Memory for the states of the dynamic program.
        relative_gap: Gap at which to stop, relative to the loss above the sum of the groups'
            least losses; 0 for the optimum.
    """

    time_limit_s: float = 60.0
    memory_limit_bytes: float = 2e9
    relative_gap: float = 0.0

    def __post_init__(self) -> None:
        limits = ("time_limit_s", "memory_limit_bytes")
        check_options(self, above_0=limits, from_0=("relative_gap",))

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Raises:
            Infeasible: If no allocation meets the budgets.
            ValueError: If more than one budget can bind.
        """
        started = time.perf_counter()
        reduced = problem.reduced()
        columns = cheapest_allocation(problem, reduced)
        reduced = one_budget(reduced, "The core solver")
        if len(reduced.limits):
            deadline = started + self.time_limit_s
            integer = integer_costs(reduced)
            if integer:  # no total lies between the multiple of the unit below and the limit
                reduced = dataclasses.replace(reduced, limits=np.array([integer.limit]))
            columns, bound = self._search(reduced, columns, deadline)
        else:
            columns = reduced.losses.argmin(axis=1)
            bound = lagrangian_bound(reduced, np.zeros(0))
        return solution_from_columns(
            problem,
            reduced.expand(columns),
            bound=bound,
            solver="core",
            wall_s=time.perf_counter() - started,
        )

    def _search(
        self, reduced: Reduced, columns: Columns, deadline: float
    ) -> tuple[Columns, float]:
        """The best columns and a proven bound; the core is restated while that refines it."""
        # Invariant: `loss` is that of `columns`, an allocation within budget, and no allocation
        # within budget loses less than `bound`.
        loss, bound, reach = _loss(reduced, columns), -math.inf, math.inf
        reduced = _affordable(reduced)
        while True:
            least = reduced.losses.min(axis=1)
            base, size = exact_sum(least), float(np.abs(least).sum())
            proven = loss - bound <= 0.1 * OPTIMALITY * max(size, abs(loss))
            if proven or 2 * (loss - base) > reach:  # stated again it would be no finer
                return columns, bound
            # A choice that alone, all other groups at their least, already loses as much as
            # the incumbent is in no better allocation. The losses that are left are small
            # where the incumbent is good, and so is their rounding.
            reach = loss - base
            near = reduced.losses - least[:, None] <= reach + 1e-12 * max(size, abs(loss))
            reduced = _restricted(reduced, near)
            core = _Core.of(reduced, loss)
            columns = core.single_change(columns)
            loss = _loss(reduced, columns)
            tolerance = max(self.relative_gap * (loss - base), _TIE * max(size, abs(loss)))
            columns, proven, complete = core.search(
                columns, tolerance, deadline, self.memory_limit_bytes
            )
            loss = _loss(reduced, columns)
            # `proven` holds for the choices that are near; allocations with another one lose
            # at least what an incumbent loses.
            bound = max(bound, min(proven, loss))
            if not complete:
                return columns, bound


def _affordable(reduced: Reduced) -> Reduced:
    """The problem without choices that exceed a budget with all other groups at cheapest.

    Their large costs would reduce the precision of sums.
    """
    (least,), (limit,) = cheapest_costs(reduced), reduced.limits
    room = limit - exact_sum(least) + 1e-13 * abs(limit)
    return _restricted(reduced, reduced.costs[0] - least[:, None] <= room)


def _restricted(reduced: Reduced, keep: Bool[np.ndarray, "groups choices"]) -> Reduced:
    """The problem with the choices in `keep` only."""
    if keep.all() or keep[reduced.allowed].all():  # no copy of a table that may be large
        return reduced
    return dataclasses.replace(reduced, losses=np.where(keep, reduced.losses, np.inf))


def _loss(reduced: Reduced, columns: Columns) -> float:
    return exact_sum(reduced.losses[np.arange(len(columns)), columns])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Core:
    """The groups that may leave the break solution, and the changes by their choices.

    Rows are core groups, by the distance of their slopes from the break slope. Columns are
    choices, including the break choice. Costs and losses are counted from the break solution;
    both are +inf for a choice that no better allocation takes.
    """

    reduced: Reduced
    start: Columns  # the break solution
    loss: float  # of the break solution
    excess: float  # its cost above the limit, lowered by `band`
    band: float  # what rounding may have added to a sum of costs; 0 for integers
    bound: float  # of the linear relaxation
    groups: Int[np.ndarray, " core"]
    cost_steps: Float[np.ndarray, "core choices"]
    loss_steps: Float[np.ndarray, "core choices"]
    reduced_costs: Float[np.ndarray, "core choices"]  # a lower bound of them
    sound: bool  # the break solution minimises the Lagrangian, up to rounding

    @classmethod
    def of(cls, reduced: Reduced, incumbent: float) -> "_Core":
        """Solve the relaxation; keep choices that can be in a better allocation."""
        losses, costs, limit = reduced.losses, reduced.costs[0], float(reduced.limits[0])
        frontiers = convex_frontiers(losses, costs)
        steps = upgrades(reduced, frontiers, frontiers[:, 0])
        slope, start, *_ = linear_relaxation(reduced, frontiers[:, 0], steps)
        if not math.isfinite(slope):  # a loss saved at next to no cost: no bound from it
            slope = 0.0
        # The Lagrangian at the break slope: the bound of the linear relaxation. Whatever the
        # slope, it bounds; `sound` tells below whether it belongs to the break solution.
        bound = lagrangian_bound(reduced, np.array([slope]))
        (used,) = reduced.used(start)
        whole = bool((costs == np.floor(costs)).all())
        band = 0.0 if whole else 1e-13 * max(abs(limit), used)
        loss, sound, near = _loss(reduced, start), True, []
        # `best` is the loss of some allocation within budget: the incumbent, the break
        # solution (rounded sums may have let it pass the limit) or one change of it.
        best = min(loss, incumbent) if used <= limit else incumbent
        for first in range(0, len(start), _CHUNK):  # a chunk stays in the processor's cache
            rows = np.arange(first, min(first + _CHUNK, len(start)))
            cost_steps, loss_steps, above, minimal = _changes(reduced, slope, start, rows)
            fits = cost_steps <= limit - used - band
            best = min(best, loss + float(np.where(fits, loss_steps, np.inf).min()))
            sound = sound and minimal
            # An allocation that takes a choice loses at least the bound and its reduced cost.
            # At the break choice's cost nothing is saved: that choice is on the frontier.
            near.append(rows[((above <= best - bound) & (cost_steps != 0)).any(axis=1)])
        groups = np.concatenate(near)  # a superset: `best` has fallen on the way
        cost_steps, loss_steps, above, _ = _changes(reduced, slope, start, groups)
        part = Reduced(
            losses=np.where((above <= best - bound) | (cost_steps == 0), loss_steps, np.inf),
            costs=costs[None, groups],
            limits=reduced.limits,
            names=reduced.names,
            groups=np.arange(len(groups)),
        )
        keep = undominated(part) if len(groups) else np.zeros(cost_steps.shape, dtype=bool)
        cost_steps, loss_steps, above = (
            np.where(keep, table, np.inf)
            for table in (cost_steps, loss_steps, np.maximum(above, 0.0))
        )
        # Reduced cost per cost is the distance of a choice's slope from the break slope.
        with np.errstate(invalid="ignore", divide="ignore"):
            distance = np.where(keep & (cost_steps != 0), above / np.abs(cost_steps), np.inf)
        order = np.argsort(distance.min(axis=1), kind="stable")
        return cls(
            reduced=reduced,
            start=start,
            loss=loss,
            excess=used - limit - band,
            band=band,
            bound=bound,
            groups=groups[order],
            cost_steps=cost_steps[order],
            loss_steps=loss_steps[order],
            reduced_costs=above[order],
            sound=sound,
        )

    def search(
        self, incumbent: Columns, tolerance: float, deadline: float, memory: float
    ) -> tuple[Columns, float, bool]:
        """The best allocation, a bound, and whether the search was completed.

        Args:
            incumbent: Allocation within budget, returned unless a better one is found.
            tolerance: Improvement that may be missed, nats per example.
            deadline: Time on the clock of `time.perf_counter`.
            memory: Bytes for states and their traces.
        """
        best = incumbent
        # All losses count from the break solution's. Invariant: every allocation within budget
        # of loss below `target` is a state of the rows so far continued by choices of
        # todo[place:], or no cheaper and no better than one that is. The rows that `_todo`
        # leaves out stay at the break choice.
        target = _loss(self.reduced, best) - self.loss - tolerance
        todo, slopes = self._todo(np.arange(len(self.groups)), target + tolerance)
        excess, loss = np.array([self.excess]), np.zeros(1)
        trace: list[_Extension] = []
        reached: tuple[int, int] | None = None  # extensions, and state, of the best one
        doubtful, place, complete = math.inf, 0, True
        loss_error = excess_error = 0.0
        while self.sound and place < len(todo) and len(excess):
            row = todo[place]
            columns = np.flatnonzero(
                self.reduced_costs[row] <= self.loss + target + tolerance - self.bound
            )
            costs, losses = self.cost_steps[row, columns], self.loss_steps[row, columns]
            capacity = int(memory // _STATE_BYTES)
            # Stopped here, or in `extend`, the states are still those before this row.
            if time.perf_counter() > deadline or capacity < 1:
                complete = False
                break
            new = extend(
                excess, loss, costs, losses, *slopes[:, place + 1], target, capacity
            )  # fmt: skip
            if not (complete := new[4]):
                break
            place += 1
            excess, loss, parent, pick, _ = new
            trace.append(
                _Extension(
                    group=int(self.groups[row]),
                    columns=columns[pick].astype(np.int16),
                    parent=parent,
                )
            )
            memory -= 6 * len(parent)
            loss_error += _rounding(loss, losses)
            excess_error += _rounding(excess, costs)
            # Losses fall where costs rise: the best of the states that fit is the last. It is
            # a whole allocation, the rows to come at the break choice.
            last = int(np.searchsorted(excess, 0.0, side="right")) - 1
            if (
                self.band > 0
                and last >= 0
                and excess[last] > -2 * self.band
                and loss[last] < min(target, doubtful)
                and not self.reduced.fits(self._traced(trace, last))
            ):
                # Within the band only the exact sum tells. This one is no answer, but it may
                # dominate one that is: nothing above its loss can be proven any more.
                doubtful = float(loss[last])
            if last >= 0 and loss[last] >= doubtful:  # the best state clear of the band
                last = int(np.searchsorted(excess, -2 * self.band, side="right")) - 1
            if last < 0 or loss[last] >= target:
                continue
            # A better incumbent: a lower target, which may settle some of the rows to come.
            reached, target = (len(trace), last), float(loss[last]) - tolerance
            todo, slopes = self._todo(todo[place:], target + tolerance)
            place = 0
        if reached and self.reduced.fits(
            other := self._traced(trace[: reached[0]], reached[1])
        ):
            best = other
        proven = min(target, doubtful)
        if not complete:  # what the states that are open might still come to
            slope = np.where(excess > 0, slopes[1, place], slopes[0, place])
            proven = min(proven, float((loss + slope * excess).min()))
        # Rounded sums of the states and the target are off by at most `loss_error` each, the
        # last additions by a rounding of their terms.
        proven -= 2 * loss_error + 4 * _UNIT * (abs(self.loss) + abs(target))
        # Without a break solution that minimises the Lagrangian the slopes bound nothing, and
        # costs off by more than the band may have dropped what fits.
        if not self.sound or (self.band > 0 and excess_error > self.band):
            return best, self.bound, complete
        return best, max(self.bound, self.loss + proven), complete

    def single_change(self, incumbent: Columns) -> Columns:
        """The better of an allocation and the best within one change of the break solution."""
        fits = np.where(
            self.excess + self.cost_steps <= -2 * self.band, self.loss_steps, np.inf
        )
        columns = self.start.copy()
        if fits.size and fits.min() < 0:
            row, column = np.unravel_index(fits.argmin(), fits.shape)
            columns[self.groups[row]] = column
        if not self.reduced.fits(columns):  # the break solution itself, up to rounding
            return incumbent
        better = _loss(self.reduced, columns) < _loss(self.reduced, incumbent)
        return columns if better else incumbent

    def _todo(
        self, rows: Int[np.ndarray, " rows"], target: float
    ) -> tuple[Int[np.ndarray, " todo"], Float[np.ndarray, "two ends"]]:
        """Rows that can still be part of an allocation of loss below `target`.

        Returns:
            The rows; for each, the most loss saved per cost and the least loss added per cost
            saved, over that row and all later ones. One entry more, for no rows, ends the
            last two.
        """
        costs = self.cost_steps[rows]
        # Slopes of the choices that save cost are above the break slope, of those that spend
        # below it. So a change of cost by the rows to come costs least in loss where all goes
        # one way: saved cost at the least slope above, spent cost at the greatest one below.
        alive = (self.reduced_costs[rows] <= self.loss + target - self.bound) & (costs != 0)
        some = alive.any(axis=1)
        rows, costs, alive = rows[some], costs[some], alive[some]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            slope = -self.loss_steps[rows] / costs
        most = np.where(alive & (costs > 0), slope, 0.0).max(axis=1, initial=0.0)
        least = np.where(alive & (costs < 0), slope, np.inf).min(axis=1, initial=np.inf)
        most = np.maximum.accumulate(np.append(most, 0.0)[::-1])[::-1]
        least = np.minimum.accumulate(np.append(least, np.inf)[::-1])[::-1]
        return rows, np.stack([most, least])

    def _traced(self, trace: "list[_Extension]", state: int) -> Columns:
        """The allocation of a state of the last extension."""
        columns = self.start.copy()
        for extension in reversed(trace):
            columns[extension.group] = extension.columns[state]
            state = extension.parent[state]
        return columns


def _changes(
    reduced: Reduced, slope: float, start: Columns, rows: Int[np.ndarray, " rows"]
) -> tuple[Table, Table, Table, bool]:
    """Changes by the choices of some groups, relative to the break solution.

    Returns:
        Costs, losses and reduced costs minus the break choice's, +inf where not allowed, and
        whether no reduced cost is negative beyond rounding. Reduced costs are lowered by the
        largest possible rounding error.
    """
    losses, costs, at = reduced.losses[rows], reduced.costs[0, rows], np.arange(len(rows))
    allowed, start_loss = np.isfinite(losses), losses[at, start[rows]][:, None]
    start_cost = costs[at, start[rows]][:, None]
    loss_steps, cost_steps = losses - start_loss, np.where(allowed, costs - start_cost, np.inf)
    magnitude = np.abs(losses) + np.abs(start_loss) + slope * (costs + start_cost)
    rounding = 8 * _UNIT * np.where(allowed, magnitude, 0.0)
    above = loss_steps + slope * (costs - start_cost) - rounding  # a lower bound
    return cost_steps, loss_steps, above, not bool((above < -2 * rounding).any())


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Extension:
    """Origin of the states of one step of the dynamic program, to trace the answer back."""

    group: int
    columns: Int[np.ndarray, " states"]
    parent: Int[np.ndarray, " states"]  # row among the states before


def _rounding(states: Float[np.ndarray, " _"], steps: Float[np.ndarray, " _"]) -> float:
    """Largest rounding error of one addition to sorted states (largest at an end)."""
    largest = max(abs(states[0]), abs(states[-1])) if len(states) else 0.0
    return float(_UNIT * (largest + np.abs(steps).max()))
