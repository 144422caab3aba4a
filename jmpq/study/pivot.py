"""Tables of a study: one axis down, one across, a mean with its standard error in every cell.

A mean is over draws and examples, with the standard error of both (`two_level_mean`); random
allocations count as draws. In every column the best method is compared with each other one on
the same draws and examples, and the p-values are corrected for their number (`holm`): methods
that are level with the best are told, so that a table does not say more than it knows.
"""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jmpq.study.grid import AXES
from jmpq.study.statistics import Estimate, holm, paired_difference, two_level_mean
from jmpq.study.study import StudyTable
from jmpq.text import did_you_mean

GREATER = ("top1", "top5", "agreement")  # better if greater; shown in percent
ALPHA = 0.05
UNTESTED = "†"  # of an entry that no test compares with the best
UNITS: Mapping[str, str] = {
    "loss": "loss, nats",
    "increase": "loss increase, nats",
    "kl": "KL divergence from the float network, nats",
    "top1": "top-1, %",
    "top5": "top-5, %",
    "agreement": "agreement with the float network, %",
}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """One entry of a table.

    Attributes:
        estimate: Mean with standard error.
        best: Whether it is the best of its column.
        level: Whether it is not told from the best at 5 %, many comparisons counted; None
            where it was not measured on the same draws and examples.
    """

    estimate: Estimate
    best: bool = False
    level: bool | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pivot:
    """A table of a study.

    Attributes:
        value: Name of the entries.
        down: Axes down, the titles of the first columns.
        across: Values of the axis across.
        rows: By the values of the axes down, an entry or None for every value across.
        caption: Meaning of the entries and of their marks.
    """

    value: str
    down: tuple[str, ...]
    across: tuple[str, ...]
    rows: Mapping[tuple[str, ...], tuple[Entry | None, ...]]
    caption: str

    def markdown(self) -> str:
        """A Markdown table: the best of a column bold, what is level with it in italics."""
        marks = {"best": "**{}**", "level": "*{}*", "": "{}"}
        lines = [
            "| " + " | ".join([*self.down, *self.across]) + " |",
            "| " + " | ".join(["---"] * (len(self.down) + len(self.across))) + " |",
        ]
        for names, entries in self.rows.items():
            cells = [*names, *(self._text(e, marks, " ± ") for e in entries)]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([self.caption, "", *lines, ""])

    def latex(self) -> str:
        """A LaTeX table for the packages booktabs: best bold, level with it in italics."""
        marks = {"best": r"\textbf{{{}}}", "level": r"\textit{{{}}}", "": "{}"}
        lines = [
            r"\begin{tabular}{" + "l" * len(self.down) + "r" * len(self.across) + "}",
            r"\toprule",
            " & ".join(map(_escaped, [*self.down, *self.across])) + r" \\",
            r"\midrule",
        ]
        for names, entries in self.rows.items():
            cells = [
                *map(_escaped, names),
                *(self._text(e, marks, r" $\pm$ ") for e in entries),
            ]
            lines.append(" & ".join(cells) + r" \\")
        note = f"% {self.caption}"
        return "\n".join([note, *lines, r"\bottomrule", r"\end{tabular}", ""])

    def csv(self) -> str:
        """A line for every entry: mean, standard error, degrees of freedom, best, level."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.down, "across", "mean", "sem", "df", "draws", "best", "level"])
        for names, entries in self.rows.items():
            for across, entry in zip(self.across, entries, strict=True):
                if entry is not None:
                    e = entry.estimate
                    writer.writerow(
                        [*names, across, e.mean, e.sem, e.df, e.draws, entry.best, entry.level]
                    )
        return text.getvalue()

    def _text(self, entry: Entry | None, marks: Mapping[str, str], between: str) -> str:
        if entry is None:
            return "–"
        scale = 100 if self.value in GREATER else 1
        mark = "best" if entry.best else "level" if entry.level else ""
        estimate = entry.estimate
        text = marks[mark].format(_pair(scale * estimate.mean, scale * estimate.sem, between))
        return text if entry.best or entry.level is not None else f"{text} {UNTESTED}"


def tabulate(table: StudyTable, down: str, across: str, value: str = "kl") -> Pivot:
    """A table of a study.

    Args:
        table: The study's table.
        down: Axis down. Other axes that vary, but for draws, stand beside it.
        across: Axis across.
        value: Name of the entries.

    Raises:
        ValueError: If there is no such axis or value, or both are the same.
    """
    for axis in (down, across):
        if axis not in AXES or axis == "draw":
            known = [name for name in AXES if name != "draw"]
            raise ValueError(
                f"{axis!r} is not an axis of a table.{did_you_mean(axis, known)} Choose two of "
                f"{', '.join(known)}; draws are averaged over."
            )
    if value not in UNITS:
        raise ValueError(
            f"{value!r} is not a value of a table.{did_you_mean(value, UNITS)} Choose one of "
            f"{', '.join(UNITS)}."
        )
    if down == across:
        raise ValueError(f"A table of {down} by {across} has one axis: choose two.")
    rows = list(table.rows)
    if any(row.get(value) is not None for row in rows):  # else no network has such a value
        # What was measured and is not finite is no number in a file.
        rows = [row for row in rows if row.get("evaluated") is not None]
    else:
        rows = []
    others = [
        name
        for name in AXES
        if name not in (down, across, "draw") and len({row[name] for row in rows}) > 1
    ]
    names = (down, *others)
    columns = list(dict.fromkeys(row[across] for row in rows))
    groups: dict[tuple[str, ...], dict[Any, list[dict[str, Any]]]] = {}
    for row in rows:
        place = groups.setdefault(tuple(str(row[name]) for name in names), {})
        place.setdefault(row[across], []).append(row)
    filled: dict[tuple[str, ...], list[Entry | None]] = {key: [] for key in groups}
    for column in columns:
        here = {key: own[column] for key, own in groups.items() if column in own}
        compared: dict[tuple[str, ...], Entry] = {}
        apart: dict[frozenset[str], dict[tuple[str, ...], list[dict[str, Any]]]] = {}
        for key, own in here.items():  # losses of two networks have no common best
            apart.setdefault(frozenset(row["network"] for row in own), {})[key] = own
        for part in apart.values():
            compared |= _compared(table, part, value)
        for key in groups:
            filled[key].append(compared.get(key))
    spoilt = sum(row[value] is None for row in rows)
    each = " and network" if len({row["network"] for row in rows}) > 1 else ""
    draws, counts = ({row[k] for row in rows} for k in ("draw", "evaluated"))
    examples = "–".join(f"{n:,}" for n in sorted({min(counts), max(counts)})) if counts else "0"
    caption = (
        f"{UNITS[value]}: mean ± standard error over {len(draws)} draws of calibration "
        f"examples and {examples} test examples. Best of a column{each} bold; in italics what "
        f"is not told from it at {100 * ALPHA:g} % (paired t, Holm)."
    )
    entries = [entry for row in filled.values() for entry in row if entry is not None]
    if any(not entry.best and entry.level is None for entry in entries):
        caption += f" {UNTESTED}: not tested, as it does not share its runs with the best."
    if len({entry.estimate.draws for entry in entries}) > 1:
        caption += " Some entries have other numbers of draws: see the CSV."
    if spoilt:
        caption += f" NaN: of {spoilt} outcomes the value is not finite."
    return Pivot(
        value=value,
        down=names,
        across=tuple(map(str, columns)),
        rows={key: tuple(entries) for key, entries in filled.items()},
        caption=caption,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Sample:
    """Values with the draw and example of each; a value for each draw where `whole`."""

    values: np.ndarray
    draws: np.ndarray
    examples: np.ndarray
    whole: bool = False

    @property
    def estimate(self) -> Estimate:
        if len(self.values) < 2:
            mean = float(self.values.mean())
            return Estimate(mean=mean, sem=math.nan, df=0.0, draws=1, examples=1)
        return two_level_mean(self.values, self.draws, self.examples)


def _sample(table: StudyTable, rows: Sequence[Mapping[str, Any]], value: str) -> _Sample:
    found = [table.examples(row, value) for row in rows]
    if any(each is None for each in found):
        values = np.array([row[value] for row in rows], float)  # None is NaN
        return _Sample(values, np.arange(len(rows)), np.zeros(len(rows), int), whole=True)
    parts = [each for each in found if each is not None]
    # Random allocations of one draw are draws too: another one might have been taken.
    units = np.repeat(np.arange(len(parts)), [len(indices) for _, indices in parts])
    return _Sample(
        np.concatenate([values for values, _ in parts]),
        units,
        np.concatenate([indices for _, indices in parts]),
    )


def _compared(
    table: StudyTable, here: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]], value: str
) -> dict[tuple[str, ...], Entry]:
    """The entries of one column, compared with its best."""
    samples = {key: _sample(table, rows, value) for key, rows in here.items()}
    means = {key: sample.estimate.mean for key, sample in samples.items()}
    sign = -1 if value in GREATER else 1
    finite = [key for key in samples if math.isfinite(means[key])]
    best = min(finite, key=lambda key: sign * means[key], default=None)
    p_values: dict[tuple[str, ...], float] = {}
    for key in finite:
        assert best is not None, "it is one of the finite ones"
        one, other = samples[key], samples[best]
        if key == best or one.whole or other.whole or not _paired(here[key], here[best]):
            continue
        p_values[key] = paired_difference(
            one.values, other.values, one.draws, one.examples
        ).p_value
    adjusted = dict(zip(p_values, holm(np.array(list(p_values.values()))), strict=True))
    return {
        key: Entry(
            estimate=sample.estimate,
            best=key == best,
            level=None if key not in adjusted else bool(adjusted[key] >= ALPHA),
        )
        for key, sample in samples.items()
    }


def _paired(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two methods have one allocation in each of the same runs."""
    runs = ("network", "examples", "draw")  # of the same draw, whatever is done with it
    keys = [[tuple(row[name] for name in runs) for row in rows] for rows in (one, other)]
    return keys[0] == keys[1] and len(set(keys[0])) == len(keys[0])


def _pair(mean: float, sem: float, between: str) -> str:
    """A mean and its standard error, to two digits of the latter.

    >>> _pair(0.0123456, 0.00078, " ± "), _pair(91.234, 0.31, " ± "), _pair(0.5, 0.0, " ± ")
    ('0.01235 ± 0.00078', '91.23 ± 0.31', '0.5')
    """
    if not (math.isfinite(sem) and sem > 0):
        return f"{mean:.4g}"
    places = max(0, 1 - math.floor(math.log10(sem)))
    return f"{mean:.{places}f}{between}{sem:.{places}f}"


def _escaped(text: str) -> str:
    """Text for LaTeX."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
