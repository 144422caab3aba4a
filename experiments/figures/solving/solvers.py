"""Figures F11 and F17, tables T4 and T8, from `results/bench_solvers.json` alone."""

import math
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.older import mark_of, notes
from jmpq.report.style import PALETTE, new_figure, style

Json = dict[str, Any]
NAMES = {
    "core": "core (jmpq)",
    "dynamic_programming": "dynamic programming (jmpq)",
    "greedy": "greedy with LP bound (jmpq)",
    "HIGHS_plain": "cvxpy + HiGHS, plain",
    "HIGHS": "cvxpy + HiGHS, reduced by jmpq",
    "SCIP": "cvxpy + SCIP, reduced by jmpq",
    "CBC": "PuLP + CBC",
}
MARKERS = dict(zip(NAMES, "DsoXvP^", strict=True))
CLOSED = 1e-9  # gap up to which an allocation counts as optimal


def gap_figure(result: Json) -> Figure:
    """F11, left to right: one panel a problem, gap to the optimum against budget."""
    problems = list(dict.fromkeys(point["problem"] for point in result["curves"]))
    with style():
        figure = new_figure(2.3 * math.ceil(len(problems) / 2) + 0.4)
        panels = figure.subplots(math.ceil(len(problems) / 2), 2, squeeze=False).ravel()
        for axes, problem in zip(panels, problems, strict=False):
            _draw_gaps(axes, problem, [p for p in result["curves"] if p["problem"] == problem])
        for axes in panels[len(problems) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _draw_gaps(axes: Axes, problem: str, points: list[Json]) -> None:
    percents = [point["percent"] for point in points]
    variants = [v for v in points[0]["losses"] if v not in ("reversed", "random")]
    for color, variant in zip(PALETTE, variants, strict=False):
        gaps = [100 * relative_gap(point["losses"][variant], point) for point in points]
        line = "-" if not variant.endswith("stops") else (0, (2, 1.2))
        axes.plot(percents, gaps, ls=line, color=color, label=variant)
    bounds = [-100 * relative_gap(point["lp_bound"], point) for point in points]
    axes.fill_between(
        percents, 0, bounds, color="#bbbbbb", alpha=0.6, lw=0, label="LP bound below"
    )
    axes.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_title(problem, loc="left")
    axes.set_xlabel("budget (%, cheapest to dearest)")
    axes.set_ylabel("gap to the optimum (%)")


def water_filling_figure(result: Json) -> Figure:
    """F17: continuous bits against integer ones, loss over budget, one panel a problem.

    The line of continuous bits is the optimum of the fitted model c·4^(−bits), no bound: where
    it lies above the integer optimum, the losses do not follow the model.
    """
    points = [p for p in result["curves"] if p.get("water_filling") is not None]
    problems = list(dict.fromkeys(point["problem"] for point in points))
    with style():
        figure = new_figure(2.6)
        panels = figure.subplots(1, len(problems), squeeze=False).ravel()
        for axes, problem in zip(panels, problems, strict=True):
            mine = [point for point in points if point["problem"] == problem]
            percents = [point["percent"] for point in mine]
            lines = {
                "continuous bits, fitted model": ([p["water_filling"] for p in mine], "-"),
                "integer optimum": ([p["optimum"] for p in mine], "o"),
                "LP bound": ([p["lp_bound"] for p in mine], ":"),
                "greedy": ([p["losses"]["greedy"] for p in mine], "x"),
            }
            for color, (label, (losses, line)) in zip(PALETTE, lines.items(), strict=False):
                axes.plot(percents, losses, line, color=color, ms=3, label=label)
            axes.set_yscale("log")
            axes.set_title(problem, loc="left")
            axes.set_xlabel("budget (%, cheapest to dearest)")
        panels[0].set_ylabel("predicted loss increase (nats)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def relative_gap(loss: float, point: Json) -> float:
    """What a loss lies above the optimum, relative to it; rounding counts as nothing."""
    gap = (loss - point["optimum"]) / abs(point["optimum"])
    return 0.0 if abs(gap) <= CLOSED else gap


def time_figure(result: Json) -> Figure:
    """F11: seconds against layers, realistic tables with 8 choices; hollow where unproven."""
    rows = [
        row
        for row in result["rows"]
        if row["family"] == "realistic" and row["choices"] == 8 and "wall_s" in row
    ]
    with style():
        figure = new_figure(3.2, width=5.2)
        axes = figure.subplots()
        for color, solver in zip(PALETTE, NAMES, strict=False):
            mine = [row for row in rows if row["solver"] == solver]
            layers = sorted({row["layers"] for row in mine})
            times = [[row["wall_s"] for row in mine if row["layers"] == n] for n in layers]
            middle = [float(np.median(t)) for t in times]
            axes.plot(layers, middle, "-", color=color)
            axes.vlines(layers, [min(t) for t in times], [max(t) for t in times], color=color)
            proven = [
                all(row["status"] == "optimal" for row in mine if row["layers"] == n)
                for n in layers
            ]
            for closed, fill in ((True, color), (False, "white")):
                at = [k for k, p in enumerate(proven) if p == closed]
                axes.plot(
                    [layers[k] for k in at], [middle[k] for k in at], ls="none",
                    marker=MARKERS[solver], color=color, mfc=fill, ms=5,
                )  # fmt: skip
            axes.plot([], [], "-", marker=MARKERS[solver], color=color, label=NAMES[solver])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("layers, 8 choices each (hollow: no proof of optimality)")
        axes.set_ylabel("seconds a solve (median, range over seeds)")
        axes.legend(loc="upper left", fontsize=6.5)
    return figure


def ablation_table(result: Json) -> str:
    """T4: gap of every greedy variant over all budgets, problem by problem."""
    problems = list(dict.fromkeys(point["problem"] for point in result["curves"]))
    lines = [
        "Gap to the optimum over the budgets of F11: mean, worst (share of budgets at which "
        "the variant is optimal).",
        "",
        f"| allocation | {' | '.join(problems)} |",
        f"| --- |{' --- |' * len(problems)}",
    ]
    variants = [*result["curves"][0]["losses"], "LP bound"]
    for variant in variants:
        cells = []
        for problem in problems:
            points = [point for point in result["curves"] if point["problem"] == problem]
            gaps = np.array(
                [
                    relative_gap(point["losses"][variant], point)
                    if variant != "LP bound"
                    else -relative_gap(point["lp_bound"], point)
                    for point in points
                ]
            )
            share = f"{100 * (gaps == 0).mean():.0f} %"
            cells.append(f"{_percent(gaps.mean())}, {_percent(gaps.max())} ({share})")
        lines.append(f"| {variant}{mark_of(result, variant)} | {' | '.join(cells)} |")
    return "\n".join([*lines, *notes(mark_of(result, variant) for variant in variants)])


def time_table(result: Json) -> str:
    """Seconds of every solver, median over the seeds, and the largest proven gap."""
    timed = [row for row in result["rows"] if "wall_s" in row]
    solvers = [s for s in NAMES if any(row["solver"] == s for row in timed)]
    spread = _spread(timed)
    load = ", ".join(f"{x:.1f}" for x in result["machine"]["load"])
    lines = [
        f"Median over seeds; the slowest seed takes {np.median(spread):.2g} times as long as "
        f"the fastest in the median cell, {max(spread):.2g} times at most. "
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, load {load}.",
        "",
        f"| family | layers × choices | {' | '.join(NAMES[s] for s in solvers)} |",
        f"| --- | --- |{' --- |' * len(solvers)}",
    ]
    keys = dict.fromkeys((row["family"], row["layers"], row["choices"]) for row in timed)
    for family, layers, choices in keys:
        cells = []
        for solver in solvers:
            mine = [
                row
                for row in timed
                if (row["family"], row["layers"], row["choices"], row["solver"])
                == (family, layers, choices, solver)
            ]
            cells.append(_timed(mine))
        lines.append(
            f"| {family.replace('_', ' ')} | {layers:,} × {choices} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _spread(timed: list[Json]) -> list[float]:
    """Slowest over fastest seed of every cell that has several."""
    cells: dict[tuple, list[float]] = {}
    for row in timed:
        key = row["family"], row["layers"], row["choices"], row["solver"]
        cells.setdefault(key, []).append(row["wall_s"])
    return [max(walls) / min(walls) for walls in cells.values() if len(walls) > 1] or [1.0]


def _timed(rows: list[Json]) -> str:
    if not rows:
        return "-"
    text = f"{np.median([row['wall_s'] for row in rows]):.3g} s"
    gaps = [row["gap"] for row in rows]
    if any(row["loss"] is None for row in rows):
        return f"{text}, no answer"
    if None in gaps:
        return f"{text}, no bound"
    optimal = all(row["status"] == "optimal" for row in rows)
    return f"{text}, proven" if optimal else f"{text}, gap {max(gaps):.1e}"


def published_table(result: Json) -> str:
    """T8: the nine published HAWQ-V3 instances against the optimum and greedy variants."""
    variants = list(result["published"][0]["losses"])
    lines = [
        "| constraint | budget | published | optimum | "
        + " | ".join(f"{v}{mark_of(result, v)}" for v in variants)
        + " |",
        f"| --- | --- | --- | --- |{' --- |' * len(variants)}",
    ]
    for row in result["published"]:
        gaps = [_percent(relative_gap(row["losses"][v], row)) for v in variants]
        same = "the same" if row["same_allocation"] else "another allocation"
        lines.append(
            f"| {row['constraint']}, {row['fraction']} | {row['budget']:.4g} | "
            f"{row['published']:.6g} | {row['optimum']:.6g} ({row['status']}, {same}) | "
            f"{' | '.join(gaps)} |"
        )
    return "\n".join([*lines, *notes(mark_of(result, v) for v in variants)])


def _percent(gap: float) -> str:
    return "0" if gap == 0 else f"{100 * gap:.2g} %"
