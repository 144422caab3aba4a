"""The plan file: allocations by name with their proofs, readable without jmpq."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from jmpq.allocation import Allocation
from jmpq.artifact import ArtifactKind, check_json, fields_of
from jmpq.formats import Choice
from jmpq.kinds import check_kinds
from jmpq.problem.problem import ROUNDING, Problem
from jmpq.problem.solution import Solution, Status
from jmpq.text import did_you_mean, plural, printed, some

KIND = ArtifactKind("plan", 3, "solve")

Role = Literal["solution", "baseline", "sweep", "single", "random"]


_SHOWN = 4  # solutions of a printed plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedBudget:
    """A budget: its limit, how it was asked for, and the range of the cost."""

    limit: float
    asked: str
    least: float
    most: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedAllocation:
    """One allocation of a plan: what it is, who made it and how, and what it promises.

    Losses are nats per example; None stands where there is nothing to say.

    Attributes:
        name: Name in the plan.
        role: Purpose in the plan.
        allocation: Choice of every layer of the plan.
        costs: Total of every cost.
        metric: Metric whose losses the allocation was made by.
        predicted_loss: Loss increase that this metric predicts.
        bound: Proven lower bound on `predicted_loss` within the budgets.
        gap: Relative distance of the two, as in a `Solution`.
        status: Whether the distance is closed; with `bound` and `gap` None where no solver
            proves anything.
        asked: Solver that was asked for: ``exact``, ``greedy``, ``uniform``, ...
        solver: Solver that did the work: ``core``, ``branch_and_bound``, ...
        objective: Name of what was minimised: the metric, or something else such as a cost
            or a measured loss.
        objective_value: Value of the objective.
        wall_s: Seconds that the solver took.
        seed: Seed of a random allocation.
        budgets: Limits that it had to hold, by cost.
        predictions: Loss increase that every metric predicts, by metric.
    """

    name: str
    role: Role
    allocation: Allocation
    costs: dict[str, float]
    metric: str | None = None
    predicted_loss: float | None = None
    bound: float | None = None
    gap: float | None = None
    status: Status | None = None
    asked: str | None = None
    solver: str | None = None
    objective: str | None = None
    objective_value: float | None = None
    wall_s: float | None = None
    seed: int | None = None
    budgets: dict[str, float] = dataclasses.field(default_factory=dict)
    predictions: dict[str, float] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        proof = ""
        if self.status is not None and self.bound is not None and self.gap is not None:
            proof = f", {self.status}: bound {self.bound:.4g} (gap {100 * self.gap:.2g} %)"
        loss = ""
        if self.predicted_loss is not None:
            loss = f"loss {self.predicted_loss:.4g} predicted by {self.metric}{proof}"
        return printed(
            f"PlannedAllocation {self.name} ({self.role})",
            loss,
            f"costs: {', '.join(f'{n} {v:.6g}' for n, v in self.costs.items()) or 'none'}",
            f"allocation: {self.allocation}",
        )


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `plan.json` holds.

    `excluded` layers stay unquantized; `options` are those that it was solved with;
    `latency_sha256` is the hash of the table of latencies that it counts by, if there was one.
    """

    jmpq: str
    versions: dict[str, str]
    seed: int
    created: str
    weights_sha256: str
    sensitivity_sha256: str
    quantizers: dict[str, Any]
    layers: tuple[str, ...]
    choices: tuple[Choice, ...]
    rules: tuple[str, ...]
    budgets: dict[str, PlannedBudget]
    unquantized: dict[str, float]
    allocations: tuple[PlannedAllocation, ...]
    excluded: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    latency_sha256: str | None = None

    def __post_init__(self) -> None:
        names = [allocation.name for allocation in self.allocations]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(
                f"Two allocations of the plan are called {twice[0]!r}: rename one."
            )
        for allocation in self.allocations:
            if wrong := set(allocation.allocation) ^ set(self.layers):
                raise ValueError(
                    f"Allocation {allocation.name!r} and the plan disagree on layers: "
                    f"{', '.join(sorted(wrong))}."
                )

    def __repr__(self) -> str:
        roles = Counter(allocation.role for allocation in self.allocations)
        solutions = [a for a in self.allocations if a.role == "solution"]
        rows = [f"{a.name}: {_promise(a)}" for a in solutions[:_SHOWN]]
        if len(solutions) > _SHOWN:
            rows.append(f"and {len(solutions) - _SHOWN} more solutions")
        budgets = [f"{n} <= {b.limit:.6g} (asked {b.asked})" for n, b in self.budgets.items()]
        return printed(
            f"Plan of {self.created}: {plural(len(self.layers), 'layer')} x "
            f"{plural(len(self.choices), 'choice')}, "
            f"{plural(len(self.allocations), 'allocation')} "
            f"({', '.join(f'{count} {role}' for role, count in roles.items())})",
            f"budgets: {', '.join(budgets) or 'none'}; {plural(len(self.rules), 'rule')}",
            *rows,
        )

    def exceeded(self, costs: Mapping[str, float]) -> tuple[str, ...]:
        """Names of the budgets that the costs of an allocation break."""
        return tuple(
            name
            for name, budget in self.budgets.items()
            if costs.get(name, math.inf) > budget.limit * (1 + ROUNDING)
        )

    def named(self, name: str) -> PlannedAllocation:
        """The allocation of a name.

        Raises:
            ValueError: If the plan has no allocation of that name.
        """
        by_name = {allocation.name: allocation for allocation in self.allocations}
        if name in by_name:
            return by_name[name]
        hint, known = did_you_mean(name, by_name), some(list(by_name)) or "none"
        raise ValueError(f"The plan has no allocation {name!r}.{hint} It has {known}.")


def _promise(planned: PlannedAllocation) -> str:
    """Loss, status and costs in a line."""
    loss = "" if planned.predicted_loss is None else f"loss {planned.predicted_loss:.4g}, "
    status = f"{planned.status}, " if planned.status else ""
    costs = ", ".join(f"{name} {value:.6g}" for name, value in planned.costs.items())
    return f"{status}{loss}{costs}"


def planned_budgets(problem: Problem) -> dict[str, PlannedBudget]:
    """The budgets of a problem as the plan keeps them."""
    return {
        name: PlannedBudget(
            limit=limit,
            asked=problem.asked.get(name, f"{limit:.17g}"),
            least=problem.range(name)[0],
            most=problem.range(name)[1],
        )
        for name, limit in problem.limits.items()
    }


def planned_allocation(
    name: str,
    role: Role,
    problem: Problem,
    solution: Solution,
    *,
    metric: str,
    asked: str | None = None,
    seed: int | None = None,
) -> PlannedAllocation:
    """A solution as the plan keeps it.

    Where another objective than the problem's loss was minimised, its value is the predicted
    loss, and there is no bound, gap or status.

    Args:
        name: Name in the plan.
        role: Purpose in the plan.
        problem: The problem that was solved.
        solution: The answer.
        metric: Metric of the problem's losses, or name of the other objective.
        asked: Solver that was asked for; the one that did the work where not given.
        seed: Seed of a random allocation.
    """
    own = solution.objective == "loss"
    return PlannedAllocation(
        name=name,
        role=role,
        allocation=solution.allocation,
        costs=dict(solution.costs),
        metric=metric,
        predicted_loss=solution.objective_value,
        bound=solution.bound if own else None,
        gap=solution.gap if own else None,
        status=solution.status if own else None,
        asked=asked or solution.solver,
        solver=solution.solver,
        objective=metric if own else solution.objective,
        objective_value=solution.objective_value,
        wall_s=solution.wall_s,
        seed=seed,
        budgets=problem.limits,
    )


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """A plan as plain JSON values, as its file holds it but for the header."""
    return json.loads(json.dumps(_fields(plan), default=_plain, allow_nan=False))


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as JSON, under a temporary name first, so no half of one is ever seen.

    Raises:
        OSError: If the folder cannot be written to.
        ValueError: If a number is NaN or infinite.
    """
    KIND.write_json(path, _fields(plan), _plain)


@check_kinds
def read_plan(path: Path | str, check: Callable[[Plan], None] = lambda plan: None) -> Plan:
    """Read a plan.

    Args:
        path: The file.
        check: Further check of what was read. It comes before the check of the content hash,
            whose error only names the field.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If the file is not a plan, is of a version this jmpq does not read, a
            field is missing or wrong, or was changed after it was written; the message names
            the file and the field.
    """
    data, changed = KIND.read_edited(path := Path(path))
    try:
        check_json(list[str], data.get("choices", []), "choices of the plan")
        fields = fields_of(Plan, data, "the plan")
        fields |= {
            "layers": tuple(data["layers"]),
            "choices": tuple(Choice.parse(text) for text in data["choices"]),
            "rules": tuple(data["rules"]),
            "excluded": tuple(data.get("excluded", ())),
            "budgets": {
                name: PlannedBudget(**fields_of(PlannedBudget, row, f"budget {name!r}"))
                for name, row in data["budgets"].items()
            },
            "allocations": tuple(_allocation(row) for row in data["allocations"]),
        }
        plan = Plan(**fields)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise KIND.unusable(path, error) from error
    check(plan)
    KIND.refuse_changed(path, changed)
    return plan


def _allocation(row: Any) -> PlannedAllocation:
    name = row.get("name") if isinstance(row, dict) else None
    what = "an allocation without a name" if name is None else f"allocation {name!r}"
    fields = fields_of(PlannedAllocation, row, what)
    check_json(dict[str, str], row["allocation"], f"allocation of {what}")
    try:
        fields["allocation"] = Allocation.from_json(row["allocation"])
    except ValueError as error:
        raise ValueError(f"allocation {name!r}: {error}") from error
    return PlannedAllocation(**fields)


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _plain(value: object) -> object:
    """JSON for what JSON does not know: choices and allocations by label, records by field."""
    if isinstance(value, Allocation):
        return value.to_json()
    if isinstance(value, Choice):
        return value.label
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    raise TypeError(f"{type(value).__name__} cannot be written to a plan.")
