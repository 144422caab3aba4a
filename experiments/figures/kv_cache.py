"""The figure and the table of `kv_cache`, from its JSON alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jmpq.report.style import PALETTE, error_bars, new_figure, style, write_svg

Json = Mapping[str, Any]
COLORS = {"integers": PALETTE[0], "all": PALETTE[2]}
SHOWN_BITS = 4.0  # budget whose formats are shown row by row


def rows_of(result: Json, **wanted: Any) -> list[Json]:
    """Rows with these values, one for each draw."""
    return [
        row
        for cell in result["cells"].values()
        for row in cell["rows"]
        if all(row[key] == value for key, value in wanted.items())
    ]


def perplexities(rows: Sequence[Json]) -> np.ndarray:
    """Perplexity of every row."""
    return np.exp([row["measured"]["loss"] for row in rows])


def float_perplexity(result: Json) -> float:
    """Perplexity of the float network, mean over the draws' evaluation windows."""
    return float(np.mean([np.exp(c["float"]["loss"]) for c in result["cells"].values()]))


def uniforms(result: Json) -> dict[str, list[Json]]:
    """Rows of every uniform format by its name."""
    names = {r["solver"] for r in rows_of(result, candidates="all", bits=None)}
    return {
        name.removeprefix("uniform "): rows_of(result, candidates="all", solver=name)
        for name in sorted(names)
    }


def kv_cache_figures(result: Json) -> dict[str, str]:
    """SVG text of the figure."""
    name = "kv_cache_F10-perplexity"
    title = "perplexity against bytes of keys and values a token"
    return {name: write_svg(kv_cache_figure(result), name, title)}


def kv_cache_figure(result: Json) -> Figure:
    """Perplexity against bytes a token, and the bits that every row gets at one budget."""
    with style():
        figure = new_figure(3.1)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for candidates, color in COLORS.items():
            x, y, sd = [], [], []
            for bits in result["config"]["bits"]:
                rows = rows_of(result, candidates=candidates, bits=bits, solver="exact")
                values = perplexities(rows)
                x.append(float(np.mean([row["kv_bytes"] for row in rows])))
                y.append(values.mean())
                sd.append(values.std(ddof=1) if len(values) > 1 else 0.0)
            label = f"chosen, {candidates}"
            left.plot(x, y, "D-", color=color, ms=3, label=label)
            error_bars(left, *(np.array(v, float) for v in (x, y, sd)), color=color)
        label: str | None = "uniform"
        for name, rows in uniforms(result).items():
            at = rows[0]["kv_bytes"], perplexities(rows).mean()
            left.plot(*at, "x", color="#7f7f7f", label=label)
            left.annotate(name, at, fontsize=5.5, color="#5f5f5f", xytext=(2, 2),
                          textcoords="offset points")  # fmt: skip
            label = None
        left.axhline(float_perplexity(result), color="black", lw=0.8, ls="--", label="float")
        left.set_yscale("log")
        left.set_yticks([4, 5, 7, 10, 20], ["4", "5", "7", "10", "20"], minor=False)
        left.set_yticks([], [], minor=True)
        left.set_xlabel("bytes of keys and values a token")
        left.set_ylabel("perplexity")
        left.legend()
        budget = min(result["config"]["bits"], key=lambda b: abs(b - SHOWN_BITS))
        chosen = rows_of(result, candidates="integers", bits=budget, solver="exact")
        names = list(chosen[0]["allocation"])
        for role, color in (("keys", PALETTE[1]), ("values", PALETTE[5])):
            own = [name for name in names if name.endswith(role)]
            bits = [[_bits(row["allocation"][name]) for name in own] for row in chosen]
            places = np.arange(len(own)) + (-0.2 if role == "keys" else 0.2)
            right.bar(places, np.mean(bits, axis=0), 0.38, color=color, label=role)
        right.set_xlabel("decoder layer")
        right.set_ylabel(f"bits, mean over draws ({budget:g} in the mean)")
        right.set_ylim(0, 1.25 * right.get_ylim()[1])
        right.legend(ncols=2)
        right.grid(visible=False, axis="x")
    return figure


def _bits(label: str) -> int:
    from jmpq.formats import Choice

    return Choice.parse(label).a_bits


def kv_cache_table(result: Json) -> str:
    """Perplexity and KL at the bytes of every budget; mean ± sd over draws."""
    cells = list(result["cells"].values())
    lines = [
        f"{cells[0]['float']['examples']} windows of text; float perplexity "
        f"{float_perplexity(result):.3f}. Perplexity, mean ± sd over {len(cells)} calibration "
        "draws; in brackets the KL to the float network.",
        "",
        "| bytes a token | uniform integers | chosen, integers | chosen, all | greedy, all | "
        "reversed, all |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    by_bytes = {rows[0]["kv_bytes"]: (name, rows) for name, rows in uniforms(result).items()
                if name.startswith("int")}  # fmt: skip
    four = uniforms(result)["int4"][0]["kv_bytes"]
    for bits in result["config"]["bits"]:
        name, rows = by_bytes.get(four * bits / 4, ("", []))
        found = [f"{name}: {_shown(rows)}" if rows else "–"]
        for candidates, solver in (
            ("integers", "exact"), ("all", "exact"), ("all", "greedy"), ("all", "reversed")
        ):  # fmt: skip
            found.append(
                _shown(rows_of(result, candidates=candidates, bits=bits, solver=solver))
            )
        lines.append(f"| {four * bits / 4:g} | {' | '.join(found)} |")
    lines += ["", "Uniform formats whose blocks bring their scales:", "",
              "| format | bytes a token | perplexity |", "| --- | --- | --- |"]  # fmt: skip
    for name, rows in uniforms(result).items():
        if not name.startswith("int"):
            lines.append(f"| {name} | {rows[0]['kv_bytes']:g} | {_shown(rows)} |")
    return "\n".join(lines)


def _shown(rows: Sequence[Json]) -> str:
    values, kl = perplexities(rows), np.mean([row["measured"]["kl"] for row in rows])
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    digits = 3 if values.mean() < 5 else 2
    return f"{values.mean():.{digits}f} ± {spread:.{digits}f} ({kl:.2g})"
