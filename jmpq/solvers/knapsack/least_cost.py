"""The inverse problem: the least cost under a ceiling on the loss."""

import dataclasses
import functools
import math
import time

import numpy as np
from jaxtyping import Int

from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.kinds import check_kinds
from jmpq.problem.problem import ROUNDING, Problem
from jmpq.problem.solution import Infeasible, Status, least_losses
from jmpq.solvers.knapsack.integer_program import Exact
from jmpq.solvers.solver import Solver

CEILING = "loss_above_least"  # the loss as a cost of the exchanged problem


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LeastCost:
    """The cheapest allocation under a ceiling on the loss, with its proof.

    Attributes:
        layers: Layers of the problem.
        choices: Candidates of the problem.
        columns: Column of `Problem.losses` that each layer takes.
        name: Name of the minimised cost.
        cost: Total of that cost, constants included, in its unit.
        bound: Proven lower bound on the cost.
        gap: Relative gap ``(cost - bound) / cost``; 0 if the cost is 0.
        status: Status: ``optimal`` if the bound proves it, else ``feasible``.
        loss: Predicted loss increase, nats per example.
        ceiling: Largest loss increase allowed, nats per example.
        costs: Totals of all costs, by name.
        solver: Name of the solver.
        wall_s: Wall time, seconds.
    """

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]
    columns: Int[np.ndarray, " layers"]
    name: str
    cost: float
    bound: float
    gap: float
    status: Status
    loss: float
    ceiling: float
    costs: dict[str, float]
    solver: str
    wall_s: float

    @functools.cached_property
    def allocation(self) -> Allocation:
        """Choice of every layer, by name; computed on first use."""
        return Allocation.from_columns(self.layers, self.choices, self.columns)


@check_kinds
def least_cost(
    problem: Problem, name: str, loss_ceiling: float, *, solver: Solver | None = None
) -> LeastCost:
    """Minimise a cost under a ceiling on the loss and under the other budgets.

    Loss and cost exchange roles: the loss above each layer's least becomes a cost with a
    budget, and the cost becomes the objective. The same solvers then apply. A budget on the
    minimised cost is ignored.

    Args:
        problem: The problem.
        name: Name of the cost to minimise.
        loss_ceiling: Largest predicted loss increase, nats per example; met up to rounding
            (1e-12 of the sum of losses).
        solver: Solver of the exchanged problem; by default the exact one.

    Raises:
        ValueError: If the problem has no such cost, the ceiling is not finite, or there are
            cross-layer terms.
        Infeasible: If no allocation within the other budgets meets the ceiling.
    """
    started = time.perf_counter()
    if name not in problem.costs:
        raise ValueError(
            f"There is no cost {name!r} to minimise: expected one of "
            f"{', '.join(problem.costs) or 'none'}."
        )
    if not math.isfinite(loss_ceiling):
        raise ValueError(f"The ceiling on the loss must be finite, got {loss_ceiling}.")
    reduced = problem.reduced()
    least = math.fsum(reduced.losses.min(axis=1))
    slack = ROUNDING * max(abs(loss_ceiling), math.fsum(np.abs(reduced.losses.min(axis=1))))
    if loss_ceiling < least - slack:
        most = np.where(np.isfinite(reduced.losses), reduced.losses, -np.inf).max(axis=1)
        raise Infeasible(
            f"A loss of at most {loss_ceiling:.10g} cannot be met: the allowed choices lose "
            f"from {least:.10g} to {math.fsum(most):.10g} nats per example. Raise the ceiling "
            "or allow more bits.",
            budgets={"loss": loss_ceiling},
            ranges={"loss": (least, math.fsum(most))},
        )
    alone = least_losses(problem)
    others = {k: limit for k, limit in problem.budgets.items() if k != name}
    above = np.where(problem.allowed, problem.losses - alone[:, None], 0.0)
    room = max(math.fsum([loss_ceiling, *-alone]), 0.0) + slack
    exchanged = dataclasses.replace(
        problem,
        losses=np.where(problem.allowed, problem.costs[name], 0.0),
        costs={**{k: problem.costs[k] for k in others}, CEILING: above},
        budgets={**others, CEILING: room},
        constants={k: v for k, v in problem.constants.items() if k in others},
        asked={},
        float_costs={},
    )
    solution = (solver or Exact())(exchanged)
    loss, costs = problem.evaluate(solution.columns)
    if loss > loss_ceiling + 4 * slack + ROUNDING * room:
        raise AssertionError(f"{solution.solver}: loss {loss} above {loss_ceiling}")
    cost = costs[name]
    bound = min(problem.constants.get(name, 0.0) + solution.bound, cost)
    return LeastCost(
        layers=problem.layers,
        choices=problem.choices,
        columns=solution.columns,
        name=name,
        cost=cost,
        bound=bound,
        gap=(cost - bound) / cost if cost > bound else 0.0,
        status=solution.status,
        loss=loss,
        ceiling=loss_ceiling,
        costs=costs,
        solver=solution.solver,
        wall_s=time.perf_counter() - started,
    )
