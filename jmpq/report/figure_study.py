"""Figures of a study: a value against size, one line a method, at a journal's column width."""

import dataclasses
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jmpq.files import atomic_file
from jmpq.report.style import PALETTE, NothingToDrawError, error_bars, metric_name, style
from jmpq.study.options import StyleName
from jmpq.study.pivot import GREATER, UNITS, tabulate
from jmpq.study.study import StudyTable

FORMATS = ("svg", "pdf", "png")


@dataclasses.dataclass(frozen=True)
class Column:
    """Width of a column in inches, size of its text in points, and the font family."""

    width: float
    points: int
    family: str = "DejaVu Sans"


# Text widths of the classes' own templates: neurips.sty 5.5 in; icml.sty 3.25 in; cvpr.sty
# 237.13594 pt; IEEEtran 252 pt; acmart sigconf 241.14749 pt; llncs 122 mm; elsarticle 5p 90 mm.
STYLES: Mapping[StyleName, Column] = {
    "page": Column(7.2, 8),
    "neurips": Column(5.5, 9, "DejaVu Serif"),
    "icml": Column(3.25, 8, "DejaVu Serif"),
    "cvpr": Column(237.13594 / 72.27, 8, "DejaVu Serif"),
    "ieee": Column(252 / 72.27, 8, "DejaVu Serif"),
    "acm": Column(241.14749 / 72.27, 8, "DejaVu Serif"),
    "springer": Column(122 / 25.4, 8, "DejaVu Serif"),
    "elsevier": Column(90 / 25.4, 8),
}


def study_figure(table: StudyTable, value: str = "kl", look: StyleName = "page") -> Figure:
    """A value against size, with standard errors over draws and examples.

    Args:
        table: The study's table.
        value: Name of the value that is drawn.
        look: Whose column it is to fit.

    Raises:
        NothingToDrawError: If nothing was measured.
    """
    drawn = tabulate(table, "metric", "budget", value)
    if not drawn.rows:
        raise NothingToDrawError("The study has measured nothing: see the notes in its table.")
    sizes = _sizes(table, drawn.down)
    column, scale = STYLES[look], 100 if value in GREATER else 1
    with style():
        matplotlib.rcParams.update(_fonts(column))
        wide = max(1, round(column.width * 72 / column.points / 22))  # methods in a line
        lines = -(-len(drawn.rows) // wide)
        height = 0.62 * column.width + lines * 1.5 * column.points / 72
        figure = Figure(figsize=(column.width, height), layout="constrained")
        axes = figure.subplots()
        for place, (names, entries) in enumerate(drawn.rows.items()):
            points = [
                (sizes[names, across] / 1e3, scale * e.estimate.mean, scale * e.estimate.sem)
                for across, e in zip(drawn.across, entries, strict=True)
                if e is not None
            ]
            x, y, sem = np.array(sorted(points)).T
            color = PALETTE[place % len(PALETTE)]
            line = "-" if place < len(PALETTE) else "--"
            label = ", ".join([metric_name(names[0]), *names[1:]])
            axes.plot(x, y, f"o{line}", ms=3, lw=0.9, color=color, label=label)
            error_bars(axes, x, y, sem, color=color)
        axes.set(xlabel="size (kB)", ylabel=UNITS[value].replace(" from the float network", ""))
        if value in ("kl", "loss"):
            means = [e.estimate.mean for own in drawn.rows.values() for e in own if e]
            if min(means) > 0:
                axes.set_yscale("log")
                axes.set_ylim(bottom=min(means) / 2)
        figure.legend(loc="outside lower center", ncols=wide)
    return figure


def write_figure(figure: Figure, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Write a figure as SVG, PDF and PNG; the same figure gives the same bytes.

    Returns:
        The paths.
    """
    written = []
    for suffix in FORMATS:
        buffer = io.BytesIO()
        dates = {"svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator", "Producer")}
        metadata: dict[str, Any] = dict.fromkeys(dates.get(suffix, ()))
        with style():
            figure.savefig(buffer, format=suffix, dpi=300, metadata=metadata)
        with atomic_file(path := folder / f"{name}.{suffix}") as file:
            file.write(buffer.getvalue())
        written.append(path)
    return written


def _fonts(column: Column) -> dict[Any, Any]:
    small = column.points - 1
    sizes = {"font.size": column.points, "axes.labelsize": column.points}
    sizes |= {f"{axis}tick.labelsize": small for axis in "xy"} | {"legend.fontsize": small}
    return {"font.family": column.family, **sizes}


def _sizes(
    table: StudyTable, down: tuple[str, ...]
) -> dict[tuple[tuple[str, ...], str], float]:
    """Mean bytes of the allocations of every entry."""
    found: dict[tuple[tuple[str, ...], str], list[float]] = {}
    for row in table.rows:
        if row.get("size_bytes") is not None:
            key = tuple(str(row[name]) for name in down), str(row["budget"])
            found.setdefault(key, []).append(row["size_bytes"])
    return {key: float(np.mean(own)) for key, own in found.items()}
