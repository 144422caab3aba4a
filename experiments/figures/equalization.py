"""The table of `equalization` for docs/results, from its JSON alone."""

from typing import Any


def equalization_table(result: dict[str, Any]) -> str:
    """One row a network, one column a case: top-1 in percent."""
    cases = [tuple(case) for case in result["config"]["cases"]]
    found = {
        (x["network"], x["granularity"], x["w_bits"], x["a_bits"]): x["measured"]
        for x in result["rows"]
    }
    sems = [100 * x["top1_sem"] for x in found.values()]
    lines = [
        f"{result['config']['model']}, top-1 in % on "
        f"{result['splits']['evaluation']['examples']} images (standard errors "
        f"{min(sems):.1f} to {max(sems):.1f}), all layers at the same bits.",
        "",
        "| network | float | " + " | ".join(_case(*case) for case in cases) + " |",
        "| --- | --- |" + " --- |" * len(cases),
    ]
    for name, exact in result["float"].items():
        cells = [f"{100 * found[name, *case]['top1']:.1f}" for case in cases]
        lines.append(f"| {name} | {100 * exact['top1']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _case(granularity: str, w_bits: int, a_bits: int) -> str:
    bits = f"W{w_bits}" if a_bits == 32 else f"W{w_bits}A{a_bits}"
    return f"{bits}, a scale a {granularity}"
