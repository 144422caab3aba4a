"""What a plan says of its allocations, recomputed from the layer table and the losses.

An allocation whose bits were edited by hand keeps costs, predictions and a proof that are not
its own. Everything here that follows from the choices is computed again; what disagrees is
refused with both values.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import column_table
from jmpq.formats import UNQUANTIZED
from jmpq.network.layers import Layer
from jmpq.problem.build import LossTable
from jmpq.problem.costs import COSTS, Cost, Overhead
from jmpq.problem.plan import Plan, PlannedAllocation
from jmpq.problem.solution import OPTIMALITY

JOINT = 1e-3  # difference of two predictions of one allocation by float32 logits
ROUNDING = 1e-6  # relative difference of two sums of the same numbers; losses may be float32


def check_plan(
    plan: Plan,
    layers: Sequence[Layer],
    overhead: Overhead,
    tables: Mapping[str, Sequence[LossTable]],
    *,
    unquantized_parameters: int,
    costs: Mapping[str, Cost] | None = None,
) -> None:
    """Refuse a plan that does not agree with itself or with what it was made from.

    Args:
        plan: The plan.
        layers: The layer table.
        overhead: Scales and zero points, in the order of `layers`.
        tables: Losses of every metric; several where a metric can be read in several ways
            (with its first-order term), of which one must agree.
        unquantized_parameters: Parameters outside the layer table.
        costs: Costs that the plan was made with, by name; `COSTS` by default.

    Raises:
        ValueError: If it does not; the message names the allocation, what disagrees and both
            values.
    """
    for planned in plan.allocations:
        for layer, choice in planned.allocation.items():
            if choice not in (*plan.choices, UNQUANTIZED):
                raise _wrong(planned, f"layer {layer!r}", choice.label, "a candidate")
        _check_proof(planned)
    _check_costs(
        plan, layers, overhead, unquantized_parameters, COSTS if costs is None else costs
    )
    for metric, readings in tables.items():
        _check_predictions(plan, metric, readings)
    for planned in plan.allocations:
        if planned.status is None or planned.metric is None:
            continue
        if (readings := tables.get(planned.metric)) is not None:
            _check_gap(planned, readings)


def _check_costs(
    plan: Plan,
    layers: Sequence[Layer],
    overhead: Overhead,
    unquantized_parameters: int,
    costs: Mapping[str, Cost],
) -> None:
    """Costs are those of the choices, and a solution holds its budgets."""
    index = {layer.name: row for row, layer in enumerate(layers)}
    rows = [index[name] for name in plan.layers]
    searched, excluded = [layers[row] for row in rows], set(index) - set(plan.layers)
    outside = [layer for layer in layers if layer.name in excluded]
    choices = (*plan.choices, UNQUANTIZED)
    every = [planned.allocation for planned in plan.allocations]
    columns = column_table(plan.layers, choices, every)
    for name, cost in costs.items():
        table = cost.table(searched, choices, overhead.part(rows))
        constant = cost.constant(outside, unquantized_parameters)
        total = functools.partial(_total, cost, table, constant)
        for planned, own in zip(plan.allocations, columns, strict=True):
            actual, limit = total(own), planned.budgets.get(name)
            stated = planned.costs.get(name, actual)
            if math.isnan(actual) and name not in planned.costs:
                continue  # of a choice whose cost is not known
            if not _close(stated, actual):
                labels = {
                    row: f"{plan.layers[row]!r} has {choices[own[row]].label}, stated is the "
                    f"cost of {choices[other[row]].label}"
                    for row, other in _other_choices(own, len(choices))
                    if _close(total(other), stated)
                }
                hint = f": layer {' or '.join(list(labels.values())[:2])}" if labels else ""
                expected = f"{actual:.10g} for its bits{hint}"
                raise _wrong(planned, f"cost {name}", stated, expected)
            over = limit is not None and actual > limit and not _close(actual, limit)
            if over and planned.role in ("solution", "sweep"):
                raise _wrong(
                    planned, f"cost {name}", actual, f"at most its budget {limit:.10g}"
                )


def _total(
    cost: Cost, table: Float[np.ndarray, "_ _"], constant: float, own: Int[np.ndarray, " _"]
) -> float:
    """A cost of the allocation of some columns."""
    return cost.total(np.append(table[np.arange(len(own)), own], constant))


def _other_choices(
    own: Int[np.ndarray, " _"], choices: int
) -> Iterator[tuple[int, Int[np.ndarray, " _"]]]:
    """Every allocation with another choice in one layer, and the row of that layer."""
    for row, column in itertools.product(range(len(own)), range(choices)):
        if column != own[row]:
            other = own.copy()
            other[row] = column
            yield row, other


def _check_proof(planned: PlannedAllocation) -> None:
    """Bound, gap and status follow from each other and from the predicted loss."""
    joint = planned.predictions.get(planned.metric or "")  # by any predictor
    stated = planned.predicted_loss
    if (
        joint is not None
        and stated is not None
        and not math.isclose(stated, joint, rel_tol=JOINT, abs_tol=JOINT)
    ):
        raise _wrong(planned, "predicted_loss", stated, f"{joint:.10g}, as it is predicted")
    proof = {"bound": planned.bound, "gap": planned.gap, "status": planned.status}
    if (missing := [name for name, value in proof.items() if value is None]) == list(proof):
        return
    loss, bound, gap = planned.predicted_loss, planned.bound, planned.gap
    if missing or loss is None or bound is None or gap is None:
        raise _wrong(planned, missing[0] if missing else "predicted_loss", None, "a value")
    size = max(abs(loss), abs(bound))
    if bound > loss + OPTIMALITY * size:
        raise _wrong(planned, "bound", bound, f"at most its predicted loss {loss:.10g}")
    most = (loss - bound) / size if size else 0.0
    if not -OPTIMALITY <= gap <= most * (1 + ROUNDING) + OPTIMALITY:
        raise _wrong(planned, "gap", gap, f"0 to {most:.4g} for its loss and bound")
    status = "optimal" if gap <= OPTIMALITY else "feasible"
    if planned.status != status:
        raise _wrong(planned, "status", planned.status, f"{status} for a gap of {gap:.4g}")


def _check_gap(planned: PlannedAllocation, tables: Sequence[LossTable]) -> None:
    """The gap is not less than the losses of the layers allow (see `Solution.gap`)."""
    loss, bound, gap = planned.predicted_loss, planned.bound, planned.gap
    assert loss is not None
    assert bound is not None
    assert gap is not None
    largest = max(float(np.abs(table.losses).max(axis=1).sum()) for table in tables)
    scale = max(largest, abs(loss), abs(bound))
    least = (loss - bound) / scale if scale else 0.0
    if gap < least * (1 - ROUNDING) - OPTIMALITY:
        raise _wrong(planned, "gap", gap, f"at least {least:.4g} for its loss and bound")


def _check_predictions(plan: Plan, metric: str, readings: Sequence[LossTable]) -> None:
    """Every prediction by a metric is the sum of its losses, in one of its readings."""
    every = [planned.allocation for planned in plan.allocations]
    sums = []
    for table in readings:
        losses = np.append(np.asarray(table.losses), np.zeros((len(table.layers), 1)), axis=1)
        columns = column_table(table.layers, (*table.choices, UNQUANTIZED), every)
        sums.append(losses[np.arange(len(table.layers)), columns].sum(axis=1))
    slack = ROUNDING * max(float(np.abs(each).max()) for each in sums)
    for number, planned in enumerate(plan.allocations):
        stated = {"prediction": planned.predictions.get(metric)}
        if planned.metric == metric:
            stated["predicted_loss"] = planned.predicted_loss
        for name, value in stated.items():
            near = [value is None or abs(value - each[number]) <= slack for each in sums]
            if not any(near):
                expected = f"{sums[0][number]:.10g} for its bits"
                raise _wrong(planned, f"{name} by {metric}", value, expected)


def _close(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-9)


def _wrong(planned: PlannedAllocation, what: str, value: object, expected: str) -> ValueError:
    shown = f"{value:.10g}" if isinstance(value, float) else value
    return ValueError(f"allocation {planned.name!r} has {what} {shown}, expected {expected}")
