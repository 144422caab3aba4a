"""The paper's greedy search, with its variants, and the bound of the linear relaxation."""

import dataclasses
import heapq
import time
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.problem import Problem, Reduced
from jmpq.problem.solution import Solution, solution_from_choice
from jmpq.solvers.bounds import lp_bound
from jmpq.solvers.feasibility import cheapest_allocation, combined_costs
from jmpq.solvers.frontier import convex_frontier, undominated

Criterion = Literal["ratio", "reversed", "random"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """Greedy search along every layer's convex frontier: a `Solver`.

    Dominated and LP-dominated choices are filtered first; then single steps along the
    frontiers are taken in the order of loss change per cost. With several budgets the cost
    of a step is the sum of its costs, each in units of what its budget leaves above the
    cheapest allocation; every budget is checked on its own. Equal steps are taken in the
    order of the layers, so the answer is deterministic.

    Attributes:
        start: ``upgrade`` from the cheapest allocation while the budgets last, or
            ``downgrade`` from the least loss until they are met.
        criterion: ``ratio`` is the paper's: upgrades that save most loss per cost first,
            downgrades that add least. ``reversed`` takes the opposite order, ``random`` one
            drawn from `seed` (the paper's ablation).
        seed: For ``random``.
        fill: Go on past a step that does not fit (and upgrade again after a downgrade);
            where False, stop there.

    References:
        Chen, Wang, Cheng (2021), Towards Mixed-Precision Quantization of Neural Networks via
        Constrained Optimization, Algorithm 1 and Proposition 1.
    """

    start: Literal["upgrade", "downgrade"] = "upgrade"
    criterion: Criterion = "ratio"
    seed: int = 0
    fill: bool = True

    def __call__(self, problem: Problem) -> Solution:
        """Search; the bound is the linear relaxation's, whatever the criterion.

        Raises:
            Infeasible: If no allocation meets the budgets.
        """
        started = time.perf_counter()
        reduced = problem.reduced()
        cheapest = cheapest_allocation(problem, reduced)
        walk = _Walk.of(reduced, self.criterion, self.seed)
        choice = cheapest
        if self.start == "downgrade":
            choice = walk.downgrade(walk.best(), cheapest)
        if self.start == "upgrade" or self.fill:
            choice = walk.upgrade(choice, fill=self.fill)
        name = "greedy" if self.criterion == "ratio" else self.criterion
        return solution_from_choice(
            problem,
            reduced.expand(choice),
            bound=lp_bound(reduced)[0],
            solver=name if self.start == "upgrade" else f"{name}/downgrade",
            wall_s=time.perf_counter() - started,
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Walk:
    """Steps along the frontiers and the order they are taken in."""

    reduced: Reduced
    price: Float[np.ndarray, "groups choices"]  # one cost for all budgets
    frontiers: list[Int[np.ndarray, " _"]]  # columns by rising price
    draws: Float[np.ndarray, "groups choices"] | None  # order of the random criterion
    sign: float  # of the ratio in the heap's key: upgrades best first is -1

    @classmethod
    def of(cls, reduced: Reduced, criterion: Criterion, seed: int) -> "_Walk":
        price, keep = combined_costs(reduced), undominated(reduced)
        draws = None
        if criterion == "random":
            draws = np.random.default_rng(seed).random(price.shape)
        rows = zip(reduced.losses, price, keep, strict=True)
        return cls(
            reduced=reduced,
            price=price,
            frontiers=[convex_frontier(*row) for row in rows],
            draws=draws,
            sign=1.0 if criterion == "reversed" else -1.0,
        )

    def best(self) -> Int[np.ndarray, " groups"]:
        """The end of every frontier: least loss."""
        return np.array([frontier[-1] for frontier in self.frontiers], dtype=np.int64)

    def upgrade(
        self, choice: Int[np.ndarray, " groups"], *, fill: bool
    ) -> Int[np.ndarray, " groups"]:
        """Take steps that cost and save loss until none fits (`fill`) or one does not."""
        costs = self.reduced.costs
        choice, used = choice.copy(), self.reduced.used(choice)
        heap = [step for i in range(len(choice)) if (step := self._up(i, int(choice[i])))]
        heapq.heapify(heap)
        while heap:
            _, i, column = heapq.heappop(heap)
            after = used + costs[:, i, column] - costs[:, i, choice[i]]
            if (after <= self.reduced.limits).all():
                choice[i], used = column, after
                if step := self._up(i, column):
                    heapq.heappush(heap, step)
            elif not fill:
                break
        return choice

    def downgrade(
        self, choice: Int[np.ndarray, " groups"], cheapest: Int[np.ndarray, " groups"]
    ) -> Int[np.ndarray, " groups"]:
        """Take steps that save cost until every budget is met; `cheapest` if none does."""
        choice, used = choice.copy(), self.reduced.used(choice)
        heap = [step for i in range(len(choice)) if (step := self._down(i, int(choice[i])))]
        heapq.heapify(heap)
        while (used > self.reduced.limits).any():
            if not heap:
                return cheapest
            _, i, column = heapq.heappop(heap)
            change = self.reduced.costs[:, i, column] - self.reduced.costs[:, i, choice[i]]
            choice[i], used = column, used + change
            if step := self._down(i, column):
                heapq.heappush(heap, step)
        return choice

    def _up(self, i: int, column: int) -> tuple[float, int, int] | None:
        """The first frontier choice of group `i` that loses less than `column`, with key."""
        for target in self.frontiers[i].tolist():
            saved = self.reduced.losses[i, column] - self.reduced.losses[i, target]
            cost = self.price[i, target] - self.price[i, column]
            if saved > 0:
                return (
                    self._key(i, target, saved / cost if cost > 0 else np.inf),
                    i,
                    int(target),
                )
        return None

    def _down(self, i: int, column: int) -> tuple[float, int, int] | None:
        """The frontier choice of group `i` next below `column`, with key."""
        position = int(np.flatnonzero(self.frontiers[i] == column)[0])
        if position == 0:
            return None
        target = int(self.frontiers[i][position - 1])
        added = self.reduced.losses[i, target] - self.reduced.losses[i, column]
        ratio = added / (self.price[i, column] - self.price[i, target])
        return self._key(i, target, -ratio), i, target

    def _key(self, i: int, column: int, ratio: float) -> float:
        return self.sign * ratio if self.draws is None else float(self.draws[i, column])
