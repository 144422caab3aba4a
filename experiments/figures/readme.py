"""The figure and the table of README.md, each number from the JSON of its experiment."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common.older import mark_of
from experiments.figures.outcome import rows_of
from jmpq.report.style import PALETTE, new_figure, style, write_svg

Json = Mapping[str, Any]
READ_BY_README = (
    "outcome_resnet20_nearest",
    "imagenet",
    "minilm",
    "bench_curvature",
    "bench_solvers",
)
METHODS = {
    "exact/gauss_newton": "jmpq: Gauss-Newton, exact",
    "exact/empirical_fisher": "empirical Fisher (MPQCO), exact",
    "exact/squared_error": "squared error, exact",
    "exact/hawq_trace": "HAWQ-V2 trace, exact",
    "uniform": "uniform bits",
    "random": "random allocations",
    "reversed": "reversed order",
}


def readme_figure(result: Json) -> dict[str, str]:
    """SVG text: top-1 of ResNet-20 by method, at the size of uniform 3 and 4 bits."""
    budgets = sorted({row["bits"] for row in result["rows"]})
    exact = 100 * result["float"]["top1"]
    methods = [m for m in METHODS if not mark_of(result, m)]  # none of older code
    with style():
        figure = new_figure(2.3)
        panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
        for axes, bits in zip(panels, budgets, strict=True):
            for place, method in enumerate(methods):
                mean, spread = _top1(result, bits, method)
                color = PALETTE[0] if place == 0 else PALETTE[-1]
                axes.barh(place, mean, xerr=spread or None, color=color, height=0.62)
                axes.text(1.0, place, f" {mean:.1f}", color="w", va="center", fontsize=7)
            axes.axvline(exact, color="k", lw=0.8, ls="--")
            axes.set(
                title=f"at most the size of uniform {bits:g} bits",
                xlabel="top-1, % (dashed: float)",
                xlim=(0, 100),
                yticks=range(len(methods)),
                yticklabels=[METHODS[method] for method in methods],
            )
            axes.grid(visible=False, axis="y")
        panels[0].invert_yaxis()
    return {"readme": write_svg(figure, "readme", "ResNet-20, CIFAR-10, weights only")}


def readme_table(results: Mapping[str, Json]) -> str:
    """Six results, each beside what it is compared with."""
    rows = [
        _resnet20(results["outcome_resnet20_nearest"]),
        _imagenet(results["imagenet"], "mobilenet_v1_0.75", "MobileNetV1 0.75", "W6"),
        _imagenet(results["imagenet"], "squeezenet1_1", "SqueezeNet 1.1", "W4"),
        _minilm(results["minilm"]),
        _curvature(results["bench_curvature"]),
        _solvers(results["bench_solvers"]),
    ]
    head = ["| result | compared with | jmpq | details |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def _top1(result: Json, bits: float, method: str) -> tuple[float, float]:
    """Mean and standard deviation over draws, in percent; one draw has no deviation."""
    found = [100 * r["measured"]["top1"] for r in rows_of(result, "w", bits, method)]
    return float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


def _resnet20(result: Json) -> list[str]:
    (mean, spread), (uniform, _) = (
        _top1(result, 3.0, method) for method in ("exact/gauss_newton", "uniform")
    )
    return [
        "ResNet-20, CIFAR-10, weights at the size of 3 bits: top-1 (float "
        f"{100 * result['float']['top1']:.1f} %)",
        f"uniform bits: {uniform:.1f} %",
        f"{mean:.1f} ± {spread:.1f} %",
        "[outcome](docs/results/outcome.md)",
    ]


def _imagenet(result: Json, name: str, title: str, budget: str) -> list[str]:
    found = result["networks"][name]
    every = [r for o in found["budgets"].values() for r in o["allocations"]]
    every += found["budgets"][budget]["allocations"]  # the last of a name counts
    rows = {r["name"]: r["measured"] for r in every}
    names = (f"uniform/{budget}", "exact/gauss_newton")
    scores = [100 * rows[name]["top1"] for name in names]
    return [
        f"{title}, ImageNet sample, weights at the size of {budget[1:]} bits: top-1 (float "
        f"{100 * found['float']['evaluation']['top1']:.1f} %)",
        f"uniform bits: {scores[0]:.1f} %",
        f"{scores[1]:.1f} %",
        "[imagenet](docs/results/imagenet.md)",
    ]


def _minilm(result: Json) -> list[str]:
    drops = {}
    for row in result["joint"]:
        if (row["groups"], row["bits"], row["mode"]) == (128, 2.5, "w"):
            outcome = row["measured"]
            drops[row["method"]] = f"{outcome['drop']:.3f} ± {outcome['drop_sem']:.3f}"
    return [
        "all-MiniLM-L6-v2, STS-B, weights at 2.5 bits, 128 groups: loss of Spearman "
        f"correlation (float {result['float']['spearman']:.3f})",
        f"uniform 2 bits: {drops['uniform']}",
        drops["exact/gauss_newton"],
        "[minilm](docs/results/minilm.md)",
    ]


def _curvature(result: Json) -> list[str]:
    row = result["threads"]["1"]["summary"]["seconds"]["rows"]["MPQCO table"]
    return [
        "Sensitivity of every layer of ResNet-20 at 5 bit-widths, 128 images, one CPU thread",
        f"HAWQ-V2's table by PyHessian, traces by 50 probes: {row['peers']['pyhessian']:.1f} s",
        f"{row['jmpq']:.2f} s",
        "[curvature](docs/results/bench_curvature.md)",
    ]


def _solvers(result: Json) -> list[str]:
    def seconds(solver: str) -> list[Json]:
        return [
            r
            for r in result["rows"]
            if (r["family"], r["layers"], r["solver"]) == ("realistic", 10_000, solver)
        ]

    ours = float(np.median([r["wall_s"] for r in seconds("core")]))
    theirs = float(np.median([r["wall_s"] for r in seconds("HIGHS_plain")]))
    return [
        "Optimal bits of 10,000 layers × 8 choices under one budget",
        f"the plain integer program, HiGHS: {theirs:.0f} s, not proven",
        f"{1000 * ours:.0f} ms, proven",
        "[solvers](docs/results/bench_solvers.md)",
    ]
