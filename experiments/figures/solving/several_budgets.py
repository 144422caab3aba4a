"""The table of `bench_several_budgets` for README.md, from its JSON alone."""

import itertools
import re
import statistics
from typing import Any

from jmpq.problem.solution import OPTIMALITY

Json = dict[str, Any]
OURS, PLAIN = "several_budgets", "HIGHS_plain"


def several_budgets_table(result: Json) -> str:
    """One row a problem, or a family of small ones of which the worst is shown."""
    config = result["config"]
    limits = [f"{OURS}, {limit:g} s" for limit in config["time_limits_s"]]
    targets = [f"to {100 * gap:g} %" for gap in config["gaps"]]
    header = [
        "problem",
        "groups × choices × budgets",
        "greedy",
        "greedy, dual prices",
        f"search alone, {config['search_s']:g} s",
        *(f"{limit:g} s" for limit in config["time_limits_s"]),
        f"gap left, {config['time_limits_s'][-1]:g} s",
        *(f"seconds {target}: jmpq, HiGHS" for target in targets),
    ]
    lines = [_row(header), _row(["---"] * len(header))]
    for name, problems in _families(result["rows"]):
        shape = " × ".join(f"{size:,}" for size in problems[0][limits[-1]]["shape"])
        cells = [name, shape]
        for solver in ("greedy", "greedy/dual_prices", "search", *limits):
            above = [_above(rows, solver) for rows in problems if solver in rows]
            cells.append(_percent(max(above)) if above else "-")
        left = max(rows[limits[-1]]["gap"] for rows in problems)
        cells.append("optimal" if left <= OPTIMALITY else _percent(left))
        cells += [_seconds(problems[0], target) for target in targets]
        lines.append(_row(cells))
    return "\n".join([*lines, "", *(_ratio(result, target) for target in targets)])


def _problems(rows: list[Json]) -> list[dict[str, Json]]:
    """The rows of each problem by solver."""
    grouped = itertools.groupby(rows, lambda row: row["problem"])
    return [{row["solver"]: row for row in some} for _, some in grouped]


def _families(rows: list[Json]) -> list[tuple[str, list[dict[str, Json]]]]:
    """Problems by name; those without gaps to prove whose names differ by a number together."""

    def name(problem: dict[str, Json]) -> str:
        return next(iter(problem.values()))["problem"]

    def family(problem: dict[str, Json]) -> str:
        proves = any(solver.startswith(PLAIN) for solver in problem)
        return name(problem) if proves else re.sub(r"_?\d+$", "", name(problem))

    families = []
    for _, members in itertools.groupby(_problems(rows), family):
        some = list(members)
        several = f" to {name(some[-1])} ({len(some)} problems)" if len(some) > 1 else ""
        families.append((name(some[0]) + several, some))
    return families


def _above(rows: dict[str, Json], solver: str) -> float:
    """Loss above the best known, as a part of it; above the best found where none is known."""
    losses = [row["loss"] for row in rows.values() if row["loss"] is not None]
    known = rows[solver]["best_known"]
    best = min(losses) if known is None else known
    return (rows[solver]["loss"] - best) / abs(best)


def _seconds(rows: dict[str, Json], target: str) -> str:
    if f"{PLAIN} {target}" not in rows:
        return "-"
    shown = []
    for solver in (OURS, PLAIN):
        row = rows[f"{solver} {target}"]
        shown.append(
            f"{row['cpu_s']:.2g}" if _reached(row, target) else f"> {row['cpu_s']:.2g}"
        )
    return ", ".join(shown)


def _reached(row: Json, target: str) -> bool:
    gap = float(target.split()[1]) / 100
    return row["gap"] is not None and row["gap"] <= 1.01 * gap


def _ratio(result: Json, target: str) -> str:
    """How many times faster, over the public problems and over the others."""
    told = []
    for known, problems in ((True, "public problems"), (False, "tables of ResNet-20")):
        ratios, short = [], 0
        for rows in _problems(result["rows"]):
            plain, ours = rows.get(f"{PLAIN} {target}"), rows.get(f"{OURS} {target}")
            if plain is None or ours is None or (plain["best_known"] is not None) != known:
                continue
            ratios.append(plain["cpu_s"] / ours["cpu_s"])
            short += not _reached(plain, target)
        if ratios:
            told.append(
                f"{statistics.median(ratios):.3g} times on the {len(ratios)} {problems}"
                + (f" (HiGHS stopped short on {short})" if short else "")
            )
    return f"Median speed {target}, against cvxpy with HiGHS: {'; '.join(told) or '-'}."


def _percent(part: float) -> str:
    """A part in percent; 0 where rounding alone is left."""
    percent = 100 * part
    return "0" if abs(percent) < 1e-6 else f"{percent:.2g} %"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
