"""Table T7 for docs/results, and its figure, from the fine-tuning experiment's JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jmpq.report.style import PALETTE, new_figure, style, write_svg

Json = Mapping[str, Any]
NETWORKS = {"resnet20": "ResNet-20", "digits_resnet": "digits network"}
NAMES = {  # (method, start, correction): None for any
    ("nearest", None, "none"): "post-training, nearest",
    ("nearest", None, "batch_norm"): "post-training, nearest, batch norm",
    ("gptq", None, "none"): "post-training, gptq",
    ("gptq", None, "batch_norm"): "post-training, gptq, batch norm",
    ("ste", "nearest", None): "fine-tuned, ste",
    ("lsq", "nearest", None): "fine-tuned, lsq",
    ("ste", "gptq", None): "fine-tuned, ste from gptq",
    ("lsq", "gptq", None): "fine-tuned, lsq from gptq",
}
Way = tuple[str, str | None, str | None]
COLORS = dict(zip(NAMES, (*PALETTE[:4], *PALETTE[:4][::-1]), strict=True))
NEAREST: Way = ("nearest", None, "none")


def rows_of(result: Json, allocation: str, way: Way) -> list[Json]:
    """One way to quantize an allocation, all seeds."""
    method, start, correct = way
    return [
        row
        for row in result["rows"]
        if (row["allocation"], row["method"]) == (allocation, method)
        and start in (None, row.get("start"))
        and correct in (None, row["correct"])
    ]


def outcomes_of(result: Json, allocation: str, way: Way) -> list[Json]:
    """What was measured of it."""
    return [row["measured"] for row in rows_of(result, allocation, way)]


def recovered(result: Json, allocation: str, top1: float) -> float:
    """Part of the drop of post-training rounding to nearest that is made up for."""
    (plain,) = outcomes_of(result, allocation, NEAREST)
    return (top1 - plain["top1"]) / (result["float"]["top1"] - plain["top1"])


def finetune_table(result: Json) -> str:
    """T7: top-1, KL and the part of the drop that is recovered; mean ± sd over seeds."""
    config, counts = result["config"], {k: v["examples"] for k, v in result["splits"].items()}
    top1, sem = 100 * result["float"]["top1"], 100 * result["float"]["top1_sem"]
    tuned = [row for row in result["rows"] if row["method"] in config["methods"]]
    minutes = np.median([row["seconds"] for row in tuned]) / 60
    load = result["machine"]["load"]
    busy = "" if load is None else f", load average {load[-1]:.0f}"
    spread = f" Mean ± sd over {config['seeds']} seeds." if config["seeds"] > 1 else ""
    lines = [
        f"{NETWORKS.get(config['model'], config['model'])}: float top-1 {top1:.2f} % on "
        f"{counts['evaluation']:,} test images (standard error {sem:.2f}), calibrated on "
        f"{counts['calibration']:,} others. Fine-tuned on {counts['training']:,} training "
        f"images, {config['epochs']} epochs, {tuned[0]['steps']} steps of "
        f"{config['batch_size']} images: {minutes:.0f} minutes in the median on "
        f"{result['machine']['cores']} cores{busy}.{spread} Recovered: part of the drop of "
        "rounding to nearest.",
        "",
        "| allocation | kB | network | top-1 % | KL | recovered |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for allocation, found in result["allocations"].items():
        for key, name in NAMES.items():
            if not (outcomes := outcomes_of(result, allocation, key)):
                continue
            accuracy = np.array([o["top1"] for o in outcomes])
            part = recovered(result, allocation, float(accuracy.mean()))
            lines.append(
                f"| {allocation} | {found['size_bytes'] / 1e3:.1f} | {name} | "
                f"{_mean(100 * accuracy, 2)} | {_mean([o['kl'] for o in outcomes], 3)} | "
                f"{'–' if key == NEAREST else f'{100 * part:.0f} %'} |"
            )
    return "\n".join(lines)


def _mean(values: Any, digits: int) -> str:
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def finetune_figure(result: Json) -> Figure:
    """Training curves of the first allocation, and top-1 of every way for each allocation."""
    allocations = list(result["allocations"])
    with style():
        figure = new_figure(3.1)
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        tuned = [way for way in NAMES if way[1] and rows_of(result, allocations[0], way)]
        for way in tuned:
            color = COLORS[way]
            for row in rows_of(result, allocations[0], way):
                x, y = ([p[key] for p in row["curve"]] for key in ("step", "loss"))
                left.plot(x, y, color=color, lw=0.8)
        left.set_title(allocations[0], loc="left")
        left.set_yscale("log")
        left.set_xlabel("step")
        left.set_ylabel("training loss (nats per example)")
        for number, (way, name) in enumerate(NAMES.items()):
            label: str | None = name
            for place, allocation in enumerate(allocations):
                if outcomes := outcomes_of(result, allocation, way):
                    y = [100 * o["top1"] for o in outcomes]
                    x = np.full(len(y), place + 0.1 * (number - 3.5))
                    marker = "D" if way[1] else "o"
                    right.plot(x, y, marker, ms=3.5, color=COLORS[way], label=label)
                    label = None
        top1 = 100 * result["float"]["top1"]
        right.axhline(top1, ls="--", lw=0.9, color="k", label="float network")
        right.set_xticks(range(len(allocations)), allocations)
        right.set_ylabel("top-1 accuracy (%)")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def finetune_figures(result: Json) -> dict[str, str]:
    """SVG text by name."""
    name = f"finetune_{result['config']['model']}_T7"
    return {name: write_svg(finetune_figure(result), name, "T7, post-training and fine-tuned")}
