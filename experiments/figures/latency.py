"""The figure and the tables of `latency`, from its JSON alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jmpq.report.style import PALETTE, new_figure, style, write_svg

Json = Mapping[str, Any]
TITLES = {
    "resnet20": "ResNet-20",
    "mobilenet_v1_0.75": "MobileNetV1-0.75",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "digits_resnet": "a small residual network",
}
RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}
SHOWN = {  # plan and allocation of every label
    "uniform W8A8": ("latency", "uniform/W8A8"),
    "chosen, latency": ("latency", "exact/measured_kl"),
    "chosen, size": ("size", "exact/measured_kl"),
}


def outcomes(found: Json, plan: str, name: str) -> list[Json]:
    """What an allocation came to, one entry a draw."""
    return [draw[plan]["allocations"][name] for draw in found["draws"]]


def mean_ms(rows: Sequence[Json]) -> float:
    """Mean milliseconds of a batch of one, measured."""
    return 1e3 * float(np.mean([row["cpu_s"] for row in rows]))


def latency_figures(result: Json) -> dict[str, str]:
    """SVG text of F21."""
    name = "latency_F21-budget"
    return {name: write_svg(latency_figure(result), name, "KL against measured latency")}


def latency_figure(result: Json) -> Figure:
    """KL of every draw against its measured latency, as a share of float."""
    networks = _with_draws(result)
    with style():
        figure = new_figure(2.6)
        panels = figure.subplots(1, len(networks), squeeze=False)[0]
        for axes, (key, found) in zip(panels, networks.items(), strict=True):
            for color, (label, at) in zip((5, 2, 0), SHOWN.items(), strict=True):
                rows = outcomes(found, *at)
                floats = [draw[at[0]]["float"]["cpu_s"] for draw in found["draws"]]
                axes.plot(
                    [row["cpu_s"] / other for row, other in zip(rows, floats, strict=True)],
                    [row["measured"]["kl"] for row in rows],
                    "o", ms=3.5, color=PALETTE[color], label=label,
                )  # fmt: skip
            limits = [d["latency"]["limits"]["latency_s"] / d["latency"]["float"]["cpu_s"]
                      for d in found["draws"]]  # fmt: skip
            axes.axvline(float(np.mean(limits)), color="black", lw=0.8, ls="--", label="budget")
            axes.set_yscale("log")
            axes.set_xlim(0, 1)
            axes.set_title(_title(key))
            axes.set_xlabel("latency, share of float")
        panels[0].set_ylabel("KL, nats per example")
        panels[0].legend(loc="best")
    return figure


def latency_table(result: Json) -> str:
    """Milliseconds predicted and measured, KL and top-1 under the budgets."""
    networks = _with_draws(result)
    lines = [
        "One image, one thread, processor time, means of the draws; KL and top-1 with their "
        "standard deviation over the draws.",
        "",
        "| network, runtime | allocation | float layers | by the table, ms | measured, ms | of "
        "float | KL, 10⁻³ nats | top-1 % |",
        "| --- |" + " --- |" * 7,
    ]
    for key, found in networks.items():
        floats = [draw["latency"]["float"] for draw in found["draws"]]
        top1 = _spread([100 * row["measured"]["top1"] for row in floats], 2)
        whole = mean_ms(floats)
        lines.append(f"| {_title(key)} | float | | | {whole:.3g} | 1.00 | 0 | {top1} |")
        for label, at in SHOWN.items():
            rows = outcomes(found, *at)
            count = [sum(c == "W32" for c in row["allocation"].values()) for row in rows]
            shown = [
                _title(key),
                label,
                _range(count),
                f"{1e3 * np.mean([row['costs']['latency_s'] for row in rows]):.3g}",
                f"{mean_ms(rows):.3g}",
                f"{mean_ms(rows) / whole:.2f}",
                _spread([1e3 * row["measured"]["kl"] for row in rows], 2),
                _spread([100 * row["measured"]["top1"] for row in rows], 2),
            ]
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def latency_error_table(result: Json) -> str:
    """How well a network's latency is predicted, beside how well a measurement repeats."""
    lines = [
        "| network, runtime | networks fitted | held out | error, mean % | a measurement "
        "repeats within, % | budget, ms | measured over budget, % |",
        "| --- |" + " --- |" * 6,
    ]
    for key, found in result["networks"].items():
        record = found["latency"]
        held_out = sum(each["role"] == "held_out" for each in record["networks"])
        lines.append(
            f"| {_title(key)} | {len(record['networks']) - held_out} | {held_out} | "
            f"{100 * record['held_out_error']:.1f} | {100 * record['repeatability']:.1f} | "
            f"{_budget(found)} |"
        )
    return "\n".join(lines)


def _budget(found: Json) -> str:
    """The budget in milliseconds, and how far the measured solutions are above it."""
    if not found["draws"]:
        return "– | –"
    limits = [draw["latency"]["limits"]["latency_s"] for draw in found["draws"]]
    solutions = outcomes(found, *SHOWN["chosen, latency"])
    over = [100 * (row["cpu_s"] / limit - 1)
            for row, limit in zip(solutions, limits, strict=True)]  # fmt: skip
    return f"{1e3 * np.mean(limits):.3g} | {np.mean(over):+.1f}"


def _with_draws(result: Json) -> dict[str, Json]:
    """Networks that a budget was solved for."""
    return {key: found for key, found in result["networks"].items() if found["draws"]}


def _title(key: str) -> str:
    network, runtime = key.split("/")
    return f"{TITLES.get(network, network)}, {RUNTIMES[runtime]}"


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean
