"""Table T1, figures F8 to F10 and the optimiser's curse from the outcome experiment's JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from experiments.common.older import DOUBLE, mark_of, notes
from jmpq.report.style import PALETTE, error_bars, metric_name, new_figure, style, write_svg

Json = Mapping[str, Any]
# What a figure compares, of weights alone, by its name.
COMPARED = {
    "F8-criterion": ("uniform", "greedy/gauss_newton", "reversed", "random"),
    "F9-order": (
        "uniform",
        "exact/gauss_newton",
        "exact/empirical_fisher",
        "exact/first_order",
        "exact/squared_error",
    ),
    "F10-accuracy": (
        "uniform",
        "exact/gauss_newton",
        "exact/composed",
        "search/composed",
        "refined/composed",
        "exact/hawq_trace",
        "local_search/measured_pairs_loss_psd",
    ),
}

CLADO = {  # what the rival is, in its own words
    "local_search/measured_pairs_loss": "CLADO's pairs, not projected",
    "local_search/measured_pairs_loss_psd": "CLADO's pairs",
}


def rows_of(result: Json, mode: str, bits: float, method: str) -> list[Json]:
    """All draws of one method at one budget; every random allocation for ``random``."""
    return [
        row
        for row in result["rows"]
        if (row["mode"], row["bits"]) == (mode, bits)
        and (row["method"] == method or row["method"].startswith(f"{method}/"))
    ]


def methods_of(result: Json, mode: str) -> list[str]:
    """Methods in the order of the experiment, random allocations as one, uniform first."""
    names = [r["method"] for r in result["rows"] if r["mode"] == mode]
    found = dict.fromkeys("random" if n.startswith("random/") else n for n in names)
    return sorted(found, key=lambda name: name != "uniform")


def label(method: str) -> str:
    """A method as a reader knows it."""
    if method in CLADO:
        return CLADO[method]
    solver, _, metric = method.partition("/")
    solver = {"local_search": "local search, cross terms"}.get(solver, solver)
    if solver == "search":
        return "search, composed logits"
    if solver == "refined":
        return "refined by measured KL"
    return f"{solver}, {metric_name(metric)}" if metric else solver


def outcome_table(result: Json) -> str:
    """T1: top-1 of every method at every budget, mean ± sd over draws of calibration."""
    top1, sem = 100 * result["float"]["top1"], 100 * result["float"]["top1_sem"]
    examples = result["evaluation"]["examples"]
    config, seeds = result["config"], len({row["seed"] for row in result["rows"]})
    lines = [
        f"{_network(result)}: float top-1 {top1:.2f} % on the {examples:,} test images that "
        f"calibrated nothing (standard error of a top-1 about {sem:.2f}). Top-1 in %, mean ± "
        f"sd over {seeds} draws of {config['examples']} calibration images (random: over "
        f"{config['random']} allocations).",
        "",
    ]
    columns = [(mode, bits) for mode in config["modes"] for bits in _budgets(result, mode)]
    titles = []
    for mode, bits in columns:
        size = max(
            r["size_bytes"] for r in result["rows"] if (r["mode"], r["bits"]) == (mode, bits)
        )
        titles.append(f"{_mode(mode)} {bits:g} bits, {size / 1e3:.0f} kB")
    marks: list[str] = []
    lines += [f"| allocation | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
    for method in dict.fromkeys(
        m for mode in config["modes"] for m in methods_of(result, mode)
    ):
        cells = [_cell(rows_of(result, mode, bits, method)) for mode, bits in columns]
        marks.append(mark := mark_of(result, method))
        lines.append(f"| {label(method)}{mark} | {' | '.join(cells)} |")
    return "\n".join([*lines, *notes(marks)])


def curse_table(result: Json) -> str:
    """Measured over predicted KL of what was chosen by the prediction, and of the rest."""
    lines = [
        f"{_network(result)}: KL divergence measured on test images over that predicted by "
        "composed logits, median; chosen by the prediction, chosen by other metrics, random.",
        "",
        f"| budget | search on composed logits{DOUBLE} | exact, other metrics{DOUBLE} | "
        f"random{DOUBLE}{mark_of(result, 'random')} |",
        "| --- | --- | --- | --- |",
    ]
    for mode in result["config"]["modes"]:
        for bits in _budgets(result, mode):
            others = [m for m in methods_of(result, mode)
                      if m.startswith("exact/") and m != "exact/composed"]  # fmt: skip
            groups = [
                rows_of(result, mode, bits, "search/composed"),
                [r for m in others for r in rows_of(result, mode, bits, m)],
                rows_of(result, mode, bits, "random"),
            ]
            cells = []
            for group in groups:
                ratios = [
                    r["measured"]["kl"] / r["composed_kl"]
                    for r in group
                    if r["composed_kl"] > 0 and r["measured"]["kl"] is not None
                ]
                cells.append(f"{np.median(ratios):.2f}" if ratios else "–")
            name = f"{_mode(mode)} {bits:g} bits"
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *notes([DOUBLE, mark_of(result, "random")])])


def spent_table(result: Json) -> str:
    """Seconds that every answer took: its sensitivities, then the search; medians."""
    config = result["config"]
    lines = [
        f"{_network(result)}: seconds of the sensitivities ({config['examples']} images, pairs "
        f"on {config['pair_examples']}; compilation included) and of one solve, medians over "
        f"draws and budgets, {_machine(result)}; a refinement measures {config['refine']} "
        "allocations.",
        "",
        "| allocation | " + " | ".join(f"{_mode(mode)}" for mode in config["modes"]) + " |",
        "| --- |" + " --- |" * len(config["modes"]),
    ]
    names = dict.fromkeys(m for mode in config["modes"] for m in methods_of(result, mode))
    for method in (name for name in names if "/" in name):
        metric, cells = method.partition("/")[2].removesuffix("_psd"), []
        for mode in config["modes"]:
            walls = [
                r["wall_s"]
                for r in result["rows"]
                if (r["mode"], r["method"]) == (mode, method) and r["wall_s"]
            ]
            here = [s["seconds"] for s in result["spent"] if s["mode"] == mode]
            spent = [seconds[metric] for seconds in here if metric in seconds]
            cells.append(f"{np.median(spent):.0f} + {np.median(walls):.2g}" if walls else "–")
        lines.append(f"| {label(method)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_figure(result: Json, mode: str, methods: Sequence[str]) -> Figure:
    """Top-1 and KL against size; bars are sd over draws of calibration, or allocations."""
    with style():
        figure = new_figure(2.8)
        panels = figure.subplots(1, 2)
        budgets = _budgets(result, mode)
        for method, color in zip(methods, PALETTE, strict=False):
            for axes, key, scale in zip(panels, ("top1", "kl"), (100, 1), strict=True):
                points = []
                for bits in budgets:
                    rows = rows_of(result, mode, bits, method)
                    found = [r["measured"][key] for r in rows]  # None: a destroyed network
                    values = [scale * value for value in found if value is not None]
                    if values:
                        sizes = np.mean([r["size_bytes"] for r in rows]) / 1e3
                        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                        points.append((sizes, np.mean(values), spread))
                if not points:
                    continue
                x, y, sd = np.array(points).T
                axes.plot(
                    x,
                    y,
                    "o-",
                    ms=3,
                    lw=0.9,
                    color=color,
                    label=label(method) + mark_of(result, method),
                )
                error_bars(axes, x, y, sd, color=color)
        panels[0].axhline(100 * result["float"]["top1"], ls="--", lw=0.7, color="k")
        panels[0].set(xlabel="size (kB)", ylabel="top-1 (%)")
        panels[1].set(xlabel="size (kB)", ylabel="KL to the float network (nats)", yscale="log")
        means = [line for line in panels[1].lines if line.get_marker() == "o"]
        low = min(np.min(line.get_ydata()) for line in means)
        panels[1].set_ylim(bottom=low / 2)  # a spread above the mean reaches below any scale
        panels[0].legend(loc="lower right", fontsize=6.5)
    return figure


def chosen_figure(result: Json) -> Figure:
    """F6 on the allocations that solvers chose: measured against predicted KL, composed."""
    with style():
        figure = new_figure(2.8)
        axes, aside = figure.subplots(1, 2)
        both = []
        methods = COMPARED["F10-accuracy"]
        for method, color in zip(methods[1:], PALETTE[1:], strict=False):
            rows = [r for r in result["rows"] if r["method"] == method and r["composed_kl"] > 0]
            x = np.array([r["composed_kl"] for r in rows])
            y = np.array([r["measured"]["kl"] for r in rows])
            axes.plot(
                x,
                y,
                "o",
                ms=2.6,
                mew=0,
                alpha=0.8,
                color=color,
                label=label(method) + mark_of(result, method),
            )
            both += list(zip(x, y, strict=True))
        x, y = np.array(both).T
        rho = float(scipy.stats.spearmanr(x, y).statistic)  # type: ignore[union-attr]
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, "--", lw=0.7, color="k")
        axes.set(xscale="log", yscale="log", xlabel="predicted KL (nats)")
        axes.set_ylabel("measured KL, test images (nats)")
        axes.set_title(f"ρ = {rho:.3f}", loc="left")
        aside.axis("off")
        aside.legend(*axes.get_legend_handles_labels(), loc="center left", fontsize=6.5)
    return figure


def outcome_figures(results: Mapping[str, Json]) -> dict[str, str]:
    """SVG text of all figures, by file name; results by the names of their files."""
    drawn: dict[str, Figure] = {}
    for name, result in results.items():
        for mode in result["config"]["modes"]:
            if not mode.startswith("wa") and len(_budgets(result, mode)) > 1:
                for title, methods in COMPARED.items():
                    at = f"{name}_{title}{mode[1:].replace(' ', '-')}"
                    drawn[at] = accuracy_figure(result, mode, methods)
        drawn[f"{name}_F6-chosen"] = chosen_figure(result)
    return {
        name: write_svg(figure, name, name.replace("_", ", ")) for name, figure in drawn.items()
    }


def _budgets(result: Json, mode: str) -> list[float]:
    return sorted({row["bits"] for row in result["rows"] if row["mode"] == mode})


def _cell(rows: Sequence[Json]) -> str:
    values = [100 * row["measured"]["top1"] for row in rows]
    if not values:
        return "–"
    spread = np.std(values, ddof=1) if len(values) > 1 else math.nan
    tail = "" if math.isnan(spread) or spread == 0 else f" ± {spread:.2f}"
    return f"{np.mean(values):.2f}{tail}"


def _mode(mode: str) -> str:
    """What is quantized, and how, as a reader knows it."""
    what, _, rounding = mode.partition(" ")
    return {"w": "W", "wa": "W+A"}[what] + (", GPTQ," if rounding else "")


def _machine(result: Json) -> str:
    return f"{result['cores']} cores" if result["device"] == "cpu" else str(result["device"])


def _network(result: Json) -> str:
    return result["network"].replace("resnet", "ResNet-")
