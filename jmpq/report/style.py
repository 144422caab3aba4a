"""The look that all figures share, and how a figure becomes a self-contained SVG."""

import contextlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from jmpq.problem.costs import Cost, known_costs
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
OTHERS = "#7f7f7f"  # of what has no colour of its own
MARKERS = {"exact": "D", "greedy": "^", "local_search": "v", "branch_and_bound": "s"}
FREE_MARKERS = "pPXhd<>*8"


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
    known = known_costs()
    if name not in known:
        raise ValueError(
            f"The plan has a cost {name!r}, which has no title and unit: expected one of "
            f"{', '.join(known)}. Add it to jmpq.problem.costs.COSTS."
        )
    return known[name]


def metric_colors(metrics: Iterable[str]) -> dict[str, str]:
    """A colour for each metric: the known ones keep theirs in every figure.

    No two share one; where there are more metrics than colours, the rest are grey.
    """
    given = sorted(set(metrics))
    known = {m: PALETTE[KNOWN.index(m)] for m in given if m in KNOWN}
    free = [color for color in PALETTE if color not in known.values() and color != OTHERS]
    rest = [m for m in given if m not in known]
    return known | {m: free[i] if i < len(free) else OTHERS for i, m in enumerate(rest)}


def bit_colors(bits: Iterable[int]) -> dict[int, str]:
    """A colour for each bit-width, dark for few bits, light for many (from viridis)."""
    ordered = sorted(set(bits))
    colormap = matplotlib.colormaps["viridis"]
    places = np.linspace(0.0, 0.86, max(len(ordered), 2))
    return {b: to_hex(colormap(place)) for b, place in zip(ordered, places, strict=False)}


def solver_markers(solvers: Iterable[str]) -> dict[str, str]:
    """A marker for each solver: the usual ones keep theirs, others take a free one."""
    given = sorted(set(solvers))
    rest = [solver for solver in given if solver not in MARKERS]
    free = {s: FREE_MARKERS[i % len(FREE_MARKERS)] for i, s in enumerate(rest)}
    return {s: MARKERS.get(s) or free[s] for s in given}


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


def log_limits(values: Float[np.ndarray, " values"]) -> tuple[float, float]:
    """Limits of a log axis over the positive values; others do not count."""
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-3, 1.0)
    span = max(math.log10(high / low), 0.5)
    return low / 10 ** (span * 0.07), high * 10 ** (span * 0.07)


def signed_scale(values: Float[np.ndarray, " values"]) -> dict[str, Any]:
    """The scale of an axis: logarithmic, and linear around zero where values reach it.

    The linear part ends at the tenth smallest of a hundred magnitudes.
    """
    finite = values[np.isfinite(values)]
    if (finite > 0).all():
        return {"value": "log"}
    sizes = np.abs(finite[finite != 0])
    edge = float(np.quantile(sizes, 0.1)) if len(sizes) else 1.0
    return {"value": "symlog", "linthresh": edge, "linscale": 0.6}


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
        description: Content of the figure, for those who can't see it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style():
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (d|x|y)="[^"]*"', _round_places, text)
    text, rules = _classes(_short_ids(text, name), name)
    opening, rest = text.split(">", 1)
    label = f'<title id="{name}-title">{escape(description)}</title>{rules}'
    return f'{opening} role="img" aria-labelledby="{name}-title">\n {label}{rest}'


def _short_ids(text: str, name: str) -> str:
    """Identifiers that something refers to are numbered behind `name`; others are dropped."""
    used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    short = {old: f"{name}-{number}" for number, old in enumerate(used)}
    text = re.sub(
        r' id="([^"]+)"', lambda m: f' id="{short[m[1]]}"' if m[1] in short else "", text
    )
    return re.sub(r'(href="#|url\(#)([^")]+)', lambda m: m[1] + short[m[2]], text)


def _classes(text: str, name: str) -> tuple[str, str]:
    """Styles that come again become classes of a style sheet, which is the second result."""
    counts = Counter(re.findall(r' style="([^"]*)"', text))
    short = {style: f"{name}-s{i}" for i, (style, n) in enumerate(counts.items()) if n > 1}
    text = re.sub(
        r' style="([^"]*)"',
        lambda m: f' class="{short[m[1]]}"' if m[1] in short else m[0],
        text,
    )
    rules = "".join(f".{new}{{{style}}}" for style, new in short.items())
    return text, f"<style>{rules}</style>"


def _round_places(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point: half the file."""
    return re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", attribute[0])
