"""Budgets × solvers: one record each, for tables and figures."""

import csv
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jmpq.files import write_text
from jmpq.problem.budgets import with_budgets
from jmpq.problem.problem import Problem
from jmpq.problem.solution import Infeasible
from jmpq.solvers.solver import Solver


def sweep(
    problem: Problem,
    budgets: Sequence[Sequence[str] | Mapping[str, float]],
    solvers: Mapping[str, Solver],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Solve under every set of budgets with every solver.

    Args:
        problem: Its own budgets are replaced.
        budgets: Sets of budgets as `with_budgets` takes them, e.g. ``["size_bytes=40%"]``.
        solvers: Solvers by the name of their records.
        progress: Called with (finished solves, all solves).

    Returns:
        One record per set and solver, in this order: ``budget`` (as asked), ``solver``,
        ``status`` (``infeasible`` where nothing fits), ``loss``, ``bound``, ``gap``,
        ``wall_s``, ``limit_NAME`` and ``cost_NAME`` of every budget and cost, ``choices``
        (the labels of all layers) and ``error``; None where there is nothing.
    """
    records = []
    progress(0, len(budgets) * len(solvers))
    for asked in budgets:
        here = with_budgets(problem, asked)
        text = " ".join(f"{name}={value}" for name, value in here.asked.items())
        limits = {f"limit_{name}": limit for name, limit in here.budgets.items()}
        for name, solve in solvers.items():
            record: dict[str, Any] = {"budget": text, "solver": name, **limits}
            record |= dict.fromkeys(("loss", "bound", "gap", "wall_s", "choices", "error"))
            try:
                found = solve(here)
            except Infeasible as error:
                record |= {"status": "infeasible", "error": str(error)}
            else:
                record |= {
                    "status": found.status,
                    "loss": found.loss,
                    "bound": found.bound,
                    "gap": found.gap,
                    "wall_s": found.wall_s,
                    "choices": " ".join(here.choices[c].label for c in found.columns),
                    **{f"cost_{k}": value for k, value in found.costs.items()},
                }
            records.append(record)
            progress(len(records), len(budgets) * len(solvers))
    return records


def write_csv(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as a table, whole or not at all; columns in the order they appear."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(path, text.getvalue())
