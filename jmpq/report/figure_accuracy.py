"""Figure 10: measured accuracy against size and bit operations."""

import math
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jmpq.formats import Choice
from jmpq.report.contents import Json
from jmpq.report.measured import Split, kind, outcome
from jmpq.report.style import (
    OTHERS,
    NothingToDrawError,
    cost_named,
    metric_colors,
    metric_name,
    new_figure,
    solver_markers,
    style,
)

CLOSE = 6.0  # percentage points below the float network that the lower row shows
COSTS = ("size_bytes", "bops", "latency_s")  # drawn whether or not they have a budget


def accuracy_figure(
    plan: Json,
    evaluation: Json,
    *,
    split: Split = "evaluation",
    costs: Sequence[str] | None = None,
    latency: Mapping[str, float] = MappingProxyType({}),
) -> Figure:
    """Draw top-1 accuracy against each cost, with one standard error.

    Uniform allocations are labelled and those of the same activation bits joined by a
    line, random ones are a cloud, the solutions are large markers, and the solutions at
    other budgets a line per solver and metric. Dashed: the float network; dotted: the
    plan's budget. Where the solutions (but for destroyed networks) and the uppermost
    `CLOSE` percentage points fill less than half of the axis, a second row shows that part
    alone.

    Args:
        plan: The content of ``plan.json``.
        evaluation: The content of ``evaluation.json``.
        split: The examples the accuracy was measured on.
        costs: Costs of the allocations, one column each; `COSTS` and every cost with a budget
            where not given.
        latency: Measured seconds by name, drawn in the place of predicted ones.

    Raises:
        NothingToDrawError: If no joint allocation was measured on the split.
    """
    points = accuracy_points(plan, evaluation, split)
    if latency:
        points = [_with_latency(point, latency) for point in points]
    costs = list(dict.fromkeys((*COSTS, *plan["budgets"]))) if costs is None else costs
    costs = [cost for cost in costs if any(cost in point["costs"] for point in points)]
    if not points or not costs:
        raise NothingToDrawError(f"no joint allocation was measured on the {split} split")
    reference = evaluation["float"].get(split, {}).get("top1")
    values = [point["top1"] for point in points]
    top = max(values) if reference is None else max(*values, 100 * reference)
    near = [
        p["top1"] for p in points if p["kind"] == "solution" and p["top1"] > top - 3 * CLOSE
    ]
    floor = min([top - CLOSE, *(x - 1.0 for x in near)])  # destroyed networks stay below
    spread = top - min(values) > 2 * (top - floor)
    with style():
        figure = new_figure(2.6 * (1 + spread) + 0.9)
        panels = figure.subplots(1 + spread, len(costs), squeeze=False, sharey="row")
        for row, panel_row in enumerate(panels):
            for axes, cost in zip(panel_row, costs, strict=True):
                largest = float(max(p["costs"].get(cost, 0.0) for p in points))
                divisor, _ = cost_named(cost).scale(largest)
                _draw_panel(axes, points, cost, divisor, plan, reference)
                low, high = (floor, math.inf) if row == spread else (-math.inf, floor)
                _label_uniform(axes, points, cost, divisor, low if spread else -math.inf, high)
                if row == spread:
                    axes.set_xlabel(cost_named(cost).label(largest))
            panel_row[0].set_ylabel("top-1 accuracy (%)")
        if spread:
            panels[1, 0].set_ylim(floor, top + 0.06 * (top - floor))
            panels[1, 0].set_title("the upper part, enlarged", loc="left")
        handles, names = _all_handles(panels[-1, 0])
        figure.legend(handles, names, loc="outside lower center", ncols=3, columnspacing=1.4)
    return figure


def accuracy_points(plan: Json, evaluation: Json, split: Split) -> list[dict[str, Any]]:
    """Joint allocations measured on a split; `top1` and `top1_sem` in percent."""
    points = []
    for allocation in plan["allocations"]:
        found = outcome(evaluation, allocation["name"], split)
        if allocation["role"] == "single" or found is None or not math.isfinite(found.top1):
            continue
        points.append(
            {
                "name": allocation["name"],
                "kind": kind(allocation),
                "metric": allocation.get("metric"),
                "asked": allocation.get("asked"),
                "a_bits": _activation_bits(allocation),
                "costs": allocation["costs"],
                "top1": 100 * found.top1,
                "top1_sem": 100 * found.top1_sem,
            }
        )
    return points


def _with_latency(point: dict[str, Any], latency: Mapping[str, float]) -> dict[str, Any]:
    """A point with its measured latency, or with none."""
    costs = {name: value for name, value in point["costs"].items() if name != "latency_s"}
    if point["name"] in latency:
        costs["latency_s"] = latency[point["name"]]
    return point | {"costs": costs}


def _activation_bits(allocation: Json) -> int:
    """The activation bits that most layers have."""
    bits = [Choice.parse(label).a_bits for label in allocation["allocation"].values()]
    return statistics.mode(bits)


def _draw_panel(
    axes: Axes,
    points: Sequence[Json],
    cost: str,
    divisor: float,
    plan: Json,
    reference: float | None,
) -> None:
    points = sorted((p for p in points if cost in p["costs"]), key=lambda p: p["costs"][cost])
    clouds = {"random": ("#c9dcea", "random, no budget"), "random baseline":
              ("#9a9a9a", "random at the budget")}  # fmt: skip
    for name, (color, label) in clouds.items():
        chosen = [p for p in points if p["kind"] == name]
        _errors(axes, chosen, cost, divisor, fmt="o", ms=3, color=color, label=label)
    _draw_lines(axes, points, cost, divisor)
    uniform = [p for p in points if p["kind"] == "uniform"]
    for number, bits in enumerate(sorted({p["a_bits"] for p in uniform})):
        chosen = [p for p in uniform if p["a_bits"] == bits]
        label = None if number else "uniform"
        _errors(axes, chosen, cost, divisor, fmt="s-", ms=4, lw=0.8, color="k", mfc="w",
                label=label)  # fmt: skip
    drawn = {*clouds, "uniform", "solution", "sweep"}
    for other, marker in zip(sorted({p["kind"] for p in points} - drawn), "vPX*", strict=False):
        chosen = [p for p in points if p["kind"] == other]
        _errors(axes, chosen, cost, divisor, fmt=marker, ms=4.5, color="#555555", label=other)
    if reference is not None:
        axes.axhline(100 * reference, ls="--", lw=0.9, color="k", label="float network")
    if cost in plan["budgets"]:
        limit = plan["budgets"][cost]["limit"] / divisor
        axes.axvline(limit, ls=":", lw=0.9, color="k", label="budget")


def _label_uniform(
    axes: Axes, points: Sequence[Json], cost: str, divisor: float, low: float, high: float
) -> None:
    """Name the uniform points with low ≤ accuracy < high; fewest activation bits left.

    A name that would overprint another is left out.
    """
    uniform = [p for p in points if p["kind"] == "uniform" and cost in p["costs"]]
    fewest = min((p["a_bits"] for p in uniform), default=0)
    axes.margins(x=0.14)
    shown = [p for p in uniform if low <= p["top1"] < high]
    spans = [
        max(np.ptp([value(p) for p in points if cost in p["costs"]]), 1e-12)
        for value in (lambda p: p["costs"][cost], lambda p: min(max(p["top1"], low), high))
    ]
    named: list[tuple[float, float]] = []
    for p in shown:
        place = p["costs"][cost] / spans[0], p["top1"] / spans[1]
        near = [abs(x - place[0]) < 0.09 and abs(y - place[1]) < 0.05 for x, y in named]
        if not any(near):
            named.append(place)
            left = p["a_bits"] == fewest and len({p["a_bits"] for p in uniform}) > 1
            axes.annotate(
                p["name"].split("/")[-1], (p["costs"][cost] / divisor, p["top1"]),
                xytext=(-4 if left else 4, -7), textcoords="offset points", fontsize=6,
                ha="right" if left else "left", clip_on=True,
            )  # fmt: skip


def _draw_lines(axes: Axes, points: Sequence[Json], cost: str, divisor: float) -> None:
    """The solvers: a line over all budgets and a large marker at the plan's own."""
    colors = metric_colors(p["metric"] for p in points if p["metric"])
    pairs = sorted({(p["metric"] or "", p["asked"] or "") for p in points
                    if p["kind"] in ("solution", "sweep")})  # fmt: skip
    markers = solver_markers(solver for _, solver in pairs)
    for metric, solver in pairs:
        mine = [p for p in points if (p["metric"] or "", p["asked"] or "") == (metric, solver)]
        color, marker = colors.get(metric, OTHERS), markers[solver]
        dash = "-" if solver == "exact" else (0, (2, 1.2))
        label = f"{solver}, {metric_name(metric)}"
        line = [p for p in mine if p["kind"] in ("sweep", "solution")]
        _errors(axes, line, cost, divisor, fmt=marker, ls=dash, ms=2.6, lw=0.9, color=color)
        solution = [p for p in mine if p["kind"] == "solution"]
        look = {"ms": 6, "color": color, "mec": "k", "mew": 0.7, "zorder": 4}
        _errors(axes, solution, cost, divisor, fmt=marker, label=label, **look)


def _errors(axes: Axes, points: Sequence[Json], cost: str, divisor: float, **look: Any) -> None:
    if points:
        x = [p["costs"][cost] / divisor for p in points]
        sem = [0.0 if math.isnan(p["top1_sem"]) else p["top1_sem"] for p in points]
        axes.errorbar(x, [p["top1"] for p in points], sem, elinewidth=0.6, **look)


def _all_handles(axes: Axes) -> tuple[list[Any], list[str]]:
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: (", " not in names[i], i))
    return [handles[i] for i in order], [names[i] for i in order]
