"""The look that all figures share, and how a figure becomes a self-contained SVG."""

import contextlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from jmpq.problem.costs import COSTS, Cost
from jmpq.sensitivity.metrics.by_name import TITLES

WIDTH = 7.2  # inches: the text width of a page

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "svg.fonttype": "path",  # letters are outlines: no font is needed to read the file
    "svg.hashsalt": "jmpq",  # the same figure is the same bytes
    "path.simplify": False,
    "axes.unicode_minus": True,
}

# Okabe and Ito (2008): told apart with every common colour vision.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
KNOWN = (
    "gauss_newton",
    "empirical_fisher",
    "hawq_trace",
    "squared_error",
    "hessian",
    "first_order",
)
NAMES: dict[str, str] = {
    **TITLES,
    **{f"{name}_full": f"{title}, with cross terms" for name, title in TITLES.items()},
    "composed_kl": "composed logits, KL",
    "composed_loss": "composed logits, loss",
    "superposed_kl": "superposed logits, KL",
    "superposed_loss": "superposed logits, loss",
}  # metrics, and what predicts joint allocations
MARKERS = {"exact": "D", "greedy": "^", "local_search": "v", "branch_and_bound": "s"}


class NothingToDrawError(ValueError):
    """A figure has no data in these artifacts; the message says which is missing."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The common style, for drawing and for writing; nothing outside is changed."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(height: float, *, width: float = WIDTH) -> Figure:
    """An empty figure of a size in inches that arranges its panels itself."""
    return Figure(figsize=(width, height), layout="constrained")


def metric_name(metric: str | None) -> str:
    """A metric as a reader knows it; ``NAME_full`` is the whole quadratic form of NAME."""
    if metric is None:
        return "no metric"
    return NAMES.get(metric, metric.replace("_", " "))


def cost_named(name: str) -> Cost:
    """Title and unit of a cost of the plan.

    Raises:
        ValueError: If it is not one of `jmpq.problem.costs.COSTS`.
    """
    if name not in COSTS:
        raise ValueError(
            f"The plan has a cost {name!r}, which has no title and unit: expected one of "
            f"{', '.join(COSTS)}. Add it to jmpq.problem.costs.COSTS."
        )
    return COSTS[name]


def metric_colors(metrics: Iterable[str]) -> dict[str, str]:
    """A colour for each metric: the known ones keep theirs in every figure."""
    given = sorted(set(metrics))
    order = list(KNOWN) + [metric for metric in given if metric not in KNOWN]
    free = [i for i, metric in enumerate(order) if metric in given]
    return {order[i]: PALETTE[i % len(PALETTE)] for i in free}


def bit_colors(bits: Iterable[int]) -> dict[int, str]:
    """A colour for each bit-width, dark for few bits, light for many (from viridis)."""
    ordered = sorted(set(bits))
    colormap = matplotlib.colormaps["viridis"]
    places = np.linspace(0.0, 0.86, max(len(ordered), 2))
    return {b: to_hex(colormap(place)) for b, place in zip(ordered, places, strict=False)}


def solver_marker(solver: str | None) -> str:
    """A marker for each solver; unknown ones are drawn as a pentagon."""
    return MARKERS.get(solver or "", "p")


def layer_labels(layers: Sequence[str], *, longest: int = 26) -> list[str]:
    """Layer names for an axis: a leading part that all share is dropped, long ones cut."""
    parts = [name.split("/") for name in layers]
    while len(layers) > 1 and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    names = ["/".join(p) for p in parts]
    return [n if len(n) <= longest else "…" + n[1 - longest :] for n in names]


def layer_axis(axes: Axes, layers: Sequence[str], *, most: int = 64) -> None:
    """Write layer names along x, at most `most` of them; every layer keeps its place."""
    count = len(layers)
    step = math.ceil(count / most)
    shown = range(0, count, step)
    labels = layer_labels(layers)
    size = 6.5 if count <= 30 else 5.0
    axes.set_xlim(-0.7, count - 0.3)
    axes.set_xticks(list(shown), [labels[i] for i in shown], rotation=90, fontsize=size)
    axes.tick_params(axis="x", length=2, pad=1.5)
    axes.grid(visible=False, axis="x")


def log_limits(
    values: Float[np.ndarray, " values"], *, rail: bool
) -> tuple[float, float, float]:
    """Limits of a log axis over the positive values, and where its rail lies.

    Args:
        values: Any numbers; those not positive and finite don't count.
        rail: Leave room below for the values that a log axis can't show.

    Returns:
        Lower limit, upper limit, and the place at which values ≤ 0 are drawn.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-3, 1.0)
    span = max(math.log10(high / low), 0.5)
    bottom = low / 10 ** (span * (0.16 if rail else 0.07))
    return bottom, high * 10 ** (span * 0.07), low / 10 ** (span * 0.10)


def error_bars(
    axes: Axes,
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, " points"],
    sem: Float[np.ndarray, " points"],
    **look: Any,
) -> None:
    """Draw y ± sem as one path; points without a finite standard error have no bar.

    On a logarithmic axis (y > 0) a bar that reaches zero ends far below the panel.
    """
    low = np.where(y > 0, np.maximum(y - sem, y * 1e-12), y - sem)
    ends = np.stack([low, y + sem, np.full_like(y, np.nan)], axis=1)
    axes.plot(np.repeat(x, 3), ends.ravel(), "-", **{"lw": 0.7, "marker": "", **look})


def write_svg(figure: Figure, name: str, description: str) -> str:
    """A figure as SVG text that can stand alone or inside a page beside others.

    The same figure gives the same text: no date, no random identifiers. Identifiers begin
    with `name`, so two figures in one page never share one.

    Args:
        figure: Drawn with this module's style.
        name: Unique in a page; letters, digits, ``-`` and ``_``.
        description: What the figure shows, for those who can't see it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style():
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r' (d|x|y)="[^"]*"', _round_places, text)
    opening, rest = text.split(">", 1)
    label = f'<title id="{name}-title">{escape(description)}</title>'
    return f'{opening} role="img" aria-labelledby="{name}-title">\n {label}{rest}'


def _round_places(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point: half the file."""
    return re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", attribute[0])
