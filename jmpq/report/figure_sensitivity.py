"""Figure 2: predicted loss increase of every layer at every bit-width."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jmpq.formats import Choice, Scheme
from jmpq.report.style import (
    NothingToDrawError,
    bit_colors,
    error_bars,
    layer_axis,
    log_limits,
    metric_name,
    new_figure,
    signed_scale,
    style,
)
from jmpq.sensitivity.table import Sensitivity

MARKERS = "osD^vP<>*h"


def sensitivity_figure(
    sensitivities: Mapping[str, Sensitivity], *, metrics: Sequence[str] | None = None
) -> Figure:
    """Draw sensitivity per layer and bit, a row for each metric.

    Left: weight bits, activations at the most bits that were tried with them; right, where
    several activation bits were tried: activation bits, weights at their most (below
    instead of right for more than 40 layers). Error bars
    are one standard error over batches. The axis is logarithmic, and linear around zero
    where predictions reach it.

    Args:
        sensitivities: The metrics by name.
        metrics: Metrics to draw, in order; all by default.

    Raises:
        NothingToDrawError: If there is no metric.
        ValueError: If a metric in `metrics` is not there.
    """
    chosen = list(sensitivities) if metrics is None else list(metrics)
    if missing := [metric for metric in chosen if metric not in sensitivities]:
        raise ValueError(f"No metric {missing[0]!r}; there are: {', '.join(sensitivities)}.")
    if not chosen:
        raise NothingToDrawError("sensitivity.npz holds no metric")
    bits = {metric: _columns(sensitivities[metric]) for metric in chosen}
    both = any(len(columns[1]) > 1 for columns in bits.values())
    count = max(len(sensitivities[metric].layers) for metric in chosen)
    columns = 2 if both and count <= 40 else 1
    rows = len(chosen) * (1 + both) // columns
    with style():
        figure = new_figure(1.65 * rows + 1.2)
        panels = figure.subplots(rows, columns, squeeze=False)
        for cell, metric in zip(panels.reshape(len(chosen), -1), chosen, strict=True):
            result = sensitivities[metric]
            shown = [c for selected in bits[metric] for c in selected.values()]
            for axes, selected, what in zip(cell, bits[metric], "WA", strict=False):
                if not selected:
                    axes.set_axis_off()
                    continue
                _draw_panel(axes, result, selected, what)
                _limits(axes, np.asarray(result.losses)[:, shown])
            for axes in cell[::columns]:
                axes.set_ylabel(f"predicted increase\n({result.unit})")
        for i, row in enumerate(panels):
            for axes in row:
                metric = chosen[i * len(chosen) // rows]
                layer_axis(axes, sensitivities[metric].layers, most=64 // columns)
                if i < rows - 1:
                    axes.tick_params(axis="x", labelbottom=False)
    return figure


def _columns(result: Sensitivity) -> tuple[dict[Scheme, int], dict[Scheme, int]]:
    """Columns of `losses` that show each format of weights, and each of activations."""
    parsed = [Choice.parse(choice.label) for choice in result.choices]
    choices = [(choice.weights, choice.activations) for choice in parsed]
    weights = {}
    for w in sorted({w for w, _ in choices if not w.is_none}):
        weights[w] = choices.index(max(c for c in choices if c[0] == w))
    most = max(w for w, _ in choices)
    activations = {
        a: choices.index((most, a)) for w, a in sorted(choices) if w == most and not a.is_none
    }
    if len({a for _, a in choices}) == 1 and len(weights) > 0:
        activations = {}
    return weights, activations


def _draw_panel(
    axes: Axes, result: Sensitivity, columns: Mapping[Scheme, int], what: str
) -> None:
    colors = bit_colors(range(len(columns)))
    labels = [choice.label for choice in result.choices]
    losses = np.asarray(result.losses)[:, list(columns.values())]
    places = np.arange(len(losses), dtype=float)
    size = 3.6 if len(losses) <= 60 else 2.4
    for place, column in enumerate(columns.values()):
        color, values = colors[place], losses[:, place]
        axes.plot(places, values, "-", color=color, lw=0.7, alpha=0.6)
        marker = MARKERS[place % len(MARKERS)]
        axes.plot(places, values, marker, color=color, ms=size, mew=0.5, label=labels[column])
        error_bars(axes, places, values, np.asarray(result.sem)[:, column], color=color)
    axes.set_title(
        f"{metric_name(result.metric)}: {'weight' if what == 'W' else 'activation'} bits",
        loc="left",
    )
    if lost := int((~np.isfinite(losses)).sum()):
        note = f"{lost} not finite"
        axes.text(0.99, 0.03, note, ha="right", fontsize=6.5, transform=axes.transAxes)
    axes.legend(loc="upper right", ncols=min(len(columns), 6), columnspacing=0.8,
                handletextpad=0.1, borderaxespad=0.1, handlelength=1.2)  # fmt: skip


def _limits(axes: Axes, losses: np.ndarray) -> None:
    scale = signed_scale(losses.ravel())
    axes.set_yscale(**scale)
    if scale["value"] == "log":
        low, high = log_limits(losses.ravel())
        axes.set_ylim(low, high * (high / low) ** 0.16)  # room for the legend
    else:
        axes.axhline(0.0, color="k", lw=0.6)
        axes.autoscale_view()
