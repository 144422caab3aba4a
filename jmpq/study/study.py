"""Doing a study: its cells by an engine, and the tidy table of what they found."""

import dataclasses
import importlib.util
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jmpq.files import atomic_file, json_sha256, write_csv, write_json
from jmpq.kinds import check_kinds
from jmpq.run.artifacts import FINETUNING as FINETUNED
from jmpq.run.folder import FINETUNING
from jmpq.run.lock import writer_lock
from jmpq.run.progress import QUIET, Reporter
from jmpq.study.cells import OUTCOMES, OUTCOMES_FILE, Cell
from jmpq.study.engines import Engine, in_process
from jmpq.study.grid import AXES, Study
from jmpq.study.layout import (
    Chosen,
    Line,
    chosen,
    finetune_cell,
    lines,
    measure_cells,
    with_parents,
)

TABLE, EXAMPLES, SPENT = "table", "examples.npz", "spent.json"
_OUTCOME = ("examples", "loss", "loss_sem", "increase", "increase_sem", "kl", "kl_sem", "top1",
            "top1_sem", "top5", "agreement")  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StudyTable:
    """What a study found: a row for every place of the grid, and what every example became.

    Attributes:
        rows: The tidy table; ``outcomes`` and ``row`` say where a row's examples are.
        scores: By the key of a measurement, then by name (``kl``, ``loss``, ``top1``, ...):
            ``[allocations, examples]``, and ``indices``, the positions of the examples in
            their split.
    """

    rows: tuple[dict[str, Any], ...]
    scores: Mapping[str, Mapping[str, np.ndarray]]

    def examples(
        self, row: Mapping[str, Any], value: str
    ) -> tuple[Float[np.ndarray, " examples"], Int[np.ndarray, " examples"]] | None:
        """Values of every example of a row, float64, with their indices; None without them.

        Args:
            row: A row of the table.
            value: ``loss``, ``increase``, ``kl``, ``top1``, ``top5`` or ``agreement``.
        """
        if not row.get("outcomes"):
            return None
        of, place = self.scores[row["outcomes"]], int(row["row"])
        if value == "increase":
            found = of["loss"][place].astype(float) - of["float_loss"][place]
        else:
            found = of[value][place].astype(float)
        return found, of["indices"]


@check_kinds
def run_study(
    study: Study,
    folder: str | os.PathLike[str],
    *,
    engine: Engine = in_process,
    reporter: Reporter = QUIET,
) -> StudyTable:
    """Do what is not done of a study; write its table.

    Writes ``table.csv`` (and ``table.parquet`` where pyarrow is installed), ``examples.npz``
    with what every example became, and ``spent.json`` with the seconds of all cells. Studies in
    the same folder share cells. If interrupted, the same call goes on; the table is the same,
    whatever the engine and however often it was interrupted.

    Args:
        study: The study.
        folder: Folder of the results.
        engine: Does the cells.
        reporter: Listens.

    Raises:
        RuntimeError: If cells fail, or another process works on a study in the folder.
    """
    root = pathlib.Path(folder)
    with writer_lock(root, "study"):
        grid = lines(study)
        _do(root, [line.plan for line in grid], engine, reporter)
        found = [(line, chosen(line, root)) for line in grid]
        flat = [one for _, ones in found for one in ones]
        measured = measure_cells(study, flat)
        tuned = {
            (id(one), epochs): finetune_cell(study, one, epochs)
            for one in flat
            for epochs in study.finetune
            if epochs
        }
        _do(root, [*measured.values(), *tuned.values()], engine, reporter)
        result = _table(root, study, found, measured, tuned)
        _write(
            root, result, [*(line.plan for line in grid), *measured.values(), *tuned.values()]
        )
    reporter.say(f"Wrote {root / TABLE}.csv: {len(result.rows)} rows")
    return result


def _do(root: pathlib.Path, cells: Sequence[Cell], engine: Engine, reporter: Reporter) -> None:
    for wave in with_parents(cells):
        todo = [cell for cell in wave if cell.record(root) is None]
        if not todo:
            continue
        with reporter.bar(
            f"{' and '.join(dict.fromkeys(c.step for c in todo)):12s}", "cells"
        ) as bar:
            count = 0

            def tick(bar: Any = bar, total: int = len(todo)) -> None:
                nonlocal count
                count += 1
                bar(count, total)

            engine(root, todo, tick)


def _table(
    root: pathlib.Path,
    study: Study,
    found: Sequence[tuple[Line, Sequence[Chosen]]],
    measured: Mapping[tuple[str, str], Cell],
    tuned: Mapping[tuple[int, int], Cell],
) -> StudyTable:
    outcomes, scores, places = {}, {}, {}
    for (key, correct), cell in measured.items():
        header, arrays = OUTCOMES.read_npz(cell.folder(root) / OUTCOMES_FILE, "outcomes")
        outcomes[key, correct] = header
        scores[cell.key] = arrays
        names = map(json_sha256, cell.options["allocations"])
        places[key, correct] = {name: place for place, name in enumerate(names)}
    rows: list[dict[str, Any]] = []
    for line, ones in found:
        if not ones:
            note = (line.plan.record(root) or {}).get("note") or "no such allocation"
            rows.append({**line.axes, "correct": "none", "finetune": 0, "note": note})
        for one in ones:
            planned = one.allocation
            base = {
                **line.axes,
                "number": one.number,
                "predicted": planned.predicted_loss,
                "status": planned.status,
                **planned.costs,
                "allocation": planned.allocation.label,
            }
            key, name = line.quantizers.key, json_sha256(planned.allocation.to_json())
            for correct in study.correct if 0 in study.finetune else ():
                header, place = outcomes[key, correct], places[key, correct][name]
                rows.append(
                    base
                    | {"correct": correct, "finetune": 0}
                    | _measured(header["outcomes"][place], header["float"])
                    | {"outcomes": measured[key, correct].key, "row": place}
                )
            for epochs in filter(None, study.finetune):
                folder = tuned[id(one), epochs].folder(root)
                made = FINETUNED.read_json(folder / FINETUNING)["outcomes"]
                treated = {"correct": study.finetuning.correct, "finetune": epochs}
                rows.append(base | treated | _measured(made["finetuned"], made["float"]))
    return StudyTable(rows=tuple(_ordered(rows)), scores=scores)


def _measured(outcome: Mapping[str, Any], of_float: Mapping[str, Any]) -> dict[str, Any]:
    values = {"evaluated" if k == "examples" else k: outcome[k] for k in _OUTCOME}
    return values | {f"float_{name}": of_float[name] for name in ("loss", "top1")}


def _ordered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the same columns, those of the grid first, the long ones last."""
    last = ("allocation", "note", "outcomes", "row")
    columns = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in last]
    first = [name for name in AXES if name in columns]
    names = [*first, *(k for k in columns if k not in first), *last]
    return [{name: row.get(name) for name in names} for row in rows]


def _write(root: pathlib.Path, result: StudyTable, cells: Sequence[Cell]) -> None:
    write_csv(root / f"{TABLE}.csv", result.rows)
    if importlib.util.find_spec("pyarrow") is not None:
        import pyarrow
        import pyarrow.parquet

        with atomic_file(root / f"{TABLE}.parquet") as file:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(result.rows)), file)
    arrays = {f"{key}/{k}": v for key, own in result.scores.items() for k, v in own.items()}
    with atomic_file(root / EXAMPLES) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    every = {cell.key: cell for wave in with_parents(cells) for cell in wave}
    spent: dict[str, dict[str, float]] = {}
    for cell in every.values():
        record = cell.record(root) or {}
        total = spent.setdefault(cell.step, {"cells": 0, "wall_s": 0.0, "cpu_s": 0.0})
        total["cells"] += 1
        for name in ("wall_s", "cpu_s"):
            total[name] = math.fsum((total[name], record.get(name, 0.0)))
    write_json(root / SPENT, spent)
