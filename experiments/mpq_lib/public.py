"""Public problems as instances: quadratic ones of QPLIB, knapsacks with several capacities.

They are minimised: the loss of a problem that is to be maximised is the negative value. Where
a problem has an equation, two budgets state it, one on what is used and one on what is not.
"""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jmpq.problem import Instance, Known, problem_of

Suite = Literal["qplib", "mmkp", "hiremath_hill"]
SUITES: tuple[Suite, ...] = ("qplib", "mmkp", "hiremath_hill")


def public(
    data_dir: pathlib.Path, suites: tuple[Suite, ...] = SUITES, names: tuple[str, ...] = ()
) -> Iterator[Instance]:
    """The public problems, those of some names only where these are given."""
    index = json.loads((data_dir / "solvers" / "index.json").read_text())
    for suite in suites:
        with np.load(data_dir / "solvers" / f"{suite}.npz") as file:
            for row in index:
                if row["suite"] == suite and (not names or row["name"] in names):
                    prefix = f"{row['name']}/"
                    keys = [key for key in file.files if key.startswith(prefix)]
                    yield instance(row, {key.removeprefix(prefix): file[key] for key in keys})


def instance(row: dict[str, Any], arrays: dict[str, np.ndarray]) -> Instance:
    """One problem from its line in the index and its arrays, which the README describes."""
    sizes = arrays["sizes"]
    shape = (len(sizes), int(sizes.max()))
    group = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    allowed = np.zeros(shape, dtype=bool)
    allowed[group, rank] = True
    sign = 1.0 if row["sense"] == "min" else -1.0

    def table(values: np.ndarray) -> Float[np.ndarray, "groups choices"]:
        out = np.zeros(shape)
        out[group, rank] = values.astype(np.float64)
        return out

    losses = sign * table(arrays["linear"])
    losses[0] += sign * row["constant"]  # every allocation takes one choice of it
    cross = None
    if row["quadratic_terms"]:
        cross = np.zeros((*shape, *shape))
        i, j = arrays["quad_i"], arrays["quad_j"]
        value = sign * arrays["quad_v"].astype(np.float64)
        cross[group[i], rank[i], group[j], rank[j]] = value
        cross[group[j], rank[j], group[i], rank[i]] = value
    costs, budgets = {}, {}
    rows = zip(arrays["rows"], arrays["row_sense"], arrays["rhs"], strict=True)
    for k, (values, sense, limit) in enumerate(rows if row["rows"] else ()):
        for way in {"<=": (1,), ">=": (-1,), "=": (1, -1)}[str(sense)]:
            # Costs may not be negative: each group's are counted from the least of the group.
            name = f"row{k}" if way > 0 else f"row{k}_from_below"
            used = way * table(values)
            least = np.minimum(np.where(allowed, used, np.inf).min(axis=1), 0.0)
            costs[name] = np.where(allowed, used - least[:, None], 0.0)
            budgets[name] = float(way * float(limit) - least.sum())
    problem = problem_of(losses, costs, budgets, allowed=allowed, interactions=cross)
    best = arrays["best"].astype(np.int64)
    loss = sign * row["best_known"]
    return Instance(
        name=row["name"],
        problem=problem,
        known=Known(loss=loss, source=_source(row), bound=_bound(row), columns=best),
    )


def _bound(row: dict[str, Any]) -> float:
    """The bound that the source proves, as a loss; -inf for none."""
    if row["optimal"] is not None:
        return row["best_known"] if row["sense"] == "min" else -row["best_known"]
    if (upper := row.get("upper_bound_here")) is not None:
        return -upper
    return -math.inf


def _source(row: dict[str, Any]) -> str:
    if row["optimal"] is not None:
        return f"optimal: {row['optimal']}"
    return row.get("listed_source") or "best of published heuristics and a run of HiGHS"
