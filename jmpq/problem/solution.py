"""What a solver answers: a `Solution`, recomputed from its columns, or `Infeasible`."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.kinds import check_kinds
from jmpq.problem.exact_sum import exact_sum
from jmpq.problem.interactions import least_with_interactions, mask
from jmpq.problem.problem import Problem
from jmpq.text import printed

OPTIMALITY = 1e-9  # the gap up to which loss and bound count as equal

Status = Literal["optimal", "feasible"]


@check_kinds
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Solution:
    """What a solver found; `loss`, `costs`, `gap` and `status` follow from columns and bound.

    Attributes:
        layers: Layers of the problem.
        choices: Candidates of the problem.
        columns: Index of the choice that each layer takes, a column of `Problem.losses`.
        loss: Predicted loss increase, nats per example.
        costs: Total of every cost of the problem, constants included.
        bound: Proven lower bound on the loss of any allocation within the budgets.
        gap: ``(loss - bound) / scale`` with scale = max(Σ|losses of the columns|, Σ|least
            loss of each layer|), cross-layer terms left out, or |loss| or |bound| where one
            of them is larger: for losses that are not negative, the part of the loss that
            might be saved. Defined for zero and negative losses too; 0 where all are 0.
        status: ``optimal`` where the gap is at most `OPTIMALITY`, else ``feasible``.
        solver: Name of the solver that did the work.
        wall_s: Seconds that the solver took.
        objective: Name of what the solver minimised: ``loss``, the problem's own, or another
            function of the allocation, of which `loss`, `bound`, `gap` and `status` say
            nothing.
        objective_value: Value of the objective; `loss` where that is the objective.
    """

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]
    columns: Int[np.ndarray, " layers"]
    loss: float
    costs: dict[str, float]
    bound: float
    gap: float
    status: Status
    solver: str
    wall_s: float
    objective: str
    objective_value: float

    def __repr__(self) -> str:
        other = ""
        if self.objective != "loss":
            other = f"; minimised {self.objective} to {self.objective_value:.4g}"
        return printed(
            f"Solution by {self.solver}, {self.status}: loss {self.loss:.4g}, proven bound "
            f"{self.bound:.4g} (gap {100 * self.gap:.2g} %){other}",
            f"costs: {', '.join(f'{n} {v:.6g}' for n, v in self.costs.items()) or 'none'}",
            f"allocation: {self.allocation}",
            f"found in {self.wall_s:.3g} s",
        )

    @functools.cached_property
    def allocation(self) -> Allocation:
        """The choice of every layer, by name; made when it is first asked for."""
        return Allocation.from_columns(self.layers, self.choices, self.columns)


class Infeasible(ValueError):
    """No allocation meets the budgets, or none that a solver could find.

    Attributes:
        budgets: The conflicting budgets and their limits.
        ranges: Least and most that each of them can come to, others ignored.
        cheapest: For each of them, the cheapest allowed choice of every layer and its cost.
    """

    def __init__(
        self,
        message: str,
        *,
        budgets: Mapping[str, float] | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        cheapest: Mapping[str, dict[str, tuple[str, float]]] | None = None,
    ) -> None:
        super().__init__(message)
        self.budgets = dict(budgets or {})
        self.ranges = dict(ranges or {})
        self.cheapest = dict(cheapest or {})


def solution_from_columns(
    problem: Problem,
    columns: Int[np.ndarray, " layers"],
    *,
    bound: float,
    solver: str,
    wall_s: float,
) -> Solution:
    """Make a solution by evaluating its columns anew; the bound is the solver's word.

    A bound below the least that all layers (and pairs of layers) can come to, each by
    itself, is raised to it. One that lies above the loss by no more than rounding is lowered
    to it.

    Raises:
        ValueError: If the columns are not an allocation of the problem or break a budget.
        AssertionError: If the bound lies above the loss: the solver's proof is wrong.
    """
    loss, costs = problem.evaluate(columns)
    if over := problem.violated(costs):
        raise ValueError(
            "The allocation breaks its budgets: "
            + "; ".join(
                f"{n} by {x:.10g} (limit {problem.budgets[n]:.10g})" for n, x in over.items()
            )
            + "."
        )
    least = least_losses(problem)
    picked = problem.losses[np.arange(len(columns)), columns]
    scale = float(max(np.abs(picked).sum(), np.abs(least).sum(), abs(loss)))
    if problem.interactions is None:
        bound = max(bound, exact_sum(least))
    else:
        trivial = least_with_interactions(
            problem.losses, problem.allowed, mask(problem.allowed, problem.interactions)
        )
        bound = max(bound, trivial)
    scale = max(scale, abs(bound))
    assert bound <= loss + OPTIMALITY * scale, f"{solver}: bound {bound} above loss {loss}"
    bound = min(bound, loss)
    gap = float((loss - bound) / scale) if loss > bound else 0.0
    return Solution(
        layers=problem.layers,
        choices=problem.choices,
        columns=columns,
        loss=loss,
        costs=costs,
        bound=bound,
        gap=gap,
        status="optimal" if gap <= OPTIMALITY else "feasible",
        solver=solver,
        wall_s=wall_s,
        objective="loss",
        objective_value=loss,
    )


def least_losses(problem: Problem) -> Float[np.ndarray, " layers"]:
    """The least loss that each layer allows by itself, ties and budgets ignored."""
    if problem.allowed.all():  # no copy of a table that may be large
        return problem.losses.min(axis=1)
    return np.where(problem.allowed, problem.losses, np.inf).min(axis=1)


def infeasible(
    problem: Problem, names: tuple[str, ...], joint_least: Mapping[str, float] | None = None
) -> Infeasible:
    """The error for budgets that cannot be met: alone, or together.

    Args:
        problem: The problem.
        names: One budget below its least, or several that conflict.
        joint_least: For several: the least of each while the others are held, where found.
    """
    ranges = {name: problem.range(name) for name in names}
    cheapest = {name: _cheapest(problem, name) for name in names}
    budgets = {name: problem.budgets[name] for name in names}
    if len(names) == 1:
        (name,) = names
        message = (
            f"Budget {_asked(problem, name)} cannot be met: the allowed choices cost "
            f"{_span(ranges[name])}. Raise it to at least {_number(ranges[name][0])} or allow "
            f"fewer bits. {_layers(problem, name, cheapest[name])}"
        )
    else:
        held = "; ".join(
            f"with the others held, {name} is at least {_number(least)}"
            for name, least in (joint_least or {}).items()
        )
        alone = "; ".join(f"{name} {_span(ranges[name])}" for name in names)
        message = (
            f"Budgets {', '.join(_asked(problem, name) for name in names)} can each be met but "
            f"not together (alone: {alone}{'; ' + held if held else ''}). Raise one of them or "
            f"allow fewer bits. {_layers(problem, names[0], cheapest[names[0]])}"
        )
    return Infeasible(message, budgets=budgets, ranges=ranges, cheapest=cheapest)


def _cheapest(problem: Problem, name: str) -> dict[str, tuple[str, float]]:
    table = np.where(problem.allowed, problem.costs[name], np.inf)
    return {
        layer: (problem.choices[row.argmin()].label, float(row.min()))
        for layer, row in zip(problem.layers, table, strict=True)
    }


def _layers(problem: Problem, name: str, rows: dict[str, tuple[str, float]]) -> str:
    """The cheapest choice of the layers that cost most, for a message of one line."""
    shown = sorted(rows.items(), key=lambda row: -row[1][1])[:5]
    text = ", ".join(f"{layer} {label} {_number(cost)}" for layer, (label, cost) in shown)
    more = f", and {len(rows) - len(shown)} more layers" if len(rows) > len(shown) else ""
    constant = problem.constants.get(name, 0.0)
    fixed = f"; {_number(constant)} outside the search" if constant else ""
    return f"Cheapest {name} per layer: {text}{more}{fixed}."


def _asked(problem: Problem, name: str) -> str:
    limit, asked = _number(problem.budgets[name]), problem.asked.get(name)
    return f"{name}={limit}" + (f" (asked: {asked})" if asked not in (None, limit) else "")


def _span(least_most: tuple[float, float]) -> str:
    return f"from {_number(least_most[0])} to {_number(least_most[1])}"


def _number(value: float) -> str:
    return f"{value:.10g}"
