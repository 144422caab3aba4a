"""Figure 11: how far each solver is from the proven optimum, and how long it takes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jmpq.report.artifacts import Json
from jmpq.report.measured import gap_rows
from jmpq.report.style import (
    PALETTE,
    NothingToDrawError,
    cost_named,
    metric_colors,
    metric_name,
    new_figure,
    solver_marker,
    style,
)


def gap_figure(plan: Json) -> Figure:
    """Draw the optimality gap against the budget, and solve time against layers.

    The gap is that of `gap_rows`, against the best bound that any solver proved, in
    percent of the loss; the axis is linear below 0.1 % and logarithmic above. Solve times are
    the plan's ``solve_times``, one line per solver and number of choices. A panel without
    data is left out.

    Raises:
        NothingToDrawError: If the plan has neither.
    """
    cost, series = _gap_series(plan)
    times = _time_series(plan)
    if not series and not times:
        raise NothingToDrawError("the plan has no proven bound and no solve times")
    with style():
        figure = new_figure(3.1)
        panels = figure.subplots(1, bool(series) + bool(times), squeeze=False)[0]
        if series:
            _draw_gaps(panels[0], series, cost)
        if times:
            _draw_times(panels[-1], times)
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


def _time_series(plan: Json) -> dict[tuple[str, int], list[tuple[float, float]]]:
    series: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in plan.get("solve_times", ()):
        points = series.setdefault((row["asked"], row["choices"]), [])
        points.append((float(row["layers"]), float(row["wall_s"])))
    return {key: sorted(points) for key, points in sorted(series.items())}


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


def _draw_times(
    axes: Axes, series: Mapping[tuple[str, int], Sequence[tuple[float, float]]]
) -> None:
    solvers = list(dict.fromkeys(solver for solver, _ in series))
    styles = ("-", "--", ":", "-.")
    counts = sorted({choices for _, choices in series})
    for (solver, choices), points in series.items():
        axes.plot(
            [n for n, _ in points], [max(seconds, 1e-6) for _, seconds in points],
            marker=solver_marker(solver), ms=3.6, ls=styles[counts.index(choices) % 4],
            color=PALETTE[solvers.index(solver) % len(PALETTE)],
            label=f"{solver}, {choices} choices a layer",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({n for points in series.values() for n, _ in points})
    kept: list[float] = []
    for n in ticks:
        if not kept or n / kept[-1] > 1.35:
            kept.append(n)
    axes.set_xticks(kept, [f"{n:g}" for n in kept])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel("number of layers")
    axes.set_ylabel("solve time (s)")
    axes.set_title("solve time", loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=1)
