"""Tables of the whole flow on networks of other kinds, from the JSON of `whole_flow` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jmpq.report.style import metric_name

Json = Mapping[str, Any]
TITLES = {
    "stories260k": "stories260K, a Llama-type decoder",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "vit_cifar": "vit_cifar, a small vision transformer",
    "digits_resnet": "a small residual network",
}
METRIC = "gauss_newton"
TEXT = ("text", "documents")  # data sets whose quality is perplexity


def whole_flow_tables(result: Json) -> str:
    """A table for every network and rounding: KL, and top-1 or perplexity, by allocation."""
    groups: dict[tuple[str, str], list[Json]] = {}
    for name, cell in result["cells"].items():
        network, rounding, _ = name.split("/")
        groups.setdefault((network, rounding), []).append(cell)
    return "\n\n".join(_table(*key, cells) for key, cells in sorted(groups.items()))


def _table(network: str, rounding: str, cells: Sequence[Json]) -> str:
    asked = cells[0]["asked"]
    text = asked["data"] in TEXT
    plans = list(dict.fromkeys((r["budget"], r["inputs"]) for r in cells[0]["allocations"]))
    columns = [
        f"{what}, W{budget}{inputs}" for budget, inputs in plans for what in ("KL", _unit(text))
    ]
    floats = [cell["float"]["evaluation"] for cell in cells]
    examples = [cell["splits"][split]["examples"] for split in ("calibration", "evaluation")
                for cell in cells[:1]]  # fmt: skip
    memory = ", ".join(
        f"{step} {max(cell['memory_bytes'][step] for cell in cells) / 1e6:,.0f}"
        for step in cells[0]["memory_bytes"]
    )
    count = f"{len(cells)} draw" + ("s" if len(cells) > 1 else "")
    lines = [
        f"{TITLES.get(network, network)}, kernels rounded by {rounding}: {count} of "
        f"{examples[0]} calibration examples, measured on {examples[1]} others; float "
        f"{_unit(text)} {_spread([_quality(f, text) for f in floats], 2)}. KL in nats per "
        "example, mean ± standard deviation over draws; in brackets what Gauss-Newton "
        f"predicts. HAWQ-V2's traces by {_probes(cells)} probes. Most memory of a step's "
        f"process, MB: {memory}.",
        "",
        f"| allocation | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    names = dict.fromkeys(_group(row) for cell in cells for row in cell["allocations"])
    for name in names:
        shown = []
        for budget, inputs in plans:
            at = [rows for cell in cells if (rows := _found(cell, name, budget, inputs))]
            kl = [np.mean([_measured(row)["kl"] for row in rows]) for rows in at]
            predicted = [np.mean([row["predictions"][METRIC] for row in rows]) for rows in at]
            quality = [np.mean([_quality(_measured(r), text) for r in rows]) for rows in at]
            bracket = f" ({np.mean(predicted):.2g})" if predicted else ""
            shown += [_spread(kl, 4) + bracket, _spread(quality, 2)]
        lines.append(f"| {_label(name)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _probes(cells: Sequence[Json]) -> str:
    """How many probes the traces of a network had, least and most over its draws."""
    asked = [cell["asked"] for cell in cells]
    counts = [a.get("probes", 1) * -(-a["examples"] // a["batch_size"]) for a in asked]
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def _found(cell: Json, name: str, budget: int, inputs: str) -> list[Json]:
    """The allocations of a group, within one budget."""
    return [
        row
        for row in cell["allocations"]
        if (_group(row), row["budget"], row["inputs"]) == (name, budget, inputs)
    ]


def _measured(row: Json) -> Json:
    return row["measured"]["evaluation"]


def _group(row: Json) -> str:
    """Random allocations are one row, and so are the uniform ones of all budgets."""
    first = row["name"].partition("/")[0]
    return first if first in ("random", "reversed", "uniform") else row["name"]


def _label(name: str) -> str:
    solver, _, metric = name.partition("/")
    return f"{solver}, {metric_name(metric)}" if metric else name


def _unit(text: bool) -> str:
    return "perplexity" if text else "top-1 %"


def _quality(measured: Json, text: bool) -> float:
    return float(np.exp(measured["loss"])) if text else 100 * measured["top1"]


def _spread(values: Sequence[Any], digits: int) -> str:
    if not values:
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean
