"""The optimum by integer programming: cvxpy states the program, HiGHS or another solves it.

These measures make the solver's answer reliable:

- Choices that cannot be in an optimal allocation are removed: dominated choices, choices that
  fit no budget even with all other groups at their cheapest, and choices whose Lagrangian bound
  exceeds the loss of the greedy search. This also narrows the range of losses.
- Losses are counted from each group's least loss and scaled. Costs are counted from each
  group's cheapest choice, in units of what the budget leaves above that.
- Solvers meet constraints up to a tolerance. An answer that breaks a budget in exact sums is
  cut off, with every allocation that costs as much in each group, and the program is solved
  again.
- If the answer is far better than the greedy search's, the program is stated again around it,
  so that tolerances are small against the remaining losses.
- The bound is the solver's dual bound as reported by cvxpy (`mixed_integer`), lowered by the
  solver's tolerances. It is as sound as the solver's floating-point arithmetic. If cvxpy
  reports no dual bound, the bound is the linear relaxation's.
"""

import dataclasses
import math
import time
import warnings
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.kinds import check_kinds
from jmpq.problem.exact_sum import exact_sum
from jmpq.problem.instances.highs import quiet_highs
from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import OPTIMALITY, Solution, solution_from_columns
from jmpq.solvers.knapsack.frontier import undominated
from jmpq.solvers.knapsack.greedy import Greedy
from jmpq.solvers.knapsack.mixed_integer import (
    TOLERANCES,
    check_installed,
    dual_bound,
    has_answer,
    options,
)
from jmpq.solvers.knapsack.relaxation_bounds import (
    Multipliers,
    cheapest_costs,
    lagrangian_bound,
    lp_bound,
    priced_losses,
)
from jmpq.solvers.solver import check_options

_SPAN = 1e4  # the loss between the least thinkable and the best known, as solvers see it
_CUTS = 30  # answers cut off before giving up on exactness


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact:
    """Integer program through cvxpy, by default with HiGHS: a `Solver` for any budgets.

    When time runs out, or with a `relative_gap`, the best allocation found is returned as
    ``feasible`` with the bound proven so far. It is never worse than the greedy search's.

    With HiGHS and SCIP, runs of one version that end before the time limit give the same
    answer. Dominated choices are never taken, and of identical choices the first is taken. The
    order between other allocations of equal loss is not specified.

    Attributes:
        time_limit_s: Seconds for the whole call; cvxpy's compilation is not interrupted.
        relative_gap: Gap at which to stop, relative to the loss above the sum of the layers'
            least losses; 0 for the optimum.
        solver: Mixed-integer solver by cvxpy's name, any that cvxpy finds. HIGHS, SCIP, SCIPY
            (HiGHS at coarser tolerances) and GUROBI report a dual bound. With GLPK_MI and CBC
            the bound is the linear relaxation's. Others run with their own defaults and no
            time limit.
    """

    time_limit_s: float = 60.0
    relative_gap: float = 0.0
    solver: str = "HIGHS"

    def __post_init__(self) -> None:
        check_options(self, above_0=("time_limit_s",), from_0=("relative_gap",))

    @check_kinds
    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Raises:
            Infeasible: If no allocation meets the budgets.
            RuntimeError: If the mixed-integer solver fails.
            ValueError: If cvxpy does not find the solver; the message lists those it finds.
        """
        started = time.perf_counter()
        check_installed(self.solver)
        greedy = Greedy()(problem)
        reduced = problem.reduced()
        columns, bound = self.improve(
            reduced,
            reduced.collapse(greedy.columns),
            greedy.bound,
            lp_bound(reduced)[1],
            started + self.time_limit_s,
        )
        return solution_from_columns(
            problem,
            reduced.expand(columns),
            bound=bound,
            solver="exact" if self.solver == "HIGHS" else f"exact/{self.solver}",
            wall_s=time.perf_counter() - started,
        )

    def improve(
        self,
        reduced: Reduced,
        columns: Int[np.ndarray, " groups"],
        bound: float,
        multipliers: Multipliers,
        deadline: float,
    ) -> tuple[Int[np.ndarray, " groups"], float]:
        """Improve an allocation within the budgets, and prove a bound.

        Args:
            reduced: The problem.
            columns: Allocation within the budgets, returned if none is better.
            bound: Lower bound proven before.
            multipliers: Prices of the budgets, which rule out options by reduced cost.
            deadline: Time on the clock of `time.perf_counter`.

        Raises:
            RuntimeError: If the mixed-integer solver fails.
        """
        best, loss, scale = columns, _loss(reduced, columns), 0.0
        least = exact_sum(reduced.losses.min(axis=1))
        # Invariant: `best` is within budget and loses `loss`; no allocation within budget
        # loses less than `bound`. The programs leave out only what loses at least `loss`, so
        # what they prove holds up to `loss` for all allocations.
        while loss - bound > max(OPTIMALITY * abs(loss), self.relative_gap * (loss - least)):
            keep = _useful(reduced, loss, multipliers)
            if not keep.any(axis=1).all():  # nothing loses less
                return best, loss
            part = _Part.of(reduced, keep, best)
            if len(part.groups):
                program = _Program.of(part.reduced, part.keep, part.loss, self.solver)
                bound = max(bound, min(part.bound(program.base), loss))
                if program.scale <= 2 * scale:  # a better answer has not made it any finer
                    break
                scale = program.scale
                above = part.loss - program.base
                gap = min(self.relative_gap * (loss - least) / above, 0.5) if above > 0 else 0.0
                few, proven = program.search(deadline, gap)
            else:  # one allocation is left
                few, proven = part.groups, 0.0
            bound = max(bound, min(part.bound(proven), loss))
            if few is None:
                break
            better = part.whole(few)
            if not reduced.fits(better):  # what the part leaves of a budget is rounded
                break
            other = _loss(reduced, better)
            best, loss = (better, other) if other < loss else (best, loss)
            if not len(part.groups):
                break
        return best, min(bound, loss)


def _loss(reduced: Reduced, columns: Int[np.ndarray, " groups"]) -> float:
    return exact_sum(reduced.losses[np.arange(len(columns)), columns])


def _useful(
    reduced: Reduced, loss: float, multipliers: Multipliers
) -> Bool[np.ndarray, "groups choices"]:
    """Choices that an allocation within budget may need to lose at most `loss`."""
    keep = undominated(reduced)
    # Too dear even where all other groups are at their cheapest.
    least = cheapest_costs(reduced)
    left = [limit - exact_sum(row) for limit, row in zip(reduced.limits, least, strict=True)]
    for table, row, slack in zip(reduced.costs, least, left, strict=True):
        keep &= table - row[:, None] <= slack + 1e-9 * abs(slack)
    # The Lagrangian is a sum over groups: an allocation that takes a choice loses at least
    # the bound and what the choice's priced loss is above the least of its group.
    bound = lagrangian_bound(reduced, multipliers)
    priced, _ = priced_losses(reduced, multipliers)
    magnitude = float(np.abs(priced.min(axis=1)).sum())
    above = priced - priced.min(axis=1, keepdims=True)
    return keep & (bound + above <= loss + 1e-12 * (magnitude + abs(loss)))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Part:
    """The open groups, which have several options left; all others are settled.

    Attributes:
        reduced: Problem of the open groups under the budgets that the settled ones leave.
        keep: Options of the open groups.
        groups: Positions of the open groups.
        fixed: Option of each settled group; arbitrary for open groups.
        others: Loss of the settled groups.
        loss: Loss of the best known allocation minus `others`.
    """

    reduced: Reduced
    keep: Bool[np.ndarray, "open choices"]
    groups: Int[np.ndarray, " open"]
    fixed: Int[np.ndarray, " groups"]
    others: float
    loss: float

    @classmethod
    def of(
        cls,
        reduced: Reduced,
        keep: Bool[np.ndarray, "groups choices"],
        columns: Int[np.ndarray, " groups"],
    ) -> "_Part":
        """The part with the options in `keep`; `columns` is the best known allocation."""
        several = keep.sum(axis=1) > 1
        groups, others = np.flatnonzero(several), np.flatnonzero(~several)
        fixed = keep.argmax(axis=1)
        losses = reduced.losses[others, fixed[others]]
        left = [
            exact_sum(np.append(-table[others, fixed[others]], limit))
            for table, limit in zip(reduced.costs, reduced.limits, strict=True)
        ]
        rows = np.arange(len(columns))
        return cls(
            reduced=Reduced(
                losses=reduced.losses[groups],
                costs=reduced.costs[:, groups],
                limits=np.array(left),
                names=reduced.names,
                groups=np.arange(len(groups)),
            ),
            keep=keep[groups],
            groups=groups,
            fixed=fixed,
            others=exact_sum(losses),
            loss=exact_sum(np.append(reduced.losses[rows, columns], -losses)),
        )

    def whole(self, columns: Int[np.ndarray, " open"]) -> Int[np.ndarray, " groups"]:
        """Columns of all groups from columns of the open ones."""
        whole = self.fixed.copy()
        whole[self.groups] = columns
        return whole

    def bound(self, bound: float) -> float:
        """Bound on the loss of all groups from one on the open groups, minus rounding."""
        rounding = 2 * np.finfo(np.float64).eps * (abs(self.others) + abs(bound))
        return self.others + bound - rounding if math.isfinite(bound) else bound


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Program:
    """The integer program over options: the (group, choice) pairs that are kept."""

    reduced: Reduced
    solver: str
    rows: Int[np.ndarray, " options"]  # group
    columns: Int[np.ndarray, " options"]  # choice
    objective: Float[np.ndarray, " options"]  # scaled losses
    base: float  # loss of objective 0
    scale: float  # objective per loss; 0 where `base` is reached already, up to rounding

    @classmethod
    def of(
        cls,
        reduced: Reduced,
        keep: Bool[np.ndarray, "groups choices"],
        loss: float,
        solver: str,
    ) -> "_Program":
        least = np.where(keep, reduced.losses, np.inf).min(axis=1)
        base = math.fsum(least)
        rounding = 1e-13 * max(abs(loss), math.fsum(np.abs(least)))
        scale = _SPAN / (loss - base) if loss - base > rounding else 0.0
        # No option that by itself takes an allocation from the base beyond the known loss.
        above = reduced.losses - least[:, None]
        rows, columns = np.nonzero(keep & (above <= loss - base + rounding))
        objective = above[rows, columns] * scale
        return cls(
            reduced=reduced,
            solver=solver,
            rows=rows,
            columns=columns,
            objective=objective,
            base=base,
            scale=scale,
        )

    def search(
        self, deadline: float, gap: float
    ) -> tuple[Int[np.ndarray, " groups"] | None, float]:
        """The best allocation within budget by exact sums, or None, and a proven bound."""
        cuts: list[Bool[np.ndarray, " options"]] = []
        bound = -math.inf
        # Cuts remove no allocation within budget, so each program's dual bound holds for all.
        while len(cuts) <= _CUTS and (left := deadline - time.perf_counter()) > 0:
            columns, proven = self.solve(cuts, left, gap)
            bound = max(bound, proven)
            if columns is None:
                break
            excess = self.reduced.used(columns) - self.reduced.limits
            if (excess <= 0).all():
                return columns, bound
            cuts.append(self.cut(columns, int(excess.argmax())))
        return None, bound

    def solve(
        self, cuts: list[Bool[np.ndarray, " options"]], time_limit_s: float, gap: float
    ) -> tuple[Int[np.ndarray, " groups"] | None, float]:
        """The best allocation that the solver finds, or None, and its dual bound."""
        import cvxpy

        if self.solver == "HIGHS":
            quiet_highs()
        started = time.perf_counter()
        take = cvxpy.Variable(len(self.rows), boolean=True)
        program = cvxpy.Problem(
            cvxpy.Minimize(self.objective @ take), self._constraints(take, cuts)
        )
        try:
            with warnings.catch_warnings():  # the status says it
                warnings.filterwarnings("ignore", message="Solution may be inaccurate")
                program.solve(solver=self.solver, **options(self.solver, time_limit_s, gap))
        except cvxpy.SolverError as error:
            if self.solver != "HIGHS" and time.perf_counter() - started > 0.9 * time_limit_s:
                return None, -math.inf  # how cvxpy tells "out of time without an answer"
            raise RuntimeError(
                f"{self.solver} failed on the integer program: {error}"
            ) from error
        stats: Any = program.solver_stats.extra_stats if program.solver_stats else None
        answered = has_answer(self.solver, program.status, stats)
        bound = -math.inf
        if answered or program.status == cvxpy.USER_LIMIT:
            dual = dual_bound(self.solver, stats)
            # Rows are held up to a tolerance; the margin is of its size, a row each.
            margin = TOLERANCES.get(self.solver, 0.0) * (100 + len(self.reduced.losses))
            if dual is not None:
                bound = self.base + (dual - margin) / self.scale
        if not answered or take.value is None:
            return None, bound
        return self._columns(take.value), bound

    def cut(
        self, columns: Int[np.ndarray, " groups"], budget: int
    ) -> Bool[np.ndarray, " options"]:
        """Options that cost at least as much as `columns` in their group.

        An allocation of such options only breaks the budget. So the row "at most all groups
        but one take such an option" holds for every allocation within budget and cuts off
        `columns`.
        """
        cost = self.reduced.costs[budget]
        return cost[self.rows, self.columns] >= cost[self.rows, columns[self.rows]]

    def _constraints(self, take: Any, cuts: list[Bool[np.ndarray, " options"]]) -> list[Any]:
        from scipy import sparse

        groups = len(self.reduced.losses)
        entries = (np.ones(len(self.rows)), (self.rows, np.arange(len(self.rows))))
        constraints = [sparse.csr_array(entries) @ take == np.ones(groups)]
        for limit, table in zip(self.reduced.limits, self.reduced.costs, strict=True):
            row, floor = table[self.rows, self.columns], np.full(groups, np.inf)
            np.minimum.at(floor, self.rows, row)
            # In units of what the cheapest allocation leaves, tolerances mean the same
            # whatever the cost is counted in.
            above, slack = row - floor[self.rows], limit - math.fsum(floor)
            if above.any() and slack > 0:
                constraints.append((above / slack) @ take <= 1.0)
            elif above.any():
                constraints.append((above > 0).astype(float) @ take <= 0.0)
        constraints += [cut.astype(float) @ take <= groups - 1.0 for cut in cuts]
        return constraints

    def _columns(self, values: Float[np.ndarray, " options"]) -> Int[np.ndarray, " groups"]:
        """Option of largest value in every group."""
        table = np.full(self.reduced.losses.shape, -np.inf)
        table[self.rows, self.columns] = values
        return table.argmax(axis=1)
