"""Figure 11: how far each solver is from the proven optimum."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jmpq.report.contents import Json
from jmpq.report.measured import gap_rows
from jmpq.report.style import (
    NothingToDrawError,
    cost_named,
    metric_colors,
    metric_name,
    new_figure,
    solver_marker,
    style,
)


def gap_figure(plan: Json) -> Figure:
    """Draw the optimality gap against the budget.

    The gap is that of `gap_rows`, against the best bound that any solver proved, in
    percent of the loss; the axis is linear below 0.1 % and logarithmic above.

    Raises:
        NothingToDrawError: If the plan has no proven bound.
    """
    cost, series = _gap_series(plan)
    if not series:
        raise NothingToDrawError("the plan has no proven bound")
    with style():
        figure = new_figure(3.1)
        _draw_gaps(figure.subplots(), series, cost)
    return figure


def _gap_series(plan: Json) -> tuple[str, dict[tuple[str, str], list[tuple[float, float]]]]:
    """Points (budget, gap in percent) by metric and solver, over the commonest budget."""
    rows = [row for row in gap_rows(plan) if not math.isnan(row["gap"])]
    keys = [key for row in rows for key in row if key.startswith("budget_")]
    if not keys:
        return "", {}
    key = max(dict.fromkeys(keys), key=keys.count)
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if key in row:
            points = series.setdefault((row["metric"], row["asked"]), [])
            points.append((float(row[key]), 100 * row["gap"]))
    return key.removeprefix("budget_"), {k: sorted(set(v)) for k, v in sorted(series.items())}


def _draw_gaps(
    axes: Axes, series: Mapping[tuple[str, str], Sequence[tuple[float, float]]], cost: str
) -> None:
    colors = metric_colors(metric for metric, _ in series)
    largest = max(x for points in series.values() for x, _ in points)
    divisor, _ = cost_named(cost).scale(largest)
    for (metric, solver), points in series.items():
        axes.plot(
            [x / divisor for x, _ in points], [gap for _, gap in points],
            marker=solver_marker(solver), ms=3.6, color=colors[metric], mfc=colors[metric],
            ls="-" if solver == "exact" else (0, (2, 1.2)), clip_on=False, zorder=3,
            label=f"{solver} · {metric_name(metric)}",
        )  # fmt: skip
    axes.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    high = max(gap for points in series.values() for _, gap in points)
    axes.set_ylim(min(0.0, *(g for p in series.values() for _, g in p)), max(2 * high, 1.0))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_plain))
    axes.set_xlabel(f"budget: {cost_named(cost).label(largest)}")
    axes.set_ylabel("gap to the proven bound (%)")
    axes.set_title("optimality gap", loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, columnspacing=1.0)


def _plain(value: float, _position: Any) -> str:
    return f"{value:g}"
