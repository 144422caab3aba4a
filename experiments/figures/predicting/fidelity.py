"""Figures F6, F7, F12 to F14 and tables T2, T3 from the fidelity study's JSON alone."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.older import DOUBLE, notes
from jmpq.report.style import (
    PALETTE,
    error_bars,
    layer_axis,
    log_limits,
    metric_name,
    new_figure,
    style,
    write_svg,
)

Json = Mapping[str, Any]
Variant = tuple[str, str]  # metric, and which of its terms
VARIANTS = {
    "sum": "",
    "first": " + first order",
    "cross": " + cross terms",
    "first_cross": " + first order + cross terms",
    "kl": "",
}
COMPARED: tuple[Variant, ...] = (
    ("gauss_newton", "sum"),
    ("gauss_newton", "cross"),
    ("superposed", "kl"),
    ("composed", "kl"),
)
LOGITS = {
    "superposed": "superposed logits",
    "composed": "composed logits",
    "gains": "composed logits, one gain a move",
    "composed_additive": "composed logits, main effects",
}


@dataclasses.dataclass(frozen=True)
class Score:
    """How a prediction agrees with the measurement over one set of allocations."""

    rho: float  # Spearman's rank correlation
    pearson: float
    ratio: float  # median of measured / predicted; NaN for a proxy without unit


def score(result: Json, source: str, variant: Variant, key: str, target: str = "kl") -> Score:
    """Agreement of one variant of a metric on one set of allocations.

    Args:
        result: Study of one network.
        source: Source of the calibration examples.
        variant: Metric and terms.
        key: Set of allocations, ``mode/regime``.
        target: ``kl`` or ``increase`` (of the loss).
    """
    measured = np.array(result["sets"][key]["measured"][target])
    return _score(measured, predicted(result, source, variant, key), unit_of(result, variant))


def predicted(
    result: Json, source: str, variant: Variant, key: str
) -> Float[np.ndarray, " allocations"]:
    """Predictions of one variant for one set of allocations; NaN where there are none."""
    metric = result["sources"][source]["metrics"].get(variant[0], {})
    values = metric.get("predicted", {}).get(key, {}).get(variant[1])
    if values is None:
        return np.full(len(result["sets"][key]["bits"]), np.nan)
    return np.array(values)


def unit_of(result: Json, variant: Variant) -> str:
    """Unit of a metric's predictions."""
    source = next(iter(result["sources"].values()))
    return source["metrics"].get(variant[0], {}).get("unit", "")


def _score(
    measured: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], unit: str
) -> Score:
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return Score(math.nan, math.nan, math.nan)
    positive = values > 0
    ratio = (
        float(np.median(measured[positive] / values[positive])) if positive.any() else math.nan
    )
    return Score(
        rho=_spearman(values, measured),
        pearson=float(np.corrcoef(values, measured)[0, 1]),
        ratio=ratio if unit.startswith("nats") else math.nan,
    )


def ceiling(result: Json, key: str, target: str = "kl") -> float:
    """The rank correlation that a perfect prediction would show on so few examples.

    Two halves of the evaluation examples correlate by r; by Spearman and Brown the whole is
    reliable to 2r/(1 + r), and what is free of error correlates with it by the square root.
    """
    return _reliability(result["sets"][key]["measured"][f"{target}_halves"])


def variants_of(result: Json) -> list[Variant]:
    """Every metric and its terms, in the order of the study, joint predictors last."""
    source = next(iter(result["sources"].values()))
    found = []
    for name, metric in source["metrics"].items():
        terms = next(iter(metric["predicted"].values()))
        found += [(name, term) for term in terms if term in VARIANTS]
    return found


def label(variant: Variant) -> str:
    """A variant as a reader knows it."""
    return LOGITS.get(variant[0]) or metric_name(variant[0]) + VARIANTS[variant[1]]


def draws_of(result: Json, mode: str) -> list[str]:
    """The sets of random allocations of a mode, most aggressive regime first."""
    return [key for key in result["sets"] if key.split("/")[0] == mode]


def fidelity_table(results: Sequence[Json], source: str) -> str:
    """T3: rank correlation with the measured KL, networks side by side, as Markdown."""
    keys = [*draws_of(results[0], "w"), *draws_of(results[0], "wa")]
    names = " / ".join(_network(r) for r in results)
    titles = [f"{'W' if k.startswith('w/') else 'W+A'} {k.split('/')[1]}" for k in keys]
    lines = [
        f"Spearman's ρ with the measured KL divergence ({names}), calibrated on {source} "
        "images.",
        "",
        f"| prediction | {' | '.join(titles)} |",
        f"| --- |{' --- |' * len(keys)}",
    ]
    for variant in variants_of(results[0]):
        cells = [
            " / ".join(_number(score(r, source, variant, key).rho) for r in results)
            for key in keys
        ]
        lines.append(f"| {label(variant)}{_mark(variant)} | {' | '.join(cells)} |")
    cells = [" / ".join(_number(ceiling(r, key)) for r in results) for key in keys]
    lines.append(f"| *a perfect prediction (estimate)* | {' | '.join(cells)} |")
    return "\n".join([*lines, *notes([DOUBLE])])


def _mark(variant: Variant) -> str:
    """The mark of predictions that are made of composed logits."""
    return DOUBLE if variant[0].startswith(("composed", "gains")) else ""


def closer_table(result: Json) -> str:
    """The regime of the fewest differences, by more examples: Spearman's ρ, as Markdown."""
    closer = result["closer"]
    keys = list(closer["measured"])
    counts = sum(half["examples"] for half in closer["evaluation"])
    titles = [f"{'W' if k.startswith('w/') else 'W+A'} {k.split('/')[1]}" for k in keys]
    lines = [
        f"{_network(result)}: Spearman's ρ with the KL divergence measured on {counts:,} "
        f"images, calibrated on {closer['calibration']['examples']:,} others, all held out.",
        "",
        f"| prediction | {' | '.join(titles)} |",
        f"| --- |{' --- |' * len(keys)}",
    ]
    predicted_by = closer["predicted"]
    for name, terms in predicted_by[keys[0]].items():
        for term in terms:
            rho = [
                _spearman(
                    np.array(predicted_by[key][name][term]),
                    np.array(closer["measured"][key]["kl"]),
                )
                for key in keys
            ]
            lines.append(f"| {label((name, term))} | {' | '.join(map(_number, rho))} |")
    best = [_reliability(closer["measured"][key]["kl_halves"]) for key in keys]
    lines.append(f"| *a perfect prediction (estimate)* | {' | '.join(map(_number, best))} |")
    return "\n".join(lines)


def detail_table(result: Json, source: str, target: str) -> str:
    """Every variant of one network: Spearman, Pearson, median measured/predicted."""
    keys = [*draws_of(result, "w"), *draws_of(result, "wa")]
    what = "KL divergence" if target == "kl" else "loss increase"
    lines = [
        f"{_network(result)}, {source} images: Spearman, Pearson, median measured/predicted "
        f"against the measured {what}.",
        "",
        f"| prediction | {' | '.join(keys)} |",
        f"| --- |{' --- |' * len(keys)}",
    ]
    for variant in variants_of(result):
        chosen = (variant[0], "loss") if (target, variant[1]) == ("increase", "kl") else variant
        found = [score(result, source, chosen, key, target) for key in keys]
        cells = [", ".join(map(_number, dataclasses.astuple(s))) for s in found]
        lines.append(f"| {label(variant)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost_table(result: Json) -> str:
    """T2: what every metric costs, in forward passes over the same examples."""
    costs = result["costs"]
    lines = [
        f"{_network(result)}, {costs['moves']} moves, one batch of {costs['examples']} images, "
        "compiled.",
        "",
        "| metric | forward passes | seconds |",
        "| --- | --- | --- |",
    ]
    skipped = ("examples", "moves", "load", "forward")
    rows = {k: v for k, v in costs.items() if k not in skipped and "predictions" not in k}
    for name, seconds in sorted(rows.items(), key=lambda row: row[1]):
        passes = seconds / costs["forward"]
        lines.append(f"| {label((name, 'sum'))} | {passes:.1f} | {seconds:.3g} |")
    return "\n".join(lines)


def prediction_panels(result: Json, source: str, mode: str) -> Figure:
    """F6: measured against predicted KL, a row for each regime, a column for each method."""
    keys = draws_of(result, mode)
    with style():
        figure = new_figure(2.1 * len(keys) + 0.3)
        panels = figure.subplots(len(keys), len(COMPARED), squeeze=False)
        for row, key in zip(panels, keys, strict=True):
            measured = result["sets"][key]["measured"]
            y, sem = np.array(measured["kl"]), np.array(measured["kl_sem"])
            for axes, variant, color in zip(row, COMPARED, PALETTE, strict=False):
                x = predicted(result, source, variant, key)
                found = score(result, source, variant, key)
                axes.plot(x, y, "o", ms=2.2, mew=0, color=color, alpha=0.7)
                error_bars(axes, x, y, sem, color=color, lw=0.4, alpha=0.4)
                _log_square(axes, np.concatenate([x, y]))
                note = f"ρ = {found.rho:.3f}\nmeasured/predicted {found.ratio:.2g}"
                axes.text(0.04, 0.96, note, va="top", fontsize=6.5, transform=axes.transAxes)
                axes.set_title(f"{label(variant)}\n{key.split('/')[1]} bits", loc="left")
            row[0].set_ylabel("measured KL (nats)")
        for axes in panels[-1]:
            axes.set_xlabel("predicted KL (nats)")
    return figure


def sample_figure(result: Json) -> Figure:
    """F7: every layer's estimate against the number of calibration examples."""
    with style():
        figure = new_figure(2.5)
        panels = figure.subplots(1, len(result["samples"]))
        for axes, (name, curves) in zip(panels, result["samples"].items(), strict=True):
            losses, sems = np.array(curves["losses"]), np.array(curves["sem"])
            for i in range(losses.shape[1]):
                color = PALETTE[i % len(PALETTE)]
                axes.plot(curves["examples"], losses[:, i], "-", lw=0.8, color=color)
                error_bars(
                    axes, np.array(curves["examples"]), losses[:, i], sems[:, i], color=color
                )
            axes.set(xscale="log", yscale="log", xlabel="examples")
            axes.set_title(metric_name(name), loc="left")
        panels[0].set_ylabel("loss increase at the fewest bits\n(nats per example)")
    return figure


def matrix_figure(result: Json, source: str) -> Figure:
    """F12: cross-layer Gauss-Newton terms of the weights, as correlations."""
    blocks = result["sources"][source]["weight_blocks"]
    with style():
        figure = new_figure(3.6)
        panels = figure.subplots(1, 2)
        image = None
        for axes, (bits, rows) in zip(panels, blocks.items(), strict=True):
            block = np.array(rows)
            scale = np.sqrt(np.maximum(np.diag(block), 1e-30))
            image = axes.imshow(block / np.outer(scale, scale), vmin=-1, vmax=1, cmap="RdBu_r")
            axes.grid(visible=False)
            layer_axis(axes, result["layers"])
            axes.set_title(f"weights at {bits} bits", loc="left")
        panels[0].set_ylabel("layer")
        assert image is not None
        figure.colorbar(image, ax=panels, shrink=0.8, label="cosine of the logit changes")
    return figure


def growth_figure(result: Json, source: str) -> Figure:
    """F13: predicted beside measured KL as layer after layer is quantized."""
    keys = [key for key in result["sets"] if key.startswith("grown/")]
    with style():
        figure = new_figure(2.6)
        panels = figure.subplots(1, len(keys), squeeze=False)[0]
        for axes, key in zip(panels, keys, strict=True):
            measured = result["sets"][key]["measured"]
            y = np.array(measured["kl"])
            x = np.arange(1, len(y) + 1)
            for variant, color in zip(COMPARED, PALETTE, strict=False):
                values = predicted(result, source, variant, key)
                axes.plot(x, values, "-", color=color, label=label(variant))
            axes.plot(x, y, "o", ms=2.6, color="k", label="measured")
            axes.set(yscale="log", xlabel="layers quantized")
            axes.set_title(f"weights at {key.split('/')[1]} bits", loc="left")
        panels[0].set_ylabel("KL (nats per example)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def subset_figure(result: Json) -> Figure:
    """F14: rank correlation from several draws of calibration examples."""
    rows = result["subsets"]
    keys = list(rows[0]["predicted"])
    methods = list(rows[0]["predicted"][keys[0]])
    with style():
        figure = new_figure(2.4)
        panels = figure.subplots(1, 2, width_ratios=(3, 2))
        for j, method in enumerate(methods):
            for i, key in enumerate(keys):
                y = np.array(result["sets"][key]["measured"]["kl"])
                rho = [scipy.stats.spearmanr(r["predicted"][key][method], y)[0] for r in rows]
                at = i + 0.18 * (j - (len(methods) - 1) / 2)
                text = method.replace("gauss_newton_cross", "gauss_newton_full")
                panels[0].plot(
                    np.full(len(rho), at), rho, "o", ms=3, mew=0, alpha=0.7, color=PALETTE[j],
                    label=metric_name(text) if i == 0 else None,
                )  # fmt: skip
        panels[0].set_xticks(range(len(keys)), [key.split("/")[1] for key in keys])
        panels[0].set(xlabel="candidate bits", ylabel="ρ with the measured KL")
        panels[0].legend(loc="lower right")
        losses = np.array([row["losses"] for row in rows])[:, :, 0]
        spread = losses.std(axis=0, ddof=1) / losses.mean(axis=0)
        panels[1].bar(np.arange(len(spread)), spread, color=PALETTE[0])
        layer_axis(panels[1], result["layers"])
        panels[1].set_ylabel("sd/mean over draws\n(Gauss–Newton, fewest bits)")
    return figure


def fidelity_figures(results: Sequence[Json]) -> dict[str, str]:
    """SVG text of all figures, by file name."""
    drawn: dict[str, Figure] = {}
    for result in results:
        network = result["network"]
        for mode in ("w", "wa"):
            if draws_of(result, mode):
                name = f"fidelity_{network}_F6-{mode}"
                drawn[name] = prediction_panels(result, "heldout", mode)
        drawn[f"fidelity_{network}_F13-growth"] = growth_figure(result, "heldout")
        if "samples" in result:
            drawn[f"fidelity_{network}_F7-samples"] = sample_figure(result)
            drawn[f"fidelity_{network}_F12-matrix"] = matrix_figure(result, "heldout")
            drawn[f"fidelity_{network}_F14-subsets"] = subset_figure(result)
    return {
        name: write_svg(figure, name, name.replace("_", ", ")) for name, figure in drawn.items()
    }


def fidelity_details(results: Sequence[Json]) -> str:
    """All scores of all networks, for a page of their own."""
    parts = []
    for source in results[0]["sources"]:
        parts += [fidelity_table(results, source), ""]
    for result in results:
        for source in result["sources"]:
            for target in ("kl", "increase"):
                parts += [detail_table(result, source, target), ""]
    return "\n".join(parts)


def _reliability(halves: Sequence[Sequence[float]]) -> float:
    r = _spearman(*map(np.array, halves))
    return math.sqrt(2 * r / (1 + r)) if r > 0 else math.nan


def _spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    found: Any = scipy.stats.spearmanr(a, b)
    return float(found.statistic)


def _network(result: Json) -> str:
    return result["network"].replace("resnet", "ResNet-")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def _log_square(axes: Axes, values: Float[np.ndarray, " n"]) -> None:
    low, high = log_limits(values)
    axes.plot([low, high], [low, high], "--", color="k", lw=0.7)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
