"""F5, F16 and F20: what rounding one layer costs, as `experiments.perturbation` found it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from jmpq.report.style import PALETTE, error_bars, new_figure, style, write_svg

Json = Mapping[str, Any]
MEASURED, TRACE = "measured_kl", "trace"
SCORES = {
    TRACE: "trace of the layer alone",
    "squared_error": "squared error alone",
    "hawq_trace": "trace × squared error (HAWQ-V2)",
    "empirical_fisher": "direction: empirical Fisher",
    "gauss_newton": "direction: Gauss-Newton",
}
IN_NATS = ("hawq_trace", "empirical_fisher", "gauss_newton")
ROUNDINGS = {"nearest": "rounded to nearest", "gptq": "rounded by Hessians (GPTQ)"}


def scores(cell: Json) -> dict[str, np.ndarray]:
    """Every score [layers, bits] of a cell; the trace says the same at every bit-width."""
    found = {name: np.array(rows).T for name, rows in cell["losses"].items()}
    found[TRACE] = 2 * found["hawq_trace"] / found["squared_error"]
    return found


def ranks(result: Json, rounding: str) -> dict[str, np.ndarray]:
    """Spearman's ρ over layers between score and damage, [draws, bits]."""
    cells = [scores(c) for c in result["cells"] if c["rounding"] == rounding]
    return {
        name: np.array([[_rho(a, b) for a, b in zip(c[name].T, c[MEASURED].T, strict=True)]
                        for c in cells])
        for name in SCORES
    }  # fmt: skip


def ratios(result: Json, rounding: str) -> dict[str, np.ndarray]:
    """Median over layers of predicted over measured, [draws, bits]."""
    cells = [scores(c) for c in result["cells"] if c["rounding"] == rounding]
    return {
        name: np.array([np.median(c[name] / c[MEASURED], axis=0) for c in cells])
        for name in IN_NATS
    }


def _rho(one: np.ndarray, other: np.ndarray) -> float:
    return float(scipy.stats.spearmanr(one, other)[0])  # type: ignore[arg-type]


def importance_table(result: Json) -> str:
    """Rank correlation with the damage, and the scale, by rounding, score and bits."""
    bits = result["config"]["w_bits"]
    config = result["config"]
    lines = [
        f"ResNet-20, {len(next(iter(result['layers'].values())))} layers, each rounded alone. "
        "Spearman's ρ over layers between a score and the measured KL divergence, mean ± sd "
        f"over {config['draws']} draws of {config['examples']} images; in brackets the median "
        "of predicted over measured.",
        "",
        "| score | " + " | ".join(f"{b} bits" for b in bits) + " |",
        "| --- |" + " --- |" * len(bits),
    ]
    for rounding, title in ROUNDINGS.items():
        rho, scale = ranks(result, rounding), ratios(result, rounding)
        for name, label in SCORES.items():
            cells = []
            for i in range(len(bits)):
                values = rho[name][:, i]
                cell = f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
                if name in scale:
                    cell += f" ({scale[name][:, i].mean():.2g})"
                cells.append(cell)
            lines.append(f"| {title}: {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def importance_figure(result: Json, rounding: str) -> Figure:
    """F20: damage against trace, rank correlation over bits, scale over bits."""
    bits = result["config"]["w_bits"]
    cells = [scores(c) for c in result["cells"] if c["rounding"] == rounding]
    with style():
        figure = new_figure(2.9)
        points, lines, scales = figure.subplots(1, 3)
        trace = np.mean([c[TRACE] for c in cells], axis=0)
        damage = np.mean([c[MEASURED] for c in cells], axis=0)
        for column, color, marker in ((0, PALETTE[1], "s"), (-1, PALETTE[0], "o")):
            rho = _rho(trace[:, column], damage[:, column])
            points.plot(
                trace[:, column], damage[:, column], marker, ms=3, mew=0, color=color,
                label=f"{bits[column]} bits, ρ = {rho:.2f}",
            )  # fmt: skip
        points.set(xscale="log", yscale="log", xlabel="trace per weight (importance)")
        points.set_ylabel("measured KL of the layer (nats)")
        points.legend(fontsize=6.5)
        found = ranks(result, rounding)
        for (name, label), color in zip(
            SCORES.items(), (*PALETTE[2:5], *PALETTE[:2]), strict=True
        ):
            values = found[name]
            lines.plot(bits, values.mean(axis=0), "o-", ms=3, lw=0.9, color=color, label=label)
            error_bars(lines, np.array(bits), values.mean(axis=0), values.std(axis=0, ddof=1),
                       color=color)  # fmt: skip
            if name in IN_NATS:
                scale = ratios(result, rounding)[name].mean(axis=0)
                scales.plot(bits, scale, "o-", ms=3, lw=0.9, color=color)
        lines.set(
            xlabel="bits", ylabel="ρ with the measured KL", xticks=bits, ylim=(None, 1.02)
        )
        scales.axhline(1, ls="--", lw=0.7, color="k")
        scales.set(xlabel="bits", ylabel="predicted / measured, median", xticks=bits)
        scales.set_yscale("log")
        figure.legend(*lines.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                      fontsize=6.5)  # fmt: skip
    return figure


def histogram_figure(result: Json) -> Figure:
    """F16: weights in units of their channel's scale, with the grid."""
    rows = result["histograms"]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    bits = list(dict.fromkeys(row["bits"] for row in rows))
    with style():
        figure = new_figure(1.5 * len(layers) + 0.5)
        panels = figure.subplots(len(layers), len(bits), squeeze=False)
        for row in rows:
            axes = panels[layers.index(row["layer"]), bits.index(row["bits"])]
            edges = np.linspace(-row["reach"], row["reach"], len(row["counts"]) + 1)
            share = 100 * np.array(row["counts"]) / row["weights"]
            axes.stairs(share, edges, fill=True, color=PALETTE[5])
            for code in map(int, row["codes"]):
                axes.axvline(code, color=PALETTE[1], lw=0.6, alpha=0.8)
            axes.set_title(
                f"{row['layer']}, {row['bits']} bits\n{100 * row['zero']:.0f} % to zero, "
                f"{100 * row['clipped']:.1f} % clipped",
                fontsize=6.5,
            )
            axes.grid(visible=False)
        for axes in panels[-1]:
            axes.set_xlabel("weight / scale; lines: codes")
        for axes in panels[:, 0]:
            axes.set_ylabel("weights (%)")
    return figure


def landscape_figure(result: Json) -> Figure:
    """F5: the loss in the plane of the two leading eigenvectors, float and rounded."""
    plane = result["plane"]
    steps = np.array(plane["steps"])
    x, y = (edge * steps for edge in plane["edges"])
    surfaces = {bits: np.array(rows) for bits, rows in plane["loss"].items()}
    every = np.concatenate([s.ravel() for s in surfaces.values()])
    levels = np.geomspace(every.min(), every.max(), 12)
    with style():
        figure = new_figure(2.2)
        panels = figure.subplots(1, len(surfaces), sharex=True, sharey=True)
        middle = len(steps) // 2
        for axes, (bits, surface) in zip(panels, surfaces.items(), strict=True):
            axes.contourf(x, y, surface, levels, cmap="cividis")
            axes.contour(x, y, surface, levels, colors="w", linewidths=0.4)
            axes.plot(0, 0, "+", color="w", ms=5)
            name = "float" if bits == "32" else f"{bits} bits"
            axes.set_title(
                f"{name}: {surface[middle, middle]:.3f} nats in the middle", fontsize=7
            )
            axes.set_xlabel("along the first eigenvector")
            axes.grid(visible=False)
        panels[0].set_ylabel("along the second")
    return figure


def landscape_table(result: Json) -> str:
    """What the plane holds: eigenvalues, the loss in its middle, the part of δ inside."""
    plane = result["plane"]
    middle = len(plane["steps"]) // 2
    first, second = plane["eigenvalues"]
    lines = [
        f"ResNet-20, {result['examples']['examples']} held-out images. Leading eigenvalues of "
        f"the kernels' Hessian: {first:.3g} and {second:.3g}.",
        "",
        "| bits | loss | ‖δ‖² | part of ‖δ‖² in the plane | ½ δᵀHδ of that part |",
        "| --- | --- | --- | --- | --- |",
        f"| float | {plane['loss']['32'][middle][middle]:.4f} | – | – | – |",
    ]
    for bits, delta in plane["delta"].items():
        inside = delta["first"] ** 2, delta["second"] ** 2
        curved = 0.5 * (first * inside[0] + second * inside[1])
        lines.append(
            f"| {bits} | {plane['loss'][bits][middle][middle]:.4f} | {delta['squared']:.3g} | "
            f"{sum(inside) / delta['squared']:.2g} | {curved:.2g} |"
        )
    return "\n".join(lines)


def importance_figures(result: Json) -> dict[str, str]:
    """SVG text by name."""
    drawn = {
        f"importance_F20-{rounding}": importance_figure(result, rounding)
        for rounding in ROUNDINGS
    }
    return {
        name: write_svg(figure, name, name.replace("_", ", ")) for name, figure in drawn.items()
    }


def landscape_figures(result: Json) -> dict[str, str]:
    """SVG text by name."""
    drawn = {
        "landscape_F16-histogram": histogram_figure(result),
        "landscape_F5-plane": landscape_figure(result),
    }
    return {
        name: write_svg(figure, name, name.replace("_", ", ")) for name, figure in drawn.items()
    }
