"""The plan file: allocations by name with their proofs, readable without jmpq."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from jmpq.files import write_text
from jmpq.formats import Choice
from jmpq.problem.problem import Problem
from jmpq.problem.solution import Solution, Status

SCHEMA = "jmpq/plan"
VERSION = 1

Role = Literal["solution", "baseline", "sweep", "single", "random"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedBudget:
    """A budget: its limit, how it was asked for, and the range of the cost."""

    limit: float
    asked: str
    least: float
    most: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedAllocation:
    """One allocation: who found it, what it promises, the bits of every searched layer.

    Losses are nats per example. `bound`, `gap` and `status` are None where no solver stands
    behind the allocation. `solver` is who was asked (exact, greedy, ...), `back_end` what did
    it. `predictions` holds the loss that every metric predicts.
    """

    name: str
    role: Role
    bits: dict[str, Choice]
    costs: dict[str, float]
    metric: str | None = None
    solver: str | None = None
    back_end: str | None = None
    status: Status | None = None
    predicted_loss: float | None = None
    bound: float | None = None
    gap: float | None = None
    wall_s: float | None = None
    seed: int | None = None
    budgets: dict[str, float] = dataclasses.field(default_factory=dict)
    predictions: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolveTime:
    """How long one solve took, for the figure of solve time against layers."""

    layers: int
    choices: int
    solver: str
    wall_s: float
    gap: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `plan.json` holds; `excluded` layers stay unquantized."""

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
    solve_times: tuple[SolveTime, ...] = ()

    def __post_init__(self) -> None:
        names = [allocation.name for allocation in self.allocations]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(
                f"Two allocations of the plan are called {twice[0]!r}: rename one."
            )
        for allocation in self.allocations:
            if wrong := set(allocation.bits) ^ set(self.layers):
                raise ValueError(
                    f"Allocation {allocation.name!r} and the plan disagree on layers: "
                    f"{', '.join(sorted(wrong))}."
                )


def planned_budgets(problem: Problem) -> dict[str, PlannedBudget]:
    """The budgets of a problem as the plan keeps them."""
    return {
        name: PlannedBudget(
            limit=limit,
            asked=problem.asked.get(name, f"{limit:.17g}"),
            least=problem.range(name)[0],
            most=problem.range(name)[1],
        )
        for name, limit in problem.budgets.items()
    }


def planned_allocation(
    name: str,
    role: Role,
    problem: Problem,
    solution: Solution,
    *,
    metric: str | None,
    predictions: Mapping[str, float],
    solver: str | None = None,
    seed: int | None = None,
) -> PlannedAllocation:
    """A solution as the plan keeps it; `solver` is the solution's own where not given.

    Where another objective than the problem's loss was minimised, its value is the predicted
    loss, and there is no bound, gap or status.
    """
    own = solution.objective == "loss"
    return PlannedAllocation(
        name=name,
        role=role,
        bits=problem.bits(solution.choice),
        costs=dict(solution.costs),
        metric=metric,
        solver=solver or solution.solver,
        back_end=solution.solver,
        status=solution.status if own else None,
        predicted_loss=solution.loss if own else solution.objective_value,
        bound=solution.bound if own else None,
        gap=solution.gap if own else None,
        wall_s=solution.wall_s,
        seed=seed,
        budgets=dict(problem.budgets),
        predictions=dict(predictions),
    )


def allocation_from_plan(plan: Plan, name: str) -> dict[str, Choice]:
    """The bits of every searched layer in one allocation of a plan.

    Raises:
        ValueError: If the plan has no allocation of that name.
    """
    for allocation in plan.allocations:
        if allocation.name == name:
            return dict(allocation.bits)
    names = [allocation.name for allocation in plan.allocations]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"The plan has no allocation {name!r}.{hint} It has {_some(names) or 'none'}."
    )


def _some(names: list[str], most: int = 12) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as JSON, under a temporary name first, so no half of one is ever seen.

    Raises:
        OSError: If the folder cannot be written to.
        ValueError: If a number is NaN or infinite.
    """
    fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    record = {"schema": SCHEMA, "version": VERSION, **fields}
    write_text(path, json.dumps(record, default=_plain, allow_nan=False, indent=1) + "\n")


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ValueError: If the file is no plan, of a version this jmpq does not read, or a field
            is missing or wrong; the message names the file and the field.
        OSError: If the file cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} is no plan: expected schema {SCHEMA!r}, got {schema!r}.")
    if data.get("version") != VERSION:
        raise ValueError(
            f"{path} is a plan of version {data.get('version')!r}, this jmpq reads version "
            f"{VERSION}: write it again with `jmpq solve`."
        )
    try:
        fields = _known(Plan, data, "the plan", ignore=("schema", "version"))
        fields |= {
            "layers": tuple(data["layers"]),
            "choices": tuple(Choice.parse(text) for text in data["choices"]),
            "rules": tuple(data["rules"]),
            "excluded": tuple(data.get("excluded", ())),
            "budgets": {
                name: PlannedBudget(**_known(PlannedBudget, row, f"budget {name!r}"))
                for name, row in data["budgets"].items()
            },
            "allocations": tuple(_allocation(row) for row in data["allocations"]),
            "solve_times": tuple(
                SolveTime(**_known(SolveTime, row, "a solve time"))
                for row in data.get("solve_times", ())
            ),
        }
        return Plan(**fields)
    except KeyError as error:
        raise ValueError(f"{path}: the plan has no field {error.args[0]!r}.") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _allocation(row: dict[str, Any]) -> PlannedAllocation:
    name = row.get("name", "without a name")
    fields = _known(PlannedAllocation, row, f"allocation {name!r}")
    for key, accepted in (("role", get_args(Role)), ("status", (*get_args(Status), None))):
        if fields.get(key) not in accepted:
            raise ValueError(
                f"allocation {name!r} has {key} {fields.get(key)!r}: expected one of "
                f"{accepted}."
            )
    fields["bits"] = {layer: Choice.parse(text) for layer, text in row["bits"].items()}
    return PlannedAllocation(**fields)


def _known(
    kind: type, row: dict[str, Any], what: str, ignore: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The fields of a dataclass in a JSON object; refuses missing and unknown ones."""
    fields = dataclasses.fields(kind)
    known = {field.name for field in fields}
    if unknown := sorted(set(row) - known - set(ignore)):
        raise ValueError(f"{what} has unknown fields: {', '.join(unknown)}.")
    missing = dataclasses.MISSING
    for field in fields:
        required = field.default is missing and field.default_factory is missing
        if required and field.name not in row:
            raise ValueError(f"{what} has no field {field.name!r}.")
    return {key: value for key, value in row.items() if key in known}


def _plain(value: object) -> object:
    """JSON for what JSON does not know: choices by label, records by field."""
    if isinstance(value, Choice):
        return value.label
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} cannot be written to a plan.")
