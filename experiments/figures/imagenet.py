"""Table and figure of the ImageNet networks, from the JSON of `imagenet` alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jmpq.report.style import PALETTE, error_bars, metric_name, new_figure, style, write_svg

Json = Mapping[str, Any]
TITLES = {
    "mobilenet_v1_0.75": "MobileNetV1, width 0.75",
    "squeezenet1_1": "SqueezeNet 1.1",
}


def imagenet_table(result: Json) -> str:
    """One row an allocation, at each budget: top-1, agreement, KL, what its metric predicts."""
    return "\n\n".join(
        _network_table(_title(name), found) for name, found in result["networks"].items()
    )


def _title(key: str) -> str:
    """Of a network, and how its weights are rounded where that is not to nearest."""
    name, _, rounding = key.partition("/")
    title = TITLES.get(name, name)
    return f"{title}, rounded by {rounding}" if rounding else title


def _network_table(title: str, found: Json) -> str:
    floats = found["float"]["evaluation"]
    examples = {name: split["examples"] for name, split in found["splits"].items()}
    budgets = found["budgets"]
    limits = {b: outcome["limits"]["size_bytes"]["limit"] for b, outcome in budgets.items()}
    shown = ("predicted", "KL", "agree", "top-1")
    columns = [f"{what}, {budget}" for budget in budgets for what in shown]
    top1, sem = 100 * floats["top1"], 100 * floats["top1_sem"]
    sizes = ", ".join(f"{budget} {limit / 1e6:.3f} MB" for budget, limit in limits.items())
    lines = [
        f"{title}: float top-1 {top1:.2f} ± {sem:.2f} % on "
        f"{examples['evaluation']:,} images, calibrated on {examples['calibration']:,} others; "
        f"{_whole(found['whole'])}. Sizes: {sizes}. {_notes(found)}KL in nats per example, "
        "agreement with the float network and top-1 in %.",
        "",
        f"| allocation | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    named = {b: {row["name"]: row for row in o["allocations"]} for b, o in budgets.items()}
    every = {row["name"]: row for rows in named.values() for row in rows.values()}
    solved = [n for rows in named.values() for n, r in rows.items() if r["role"] == "solution"]
    for name in dict.fromkeys(solved):
        rows = [named[budget].get(name) for budget in budgets]
        lines.append(_row(_label(name), rows))
    rows = [every.get(f"uniform/{budget}") for budget in budgets]
    lines.append(_row("uniform", rows, predicted=False))
    rows = [named[budget].get("reversed") for budget in budgets]
    lines.append(_row("reversed greedy", rows, predicted=False))
    return "\n".join(lines)


def _whole(whole: Json) -> str:
    top1, top5 = (f"{100 * whole[key]:.1f}" for key in ("top1", "top5"))
    return f"on all {whole['examples']:,} images top-1 {top1}, top-5 {top5} %"


def _notes(found: Json) -> str:
    """What the run says of its logits and its traces, where it does."""
    notes = ""
    if error := found.get("reference_error"):
        notes += (
            f"Logits of {error['images']} images differ from the reference by at most "
            f"{error['largest']:.1g} (relative). "
        )
    negative = found.get("negative_layers", {}).get("hawq_trace")
    if negative is not None:
        config, examples = found["config"], found["splits"]["calibration"]["examples"]
        batches = -(-examples // config["batch_size"])
        notes += (
            f"HAWQ-V2's traces, {config['probes']} probes on each of {batches} batches, are "
            f"negative in {len(negative)} of {len(found['layers'])} layers. "
        )
    return notes


def _row(label: str, rows: list[Json | None], *, predicted: bool = True) -> str:
    cells = []
    for row in rows:
        if row is None:
            cells += ["–"] * 4
            continue
        measured = row["measured"]
        value = row["predicted_loss"]
        cells += [
            f"{value:.3g}" if predicted and value is not None else "–",
            f"{measured['kl']:.3f} ± {measured['kl_sem']:.3f}",
            f"{100 * measured['agreement']:.1f}",
            f"{100 * measured['top1']:.1f}",
        ]
    return f"| {label} | {' | '.join(cells)} |"


def _label(name: str) -> str:
    solver, _, metric = name.partition("/")
    return f"{solver}, {metric_name(metric)}"


def imagenet_figure(result: Json) -> Figure:
    """KL divergence to the float network against size."""
    with style():
        figure = new_figure(2.8)
        panels = figure.subplots(1, len(result["networks"]), squeeze=False)[0]
        for axes, (name, found) in zip(panels, result["networks"].items(), strict=True):
            rows = [r for o in found["budgets"].values() for r in o["allocations"]]
            groups = {
                "uniform": [r for r in rows if r["asked"] == "uniform"],
                **{
                    f"exact, {metric_name(metric)}": [
                        r for r in rows if r["name"] == f"exact/{metric}"
                    ]
                    for metric in found["seconds"]
                },
            }
            for (label, points), color in zip(groups.items(), PALETTE, strict=False):
                points = sorted(points, key=lambda r: r["costs"]["size_bytes"])
                x = np.array([r["costs"]["size_bytes"] / 1e6 for r in points])
                y = np.array([r["measured"]["kl"] for r in points])
                sem = np.array([r["measured"]["kl_sem"] for r in points])
                axes.plot(x, y, "o-", ms=3, lw=0.9, color=color, label=label)
                error_bars(axes, x, y, sem, color=color)
            axes.set(xlabel="size (MB)", yscale="log", title=_title(name))
        panels[0].set_ylabel("KL to the float network (nats)")
        panels[0].legend(fontsize=6.5)
    return figure


def imagenet_figures(result: Json) -> dict[str, str]:
    """SVG text by file name."""
    name = "imagenet_F10-kl"
    return {name: write_svg(imagenet_figure(result), name, "KL against size, ImageNet")}
