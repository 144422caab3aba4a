"""What was measured beside what was predicted: joined, compared, and set against bounds."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jmpq.report.contents import Json
from jmpq.run.planning.recommendation import Measured

Split = Literal["calibration", "evaluation"]
Target = Literal["increase", "kl"]
Group = Literal["single", "joint"]


def outcome(evaluation: Json, name: str, split: Split) -> Measured | None:
    """What was measured of an allocation on a split, or None where nothing was."""
    row = evaluation["measured"].get(name, {}).get(split)
    return None if row is None else Measured.read(row, evaluation["float"].get(split, {}))


def number(value: float | int | None) -> float:
    """A JSON number as a float; NaN for null or absent."""
    return math.nan if value is None else float(value)


def kind(allocation: Json) -> str:
    """What an allocation is in a figure: its role, or which baseline it is.

    ``"solution"``, ``"sweep"``, ``"single"``, ``"random"`` (drawn jointly without a budget),
    or of a baseline the solver that was asked for: ``"uniform"``, ``"random baseline"``,
    ``"reversed"``, ...
    """
    if allocation["role"] != "baseline":
        return allocation["role"]
    asked = str(allocation.get("asked") or allocation["name"].split("/")[0])
    return "random baseline" if asked == "random" else asked


def within_budgets(allocation: Json, plan: Json) -> bool:
    """Whether an allocation's costs meet every budget of the plan."""
    costs = allocation["costs"]
    return all(
        costs.get(name, math.inf) <= budget["limit"] * (1 + 1e-12)
        for name, budget in plan["budgets"].items()
    )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """One metric's predictions beside the measurement, over one group of allocations.

    Attributes:
        names: Allocations with both numbers, in the order of the plan.
        kinds: Kind of each (`kind`).
        predicted: The metric's sum of single-layer losses.
        measured: Measured increase of the loss, or KL divergence, nats per example.
        sem: Standard error of `measured`, NaN where unknown.
        counted: Measurements that `rho` and `ratio` are taken over: the single layers; of the
            joint allocations those drawn at random without a budget, since an allocation
            chosen by a metric flatters it (all, where fewer than three were drawn).
        rho: Spearman rank correlation, NaN below three points or for a constant.
        ratio: Median of measured/predicted over counted points with predicted > 0; NaN for
            a metric that isn't in nats.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    predicted: Float[np.ndarray, " points"]
    measured: Float[np.ndarray, " points"]
    sem: Float[np.ndarray, " points"]
    counted: np.ndarray
    rho: float
    ratio: float


def compare(
    plan: Json,
    evaluation: Json,
    *,
    metric: str,
    group: Group,
    target: Target,
    split: Split,
    relative: Collection[str] = (),
) -> Comparison:
    """Join the predictions of a metric with what was measured.

    Points that aren't finite on both sides are left out; see `Comparison`. Metrics in
    `relative` are not in nats per example, so they get no ratio.
    """
    rows: list[tuple[str, str, float, float, float]] = []
    for allocation in plan["allocations"]:
        if (allocation["role"] == "single") != (group == "single"):
            continue
        found = outcome(evaluation, allocation["name"], split)
        predicted = number(allocation.get("predictions", {}).get(metric))
        if found is None or not math.isfinite(predicted):
            continue
        value, sem = (
            (found.increase, found.increase_sem)
            if target == "increase"
            else (found.kl, found.kl_sem)
        )
        if math.isfinite(value):
            rows.append((allocation["name"], kind(allocation), predicted, value, sem))
    kinds = tuple(row[1] for row in rows)
    predicted, measured, sem = np.array([row[2:] for row in rows]).reshape(-1, 3).T
    counted = np.array([k == "random" for k in kinds], dtype=bool)
    if group == "single" or counted.sum() < 3:
        counted = np.ones(len(rows), dtype=bool)
    return Comparison(
        names=tuple(row[0] for row in rows),
        kinds=kinds,
        predicted=predicted,
        measured=measured,
        sem=sem,
        counted=counted,
        rho=rank_correlation(predicted[counted], measured[counted]),
        ratio=math.nan
        if metric in relative
        else median_ratio(predicted[counted], measured[counted]),
    )


def rank_correlation(
    predicted: Float[np.ndarray, " points"], measured: Float[np.ndarray, " points"]
) -> float:
    """Spearman's rank correlation; NaN below three points or where one side is constant."""
    if len(predicted) < 3 or np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return math.nan
    if np.isnan(predicted).any() or np.isnan(measured).any():
        return math.nan
    return float(np.corrcoef(_ranks(predicted), _ranks(measured))[0, 1])


def _ranks(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Ranks from 1; equal values share their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def median_ratio(
    predicted: Float[np.ndarray, " points"], measured: Float[np.ndarray, " points"]
) -> float:
    """Median of measured/predicted over points with a positive prediction, NaN if none."""
    positive = predicted > 0
    if not positive.any():
        return math.nan
    return float(np.median(measured[positive] / predicted[positive]))


def metrics_of(plan: Json) -> tuple[str, ...]:
    """The metrics that the plan's allocations carry predictions of, in order."""
    found: dict[str, None] = {}
    for allocation in plan["allocations"]:
        found.update(dict.fromkeys(allocation.get("predictions", {})))
    return tuple(found)


def gap_to(allocation: Json, bound: float) -> float:
    """The plan's optimality gap, taken against another lower bound than the solver's own.

    The gap is (loss − bound)/scale, where scale is that of `Solution.gap`: the loss itself,
    as far as losses aren't negative. So it is the part of the loss that might be saved.
    NaN where the loss or the bound is unknown.
    """
    loss, own = number(allocation.get("predicted_loss")), number(allocation.get("bound"))
    gap = number(allocation.get("gap"))
    if not (math.isfinite(loss) and math.isfinite(bound)):
        return math.nan
    if loss <= bound:
        return 0.0
    if gap > 0 and own < loss:
        return gap * (loss - bound) / (loss - own)
    return (loss - bound) / abs(loss) if loss else math.nan


def gap_rows(plan: Json) -> list[dict[str, Any]]:
    """Every solver's gap at every budget, against the best bound anybody proved there.

    Solutions and sweeps with the same metric and the same budgets share one objective, so
    the largest of their lower bounds holds for all of them: a greedy answer is measured
    against the exact solver's bound.
    """
    chosen = [
        allocation
        for allocation in plan["allocations"]
        if allocation["role"] in ("solution", "sweep") and allocation.get("metric")
    ]
    best: dict[tuple[Any, ...], float] = {}
    for allocation in chosen:
        bound = number(allocation.get("bound"))
        if math.isfinite(bound):
            key = _problem(allocation)
            best[key] = max(bound, best.get(key, -math.inf))
    return [
        {
            "name": allocation["name"],
            "metric": allocation["metric"],
            "asked": allocation["asked"],
            **{f"budget_{key}": limit for key, limit in allocation["budgets"].items()},
            "predicted_loss": number(allocation.get("predicted_loss")),
            "best_bound": best.get(_problem(allocation), math.nan),
            "gap": gap_to(allocation, best.get(_problem(allocation), math.nan)),
            "wall_s": number(allocation.get("wall_s")),
        }
        for allocation in chosen
    ]


def _problem(allocation: Json) -> tuple[Any, ...]:
    return (allocation["metric"], *sorted(allocation["budgets"].items()))


def fidelity_split(plan: Json, evaluation: Json) -> Split:
    """Where prediction is compared: the evaluation split, unless allocations that no solver
    chose (single layers, random joint ones) were measured on the calibration split only.
    """  # noqa: D205
    roles = {a["name"]: a["role"] for a in plan["allocations"]}

    def count(split: Split) -> int:
        names = evaluated(plan, evaluation, split)
        return sum(roles[name] in ("single", "random") for name in names)

    return "evaluation" if count("evaluation") >= count("calibration") else "calibration"


def evaluated(plan: Json, evaluation: Json, split: Split) -> Sequence[str]:
    """Names of the plan's allocations that were measured on a split."""
    return [
        allocation["name"]
        for allocation in plan["allocations"]
        if outcome(evaluation, allocation["name"], split) is not None
    ]
