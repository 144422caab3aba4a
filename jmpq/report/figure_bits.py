"""Figure 1: the bits each allocation gives to each layer."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jmpq.allocation import Allocation
from jmpq.formats import FLOAT_BITS, UNQUANTIZED
from jmpq.network.layers import LayerType
from jmpq.report.contents import Json
from jmpq.report.measured import kind, within_budgets
from jmpq.report.style import (
    NothingToDrawError,
    cost_named,
    layer_axis,
    metric_colors,
    metric_name,
    new_figure,
    style,
)

LONGEST_TITLE = 96  # characters that fit the width of the figure
ATTENTION = {"q", "k", "v", "qkv"}  # types of layers that only transformers have


def bits_figure(
    plan: Json,
    *,
    names: Sequence[str] | None = None,
    types: Mapping[str, LayerType] = MappingProxyType({}),
) -> Figure:
    """Draw bits per layer, one row an allocation, weights and activations together.

    Bars are weight bits, open circles activation bits (none where all are unquantized),
    both on a logarithmic axis; the dashed line is the weight bits of the uniform baseline.
    Allocations with the same bits share a row. Layers of a transformer stand by type.

    Args:
        plan: The content of ``plan.json``.
        names: Allocations to draw; default: the uniform baseline and the solutions.
        types: Types of the layers; none for the order of the network.

    Raises:
        NothingToDrawError: If the plan has none of them.
    """
    uniform = reference_uniform(plan)
    if names is None:
        solutions = [a["name"] for a in plan["allocations"] if a["role"] == "solution"]
        names = [*([uniform["name"]] if uniform else []), *solutions]
    chosen = {a["name"]: a for a in plan["allocations"] if a["name"] in set(names)}
    rows = _distinct([chosen[name] for name in names if name in chosen])
    if not rows:
        raise NothingToDrawError("the plan has no solution and no uniform baseline")
    layers: list[str] = list(plan["layers"])
    grouped = bool(ATTENTION & {types.get(layer) for layer in layers})
    if grouped:
        order = list(dict.fromkeys(types[layer] for layer in layers))
        layers.sort(key=lambda layer: order.index(types[layer]))
    colors = metric_colors(a["metric"] for row in rows for a in row if a["metric"])
    largest = float(max(row[0]["costs"].get("size_bytes", 0) for row in rows))
    with style():
        figure = new_figure(0.85 * len(rows) + 1.5)
        panels = figure.subplots(len(rows), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, row in zip(panels, rows, strict=True):
            color = colors.get(row[0]["metric"] or "", "#9a9a9a")
            _draw_row(axes, row[0], layers, color)
            if uniform is not None and _value(row[0]) != _value(uniform):
                weights = _bits(uniform, layers)[:, 0]
                edges = np.arange(len(layers) + 1) - 0.5
                axes.stairs(np.log2(weights), edges, baseline=None, ls="--", lw=0.9, color="k")
            axes.set_title(_title(row, largest), loc="left", pad=3)
        _bit_axis(panels[0], rows, layers)
        layer_axis(panels[-1], layers)
        if grouped:
            _mark_types(panels, [types[layer] for layer in layers])
        for axes in panels[:-1]:
            axes.tick_params(axis="x", length=0)
        figure.supylabel("bits (logarithmic axis)", fontsize=8)
        figure.legend(handles=_legend(rows, uniform), loc="outside upper right", ncols=3)
    return figure


def _mark_types(panels: Iterable[Axes], kinds: Sequence[LayerType]) -> None:
    """Lines between the types of layers; their names in the first panel."""
    ends = [i for i, kind in enumerate(kinds) if kinds[i + 1 : i + 2] != [kind]]
    starts = [0, *(end + 1 for end in ends[:-1])]
    for number, axes in enumerate(panels):
        for end in ends[:-1]:
            axes.axvline(end + 0.5, color="k", lw=0.5, alpha=0.6)
        for start, end in zip(starts, ends, strict=True) if number == 0 else ():
            where = (start + end) / 2, 0.97
            axes.annotate(
                kinds[start], where, xycoords=("data", "axes fraction"), ha="center", va="top",
                fontsize=5.5,
            )  # fmt: skip


def reference_uniform(plan: Json) -> Json | None:
    """The uniform baseline to compare with: the largest that meets the plan's budgets."""
    found = [a for a in plan["allocations"] if kind(a) == "uniform"]
    fitting = [a for a in found if within_budgets(a, plan)]
    if fitting:
        return max(fitting, key=lambda a: (a["costs"].get("size_bytes", 0), a["name"]))
    return min(found, key=lambda a: (a["costs"].get("size_bytes", 0), a["name"]), default=None)


def _distinct(allocations: Sequence[Json]) -> list[list[Json]]:
    rows: dict[Allocation, list[Json]] = {}
    for allocation in allocations:
        rows.setdefault(_value(allocation), []).append(allocation)
    return list(rows.values())


def _value(allocation: Json) -> Allocation:
    return Allocation.from_json(allocation["allocation"])


def _bits(allocation: Json, layers: Sequence[str]) -> Int[np.ndarray, "layers 2"]:
    """Bits of a code of weights and of activations, whatever the format."""
    value = _value(allocation)
    chosen = [value.get(layer, UNQUANTIZED) for layer in layers]
    return np.array([[choice.w_bits, choice.a_bits] for choice in chosen])


def _draw_row(axes: Axes, allocation: Json, layers: Sequence[str], color: str) -> None:
    weights, activations = _bits(allocation, layers).T
    places = np.arange(len(layers))
    axes.bar(places, np.log2(weights) + 1, bottom=-1, width=0.74, color=color, alpha=0.75)
    if (activations != FLOAT_BITS).any():
        size = 3.4 if len(layers) <= 60 else 2.2
        axes.plot(places, np.log2(activations), "o", ms=size, mfc="w", mec="k", mew=0.8)


def _bit_axis(axes: Axes, rows: Sequence[Sequence[Json]], layers: Sequence[str]) -> None:
    bits = np.stack([_bits(row[0], layers) for row in rows])
    used = set(bits[..., 0].ravel().tolist())
    if (bits[..., 1] != FLOAT_BITS).any():
        used |= set(bits[..., 1].ravel().tolist())
    ticks: list[int] = []
    for b in sorted(used):  # leave out what would overprint its neighbour
        if not ticks or np.log2(b / ticks[-1]) > 0.25:
            ticks.append(b)
    axes.set_yticks(np.log2(ticks).tolist(), [str(b) for b in ticks], fontsize=6.5)
    axes.set_ylim(np.log2(min(used)) - 0.8, np.log2(max(used)) + 0.35)


def _title(row: Sequence[Json], largest: float) -> str:
    """Names of equal allocations, as many as fit the width, and their costs."""
    costs = row[0]["costs"]
    parts = []
    if "size_bytes" in costs:
        parts.append(cost_named("size_bytes").text(float(costs["size_bytes"]), largest=largest))
    if "average_bits" in costs:
        parts.append(cost_named("average_bits").text(float(costs["average_bits"])))
    end = f"   ({', '.join(parts)})" if parts else ""
    names = [
        f"{a['asked']}, {metric_name(a['metric'])}"
        if a["metric"] and a["role"] != "baseline"
        else a["name"].replace("/", " ")
        for a in row
    ]

    def title(shown: int) -> str:
        left = len(names) - shown
        return "; ".join(names[:shown]) + (f" and {left} more" if left else "") + end

    fitting = (n for n in range(len(names), 0, -1) if len(title(n)) <= LONGEST_TITLE)
    return title(next(fitting, 1))


def _legend(rows: Sequence[Sequence[Json]], uniform: Json | None) -> list[Any]:
    handles: list[Any] = [Patch(color="#9a9a9a", alpha=0.75, label="weights")]
    taken = [choice for row in rows for choice in _value(row[0]).values()]
    if any(choice.a_bits != FLOAT_BITS for choice in taken):
        circle = {"marker": "o", "ls": "", "mfc": "w", "mec": "k", "ms": 3.4}
        handles.append(Line2D([], [], label="activations", **circle))
    if uniform is not None:
        handles.append(Line2D([], [], ls="--", lw=0.9, color="k", label="weights, uniform"))
    return handles
