"""Figure 6: predicted against measured increase, single layers and joint allocations."""

import math
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jmpq.formats import Choice
from jmpq.report.contents import Json
from jmpq.report.measured import Comparison, Group, Split, Target, compare, metrics_of
from jmpq.report.style import (
    NothingToDrawError,
    bit_colors,
    error_bars,
    metric_name,
    new_figure,
    signed_scale,
    style,
)

# marker, face colour, edge colour, size, order of drawing
JOINT = {
    "random": ("o", "#56b4e9", "none", 3.6, 2.0),
    "random baseline": ("o", "#9a9a9a", "none", 3.6, 2.1),
    "sweep": (".", "#009e73", "none", 5.0, 2.2),
    "reversed": ("v", "#555555", "k", 4.6, 2.3),
    "uniform": ("s", "w", "k", 4.2, 2.4),
    "solution": ("D", "#d55e00", "k", 4.2, 2.5),
}
LABELS = {
    "random": "random, no budget",
    "random baseline": "random at the budget",
    "solution": "solutions",
    "sweep": "solutions at other budgets",
}
GROUPS: tuple[Group, ...] = ("single", "joint")


def prediction_figure(
    plan: Json,
    evaluation: Json,
    *,
    target: Target = "increase",
    split: Split = "evaluation",
    metrics: Sequence[str] | None = None,
    relative: Collection[str] = (),
) -> Figure:
    """Draw predicted against measured, a row for each metric.

    Left: one layer quantized, the others not; right: joint allocations; a column without
    any measurement is left out. The axes are logarithmic, and linear around zero where
    values reach it. The dashed line is equality, error bars are one standard error of the
    measurement. Rank correlation and median ratio are those of `compare`.

    Args:
        plan: The content of ``plan.json``.
        evaluation: The content of ``evaluation.json``.
        target: ``"increase"`` of the loss, or the ``"kl"`` divergence from the float net.
        split: The examples it was measured on.
        metrics: Metrics to draw, in order; all by default.
        relative: Metrics that are not in nats per example: no ratio, no line of equality.

    Raises:
        NothingToDrawError: If no allocation has a prediction and a measurement.
    """
    chosen = list(metrics_of(plan) if metrics is None else metrics)
    pairs = [
        [
            compare(
                plan,
                evaluation,
                metric=m,
                group=g,
                target=target,
                split=split,
                relative=relative,
            )
            for g in GROUPS
        ]
        for m in chosen
    ]
    measured = [i for i in range(len(GROUPS)) if any(len(pair[i].names) for pair in pairs)]
    if not measured:
        raise NothingToDrawError(f"no allocation was measured on the {split} split")
    with style():
        figure = new_figure(2.35 * len(chosen) + 0.7)
        panels = figure.subplots(len(chosen), len(measured), squeeze=False)
        for row, metric, pair in zip(panels, chosen, pairs, strict=True):
            colors = _single_colors(plan, pair[0])
            for axes, column in zip(row, measured, strict=True):
                group, comparison = GROUPS[column], pair[column]
                _draw_panel(axes, comparison, colors if group == "single" else None)
                _scale(axes, comparison, equality=metric not in relative)
                what = "single layers" if group == "single" else "joint allocations"
                units = "(no unit)" if metric in relative else "(nats per example)"
                axes.set_title(f"{metric_name(metric)}: {what}", loc="left")
                axes.set_xlabel(f"predicted increase {units}")
            row[0].set_ylabel(_measured_label(target))
        figure.legend(handles=_legend(plan, pairs), loc="outside lower center", ncols=5,
                      columnspacing=1.2, handletextpad=0.3)  # fmt: skip
    return figure


def _measured_label(target: Target) -> str:
    what = "loss increase" if target == "increase" else "KL divergence"
    return f"measured {what}\n(nats per example)"


def _single_bits(plan: Json, name: str) -> int:
    """The fewest weight bits of an allocation: those of the layer that it quantizes."""
    allocation = next(a for a in plan["allocations"] if a["name"] == name)
    return min(Choice.parse(label).w_bits for label in allocation["allocation"].values())


def _single_colors(plan: Json, comparison: Comparison) -> dict[str, str]:
    bits = {name: _single_bits(plan, name) for name in comparison.names}
    colors = bit_colors(bits.values())
    return {name: colors[b] for name, b in bits.items()}


def _draw_panel(axes: Axes, found: Comparison, colors: dict[str, str] | None) -> None:
    if not len(found.names):
        axes.text(0.5, 0.5, "none measured", ha="center", transform=axes.transAxes)
        return
    x, y = found.predicted, found.measured
    groups: dict[tuple[str, str, str, float, float], list[int]] = {}
    for i, (name, kind) in enumerate(zip(found.names, found.kinds, strict=True)):
        look = JOINT.get(kind, ("P", "#7f7f7f", "k", 4.6, 2.3))
        if colors is not None:
            look = ("o", colors[name], "none", 3.4, 2.0)
        groups.setdefault(look, []).append(i)
    for (marker, face, edge, size, order), members in groups.items():
        here = np.array(members)
        sem = found.sem[here]
        common = {"ls": "", "marker": marker, "ms": size, "mew": 0.6, "zorder": order}
        axes.plot(x[here], y[here], mfc=face, mec=edge, alpha=0.9, **common)
        solid = edge if face == "w" else face
        faint = {"lw": 0.5, "alpha": 0.5, "zorder": order - 0.5}
        error_bars(axes, x[here], y[here], sem, color=solid, **faint)
    note = f"ρ = {_text(found.rho)}, n = {int(found.counted.sum())}"
    if not math.isnan(found.ratio):
        note += f"\nmedian measured/predicted {_text(found.ratio)}"
    box = {"facecolor": "w", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    axes.text(0.025, 0.97, note, va="top", fontsize=7, transform=axes.transAxes, bbox=box,
              zorder=4)  # fmt: skip


def _text(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}" if abs(value) >= 1 else f"{value:.2f}"


def _scale(axes: Axes, found: Comparison, *, equality: bool) -> None:
    axes.set_xscale(**signed_scale(found.predicted))
    axes.set_yscale(**signed_scale(found.measured))
    axes.margins(0.06)
    if equality and len(found.names):
        both = np.unique([found.predicted, found.measured])  # a curve where scales differ
        inside = axes.get_xlim(), axes.get_ylim()
        axes.plot(both, both, "--", color="k", lw=0.8, zorder=2.8)
        axes.set(xlim=inside[0], ylim=inside[1])
    if axes.get_yscale() == "log":
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.18)  # room for the numbers


def _legend(plan: Json, pairs: Sequence[Sequence[Comparison]]) -> list[Line2D]:
    bits = {_single_bits(plan, name) for pair in pairs for name in pair[0].names}
    handles = [
        Line2D([], [], ls="", marker="o", color=color, ms=3.4, label=f"one layer, W{b}")
        for b, color in bit_colors(bits).items()
    ]
    seen = {kind for pair in pairs for kind in pair[1].kinds}
    for kind in [*JOINT, *sorted(seen - set(JOINT))]:
        if kind in seen:
            marker, face, edge, size, _ = JOINT.get(kind, ("P", "#7f7f7f", "k", 4.6, 2.3))
            look = {"ls": "", "marker": marker, "mfc": face, "mec": edge, "ms": size}
            handles.append(Line2D([], [], label=LABELS.get(kind, kind), mew=0.6, **look))
    return handles
