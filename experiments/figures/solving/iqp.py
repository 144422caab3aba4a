"""The table of `bench_iqp` for docs/results, from its JSON alone."""

from typing import Any

BOUNDS = ("row", "convex", "linearized", "semidefinite")


def iqp_table(result: dict[str, Any]) -> str:
    """One row an instance: gaps of the local search, bound by bound; and what settled it."""
    limit = result["config"]["time_limit_s"]
    # Results without a factor for HiGHS are from when all limits were of the clock on the wall.
    clock = "processor" if "wall_factor" in result["config"] else "elapsed"
    lines = [
        "| instance | layers × choices | local search above the best known | gap by rows | "
        "convex | linearized | semi-definite | branch and bound | gap left | seconds, all "
        "(processor) | HiGHS, linearized |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["instances"]:
        exact, local = row["branch_and_bound"], row["local_search"]["loss"]
        best = row["best_loss"]
        bounds = [_percent(best - row["bounds"][name]["bound"], best) for name in BOUNDS]
        rival = row.get("linearized")
        name = row["name"] if row["seed"] is None else f"{row['name']}, seed {row['seed']}"
        cells = [
            name,
            f"{row['layers']} × {row['choices']}",
            _percent(local - best, best),
            *bounds,
            exact["status"],
            _percent(best - row["best_bound"], best),
            f"{exact['wall_s']:.1f} ({exact['cpu_s']:.1f})",
            "-"
            if rival is None
            else f"{rival['status']}, {rival['wall_s']:.1f} ({rival['cpu_s']:.1f})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rows = result["instances"]
    closed = sum(row["branch_and_bound"]["status"] == "optimal" for row in rows)
    rivals = [row for row in rows if "linearized" in row]
    by_rival = sum(row["linearized"]["status"] == "optimal" for row in rivals)
    tightest = {name: 0 for name in BOUNDS}
    for row in rows:
        bounds = {name: row["bounds"][name]["bound"] for name in BOUNDS}
        tightest[max(BOUNDS, key=bounds.__getitem__)] += 1
    lines += [
        "",
        f"{closed} of {len(rows)} instances proven optimal within {limit:g} s ({clock}) by "
        f"branch and bound on the semi-definite bound; {by_rival} of the {len(rivals)} given "
        "to the linearized program by HiGHS. Tightest bound on its own: "
        + ", ".join(f"{name} {count}" for name, count in tightest.items())
        + ". One thread each.",
    ]
    return "\n".join(lines)


def _percent(difference: float, of: float) -> str:
    """A part of |of| in percent; 0 where rounding alone is left."""
    percent = 100 * difference / abs(of)
    if percent < 1e-6:
        return "0"
    return f"{percent:.3g} %" if percent < 1000 else f"{percent:.0f} %"
