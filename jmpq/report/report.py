"""One self-contained HTML page, figures as SVG and tables as CSV, from a run folder."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from jmpq.files import write_text
from jmpq.kinds import check_kinds
from jmpq.network.layers import types_of
from jmpq.report.contents import Contents, read_contents
from jmpq.report.figures import Drawing, draw_figures
from jmpq.report.style import write_svg
from jmpq.report.summary import answer, is_partial, summary
from jmpq.report.tables import Table, all_tables, cell, csv_text, sensitivity_rows
from jmpq.run.folder import RunFolder

_XML = '<?xml version="1.0" encoding="utf-8"?>\n'


@check_kinds
def write_report(run: Path | str, *, plan: str | None = None) -> Path:
    """Write ``figures/*.svg``, ``tables/*.csv`` and ``report.html`` beside a plan.

    Reads ``layers.json``, ``sensitivity.npz`` and ``plan.json``, and ``evaluation.json`` and
    ``finetuning.json`` where they are there; the same artifacts give the same bytes. The page
    starts with the recommendation. Allocations that were not evaluated are left out of the
    figures that need a measurement, and the page says so. Every file appears whole or not at
    all, the page last.

    Args:
        run: The run folder.
        plan: Name of the plan; None for the one without a name, in the run folder itself.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: If an artifact is missing.
        ValueError: If an artifact is unreadable or belongs to another one.
    """
    folder = RunFolder(run, plan=plan)
    contents, here = read_contents(folder), folder.plan_folder
    drawings = draw_figures(contents)
    tables = all_tables(contents)
    pictures = {
        drawing.name: write_svg(drawing.figure, drawing.name, drawing.title)
        for drawing in drawings
        if drawing.figure is not None
    }
    page = render_page(contents, drawings, pictures, tables, title=here.resolve().name)
    for path in (here / "figures").glob("*.svg"):  # of an earlier report
        if path.stem not in pictures:
            path.unlink()
    for name, picture in pictures.items():
        write_text(here / "figures" / f"{name}.svg", _XML + picture)
    for table in tables:
        write_text(here / "tables" / f"{table.name}.csv", csv_text(table.rows))
    types = types_of(contents.layers.layers)
    rows = sensitivity_rows(contents.sensitivities, types)
    write_text(here / "tables" / "sensitivities.csv", csv_text(rows))
    write_text(here / "report.html", page)
    return here / "report.html"


def render_page(
    contents: Contents,
    drawings: Sequence[Drawing],
    pictures: dict[str, str],
    tables: Sequence[Table],
    *,
    title: str,
) -> str:
    """The page as text.

    Args:
        contents: Artifacts of the run.
        drawings: Figures with their words, in order.
        pictures: SVG text of the figures that could be drawn, by name.
        tables: Tables, in order.
        title: Name of the run.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files("jmpq.report").joinpath("template.html.j2")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    plan = contents.plan
    return template.render(
        title=title,
        summary=summary(contents),
        answer=answer(contents),
        evaluated=contents.evaluated,
        partial=contents.evaluated and is_partial(plan, contents.evaluation),
        drawings=drawings,
        pictures=pictures,
        tables=[
            {
                "table": table,
                "cells": [[cell(row, column) for column in table.columns]
                          for row in table.shown],
                "numeric": [column.format != "text" for column in table.columns],
                "marks": [_marks(row) for row in table.shown],
            }
            for table in tables
        ],
        made=f"jmpq {plan.get('jmpq', '')}, plan of {plan.get('created', 'unknown date')}",
        seed=json.dumps(plan.get("seed")),
    )  # fmt: skip


def _marks(row: Mapping[str, Any]) -> str:
    """Classes of a row of a table."""
    classes = {"lead": row.get("recommended"), "destroyed": row.get("mark") == "destroyed"}
    return " ".join(name for name, is_so in classes.items() if is_so)
