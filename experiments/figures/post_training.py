"""The table of `post_training` for docs/results, from its JSON alone."""

from typing import Any

CORRECTIONS = {"none": "uncorrected", "bias": "bias", "batch_norm": "batch norm"}


def post_training_table(result: dict[str, Any]) -> str:
    """One row an allocation, one column a rounding and correction: top-1 in percent."""
    config = result["config"]
    columns = [(r, c) for r in config["roundings"] for c in config["corrections"]]
    found = {(x["allocation"], x["rounding"], x["correct"]): x for x in result["rows"]}
    names = list(dict.fromkeys(x["allocation"] for x in result["rows"]))
    examples = {name: split["examples"] for name, split in result["splits"].items()}
    lines = [
        f"Float top-1 {100 * result['float']['top1']:.2f} % on {examples['evaluation']:,} test "
        f"images, calibrated on {examples['calibration']:,} others. Standard errors of top-1 "
        "are at most "
        f"{100 * max(x['measured']['top1_sem'] for x in result['rows']):.2f} points.",
        "",
        "| allocation | kB | "
        + " | ".join(f"{r}, {CORRECTIONS[c]}" for r, c in columns)
        + " |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for name in names:
        sizes = [found[name, r, c]["size_bytes"] for r, c in columns]
        top1 = [f"{100 * found[name, r, c]['measured']['top1']:.2f}" for r, c in columns]
        lines.append(f"| {name} | {max(sizes) / 1000:.1f} | {' | '.join(top1)} |")
    return "\n".join(lines)
