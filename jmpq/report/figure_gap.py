"""Figure 11: how far each solver is from the proven optimum, and how long it takes."""

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
    solver_markers,
    style,
)


def gap_figure(plan: Json) -> Figure:
    """Draw the optimality gap, and the seconds of every solver, against the budget.

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
        gaps, seconds = figure.subplots(1, 2)
        _draw(gaps, series, cost, 1)
        _draw(seconds, series, cost, 2)
        gaps.set_yscale("symlog", linthresh=0.1, linscale=0.5)
        every = [point[1] for points in series.values() for point in points]
        gaps.set_ylim(min(0.0, *every), max(2 * max(every), 1.0))
        gaps.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_plain))
        gaps.set_ylabel("gap to the proven bound (%)")
        gaps.set_title("optimality gap", loc="left")
        gaps.legend(loc="upper left", bbox_to_anchor=(0.0, -0.22), ncols=2, columnspacing=1.0)
        seconds.set_yscale("log")
        seconds.set_ylabel("time (s)")
        seconds.set_title("time to solve", loc="left")
    return figure


Point = tuple[float, float, float]  # budget, gap in percent, seconds


def _gap_series(plan: Json) -> tuple[str, dict[tuple[str, str], list[Point]]]:
    """Points by metric and solver, over the commonest budget."""
    rows = [row for row in gap_rows(plan) if not math.isnan(row["gap"])]
    keys = [key for row in rows for key in row if key.startswith("budget_")]
    if not keys:
        return "", {}
    key = max(dict.fromkeys(keys), key=keys.count)
    series: dict[tuple[str, str], list[Point]] = {}
    for row in rows:
        if key in row:
            points = series.setdefault((row["metric"], row["asked"]), [])
            points.append((float(row[key]), 100 * row["gap"], max(row["wall_s"], 1e-6)))
    return key.removeprefix("budget_"), {k: sorted(set(v)) for k, v in sorted(series.items())}


def _draw(
    axes: Axes, series: Mapping[tuple[str, str], Sequence[Point]], cost: str, column: int
) -> None:
    colors = metric_colors(metric for metric, _ in series)
    markers = solver_markers(solver for _, solver in series)
    largest = max(point[0] for points in series.values() for point in points)
    divisor, _ = cost_named(cost).scale(largest)
    for (metric, solver), points in series.items():
        axes.plot(
            [point[0] / divisor for point in points], [point[column] for point in points],
            marker=markers[solver], ms=3.6, color=colors[metric], mfc=colors[metric],
            ls="-" if solver == "exact" else (0, (2, 1.2)), clip_on=False, zorder=3,
            label=f"{solver}, {metric_name(metric)}",
        )  # fmt: skip
    axes.set_xlabel(f"budget: {cost_named(cost).label(largest)}")


def _plain(value: float, _position: Any) -> str:
    return f"{value:g}"
