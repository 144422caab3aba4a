"""The tables of the leaderboard (T9) from its JSON alone."""

import math
from collections.abc import Sequence
from typing import Any

TOLERANCE = 1e-6  # of the best known value: what counts as reached, and as proven
Row = dict[str, Any]


def best_known(result: dict[str, Any]) -> dict[str, float]:
    """The least loss of every problem that anybody knows: its source, or a run here."""
    best: dict[str, float] = {}
    for problem in result["problems"]:
        losses = [row["loss"] for row in _of(result, problem["problem"]) if _found(row)]
        losses += [] if problem["best_known"] is None else [problem["best_known"]]
        best[problem["problem"]] = min(losses, default=math.nan)
    return best


def behind(loss: float | None, best: float) -> float:
    """How far a loss is above the best known, as a part of it; of the loss where that is 0."""
    if loss is None:
        return math.inf
    difference = loss - best
    if difference <= TOLERANCE * max(abs(best), 1e-300):
        return 0.0
    return difference / (abs(best) or abs(loss))


def is_proven(row: Row, best: float) -> bool:
    """Whether a run proves its own loss, and that is the best known."""
    if row["loss"] is None or row["bound"] is None or behind(row["loss"], best) > 0:
        return False
    return best - row["bound"] <= TOLERANCE * max(abs(best), 1e-300) or row["bound"] >= best


def standing(result: dict[str, Any], problem: str, solver: str, limit: float) -> Row | None:
    """The run with the longest limit up to one: who ended early is not asked again."""
    rows = [r for r in _of(result, problem) if r["solver"] == solver and r["limit_s"] <= limit]
    return max(rows, key=lambda row: row["limit_s"], default=None)


def summary_table(result: dict[str, Any]) -> str:
    """One row a solver: problems that it takes, best known reached and proven, by time."""
    best, limits = best_known(result), _limits(result)
    titles = [f"{what} in {limit:g} s" for what in ("best known", "proven") for limit in limits]
    lines = [
        f"| solver | problems | {' | '.join(titles)} | median gap, {limits[0]:g} s |",
        "| --- " * (len(titles) + 3) + "|",
    ]
    for solver in dict.fromkeys(row["solver"] for row in result["rows"]):
        taken = [p for p in best if standing(result, p, solver, limits[-1]) is not None]
        cells = []
        for test in (_reaches, is_proven):
            for limit in limits:
                rows = [(standing(result, p, solver, limit), best[p]) for p in taken]
                cells.append(str(sum(row is not None and test(row, b) for row, b in rows)))
        first = [standing(result, p, solver, limits[0]) for p in taken]
        gaps = sorted(
            behind(row["loss"] if row else None, best[p])
            for row, p in zip(first, taken, strict=True)
        )
        cells.append(_percent(gaps[len(gaps) // 2]))
        lines.append(f"| {solver} | {len(taken)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def leaderboard_table(result: dict[str, Any]) -> str:
    """One row a problem: how far every solver is from the best known after every limit."""
    best, limits = best_known(result), _limits(result)
    solvers = list(dict.fromkeys(row["solver"] for row in result["rows"]))
    lines = [
        "| problem | groups | options | budgets | pairs | best known | "
        f"{' | '.join(solvers)} |",
        "| --- " * (len(solvers) + 6) + "|",
    ]
    for about in result["problems"]:
        name = about["problem"]
        cells = [_standings(result, name, solver, limits, best[name]) for solver in solvers]
        lines.append(
            f"| {name} | {about['groups']} | {about['options']} | {about['budgets']} | "
            f"{about['pairs']} | {best[name]:.8g} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _standings(
    result: dict[str, Any], problem: str, solver: str, limits: Sequence[float], best: float
) -> str:
    """Gaps after every limit that was tried, the last with a star where it is proven."""
    rows = [standing(result, problem, solver, limit) for limit in limits]
    tried = {row["limit_s"]: row for row in rows if row is not None}
    if not tried:
        return "-"
    gaps = [_percent(behind(row["loss"], best)) for row in tried.values()]
    last = max(tried.items())[1]
    return " / ".join(gaps) + ("*" if is_proven(last, best) else "")


def _reaches(row: Row, best: float) -> bool:
    return behind(row["loss"], best) == 0.0


def _limits(result: dict[str, Any]) -> list[float]:
    return sorted({row["limit_s"] for row in result["rows"]})


def _of(result: dict[str, Any], problem: str) -> list[Row]:
    return [row for row in result["rows"] if row["problem"] == problem]


def _found(row: Row) -> bool:
    return row["loss"] is not None


def _percent(part: float) -> str:
    if math.isinf(part):
        return "none"
    return "0" if part == 0.0 else f"{100 * part:.2g} %"
