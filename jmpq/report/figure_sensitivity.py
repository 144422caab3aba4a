"""Figure 2: predicted loss increase of every layer at every bit-width."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jmpq.formats import FLOAT_BITS, Choice
from jmpq.report.style import (
    NothingToDrawError,
    bit_colors,
    error_bars,
    layer_axis,
    log_limits,
    metric_name,
    new_figure,
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
    are one standard error over batches. The axis is logarithmic: a negative loss is drawn
    at its absolute value with an open marker, a zero as a cross on the lower edge, and the
    panel says how many there are of each.

    Args:
        sensitivities: The metrics by name.
        metrics: Which of them, in order; default: all.

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


def _columns(result: Sensitivity) -> tuple[dict[int, int], dict[int, int]]:
    """Which column of `losses` shows each weight bit, and which each activation bit."""
    parsed = [Choice.parse(choice.label) for choice in result.choices]
    choices = [(choice.w_bits, choice.a_bits) for choice in parsed]
    weights = {}
    for w in sorted({w for w, _ in choices if w != FLOAT_BITS}):
        weights[w] = choices.index(max(c for c in choices if c[0] == w))
    most = max(w for w, _ in choices)
    activations = {
        a: choices.index((most, a)) for w, a in sorted(choices) if w == most and a != FLOAT_BITS
    }
    if len({a for _, a in choices}) == 1 and len(weights) > 0:
        activations = {}
    return weights, activations


def _draw_panel(axes: Axes, result: Sensitivity, columns: Mapping[int, int], what: str) -> None:
    colors = bit_colors(columns)
    labels = [choice.label for choice in result.choices]
    losses = np.asarray(result.losses)[:, list(columns.values())]
    for place, (bits, column) in enumerate(columns.items()):
        marker = MARKERS[place % len(MARKERS)]
        sem = np.asarray(result.sem)[:, column]
        _draw_series(axes, losses[:, place], sem, colors[bits], marker, labels[column])
    negative, zero = int((losses < 0).sum()), int((losses == 0).sum())
    lost = int((~np.isfinite(losses)).sum())
    counts = ((negative, "negative (open)"), (zero, "zero (×)"), (lost, "not finite"))
    note = ", ".join(f"{n} {text}" for n, text in counts if n)
    axes.set_title(
        f"{metric_name(result.metric)}: {'weight' if what == 'W' else 'activation'} bits",
        loc="left",
    )
    note = ", ".join(f"{n} {text}" for n, text in counts if n)
    axes.text(0.99, 0.03, note, ha="right", fontsize=6.5, transform=axes.transAxes)
    axes.legend(loc="upper right", ncols=min(len(columns), 6), columnspacing=0.8,
                handletextpad=0.1, borderaxespad=0.1, handlelength=1.2)  # fmt: skip


def _draw_series(
    axes: Axes,
    losses: Float[np.ndarray, " layers"],
    sem: Float[np.ndarray, " layers"],
    color: str,
    marker: str,
    label: str,
) -> None:
    places = np.arange(len(losses), dtype=float)
    size = 3.6 if len(losses) <= 60 else 2.4
    positive, negative = losses > 0, losses < 0
    line = np.where(positive, losses, np.nan)
    axes.plot(places, line, "-", color=color, lw=0.7, alpha=0.6)
    axes.plot(places, line, marker, color=color, ms=size, mew=0.5, label=label)
    axes.plot(places[negative], -losses[negative], marker, mfc="w", mec=color, ms=size)
    error_bars(axes, places, np.abs(losses), np.where(losses == 0, np.nan, sem), color=color)
    zero = places[losses == 0]
    rail = axes.get_xaxis_transform()
    axes.plot(zero, np.full(len(zero), 0.03), "x", color=color, ms=size, transform=rail)


def _limits(axes: Axes, losses: np.ndarray) -> None:
    low, high, _ = log_limits(np.abs(losses).ravel(), rail=bool((losses == 0).any()))
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(low, high * (high / low) ** 0.16)  # room for the legend
