"""The tables of `confirmation`, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

from jmpq.report.style import metric_name

Json = Mapping[str, Any]
DEFAULT = "gauss_newton/exact"
ALPHA = 0.05
TITLES = {
    "resnet32": "ResNet-32",
    "resnet44": "ResNet-44",
    "digits_resnet": "a small residual network",
}
BUDGETS = {
    "size_bytes=8%": "8 % size",
    "size_bytes=W3": "size of 3 bits",
    "size_bytes=W4": "size of 4 bits",
    "size_bytes=W4A4 bops=W4A4": "size and bit operations of W4A4",
}
ROUNDINGS = {"nearest": "nearest", "gptq": "GPTQ"}


def verdict(row: Json, value: str) -> str:
    """Where a rival stands beside the default: ``better``, ``level`` or ``worse``.

    Level is what the paired test does not tell from the default at 5 %, corrected for the
    number of rivals (Holm).
    """
    found = row[f"{value}_difference"]
    if found["p_holm"] >= ALPHA:
        return "level"
    return "better" if (found["mean"] < 0) == (value == "kl") else "worse"


def confirmation_table(result: Json, value: str) -> str:
    """Every method at every budget: the value, and where it stands beside the default.

    Args:
        result: The committed result.
        value: ``kl`` or ``top1``.
    """
    parts = result["parts"]
    methods = list(dict.fromkeys(r["method"] for part in parts.values() for r in part["rows"]))
    unit = "KL, 10⁻³ nats" if value == "kl" else "Top-1, percent"
    lines = [
        f"{unit}: mean of the draws. **▲** is better than the default, ▼ worse, no mark level.",
        "",
        f"| network, kernels, budget | {' | '.join(map(_method, methods))} |",
        "| --- |" + " --- |" * len(methods),
    ]
    for key, part in parts.items():
        network = TITLES.get(key.split("/")[0], key)
        places = dict.fromkeys((row["rounding"], row["budget"]) for row in part["rows"])
        for rounding, budget in places:
            here = {
                row["method"]: row
                for row in part["rows"]
                if (row["rounding"], row["budget"]) == (rounding, budget)
            }
            cells = [_cell(here[m], value) if m in here else "-" for m in methods]
            name = f"{network}, {ROUNDINGS[rounding]}, {BUDGETS.get(budget, budget)}"
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _method(name: str) -> str:
    metric, _, solver = name.partition("/")
    if not solver:
        return metric
    return metric_name(metric) + (", default" if name == DEFAULT else f", {solver}")


def _cell(row: Json, value: str) -> str:
    shown = (
        f"{1e3 * row[value]['mean']:.3g}"
        if value == "kl"
        else f"{100 * row[value]['mean']:.1f}"
    )
    if row["method"] == DEFAULT:
        return shown
    return {"better": f"**{shown} ▲**", "level": shown, "worse": f"{shown} ▼"}[
        verdict(row, value)
    ]
