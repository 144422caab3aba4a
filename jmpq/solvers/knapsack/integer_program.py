"""The optimum by integer programming: cvxpy states the program, HiGHS or another solves it.

What is done around the solver so that its answer can be trusted:

- Choices that cannot be in an optimal allocation are left out: dominated ones, those too dear
  even with all else at its cheapest, and those whose Lagrangian bound exceeds the loss of the
  greedy search. This also narrows the range of losses to what matters at the optimum.
- Losses count from the least of each group and are scaled; costs count from the cheapest of
  each group, in units of what the budget leaves above that.
- Solvers hold constraints up to a tolerance. An answer that breaks a budget when its costs are
  added up anew is cut off (with every allocation that costs as much in each group) and the
  program solved again.
- Where the answer is far better than the greedy search's, the program is stated again around
  it: the tolerances then are small against the losses that are left.
- The bound is the solver's own dual bound as cvxpy hands it on (`mixed_integer`), lowered by
  its tolerances. Solvers compute in floating point: the bound is as sound as their
  arithmetic, less that margin. Where cvxpy hands on no dual bound, it is the linear
  relaxation's.
"""

import dataclasses
import math
import time
import warnings
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.exact_sum import exact_sum
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact:
    """Integer program through cvxpy, by default with HiGHS: a `Solver` for any budgets.

    Out of time, or with a `relative_gap`, the best allocation found comes back as
    ``feasible`` with the bound that was proven. Never worse than the greedy search.

    With HiGHS and SCIP, the answer is the same on every run of one version that ends before
    the time limit. A dominated choice is never taken and of identical choices the first;
    between allocations of equal loss made of other choices no order is promised.

    Attributes:
        time_limit_s: Seconds for the whole call; what cvxpy needs to state the program is
            not interrupted.
        relative_gap: Stop when the answer is proven this close, relative to the loss above
            the least of every layer; 0 for the optimum.
        solver: Mixed-integer solver by cvxpy's name, any that cvxpy finds. HIGHS,
            SCIP, SCIPY (HiGHS at coarser tolerances) and GUROBI report a dual bound; with
            GLPK_MI and CBC the bound is the linear relaxation's; others run with their own
            defaults and no time limit.
    """

    time_limit_s: float = 60.0
    relative_gap: float = 0.0
    solver: str = "HIGHS"

    def __post_init__(self) -> None:
        check_options(self, above_0=("time_limit_s",), from_0=("relative_gap",))

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
        """The best allocation from one within the budgets on, and a proven bound.

        Args:
            reduced: The problem.
            columns: An allocation within the budgets, the answer where none is better.
            bound: What is proven already.
            multipliers: What shows which options cannot improve the allocation.
            deadline: On the clock of `time.perf_counter`.

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
    """Choices that some allocation no worse than `loss` and within budget may need."""
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
    """The groups that have several options left; the others' choices are made.

    Attributes:
        reduced: The problem of these groups, under what the others leave of the budgets.
        keep: Their options.
        groups: These groups.
        fixed: The only option of each of the others; of no meaning for these groups.
        others: Loss of the others.
        loss: Loss of the best known allocation less that of the others.
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
        """The part of the options in `keep`, and what `columns` lose in it."""
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
        """The columns of all groups."""
        whole = self.fixed.copy()
        whole[self.groups] = columns
        return whole

    def bound(self, bound: float) -> float:
        """A bound on the loss of all groups from one on these, less the sum's rounding."""
        rounding = 2 * np.finfo(np.float64).eps * (abs(self.others) + abs(bound))
        return self.others + bound - rounding if math.isfinite(bound) else bound


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Program:
    """The integer program over options, the (group, choice) pairs that are kept."""

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
        """The best allocation truly within budget, None without one, and a proven bound."""
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
        """The best allocation that the solver finds, None without one, and its dual bound."""
        import cvxpy

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
        """Options as dear as `columns` in its groups: taking only such breaks the budget.

        So an allocation within budget takes at least one other, and "at most all groups but
        one" is a row that it meets. The choice itself does not: it is cut off, with all that
        are as dear in every group.
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
        """The option of every group with the largest value."""
        table = np.full(self.reduced.losses.shape, -np.inf)
        table[self.rows, self.columns] = values
        return table.argmax(axis=1)
