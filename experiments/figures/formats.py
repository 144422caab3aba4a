"""F18, F19, accuracy against effective bits, and the table of `formats`, from its JSON."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jmpq.report.style import PALETTE, error_bars, new_figure, style, write_svg

Json = Mapping[str, Any]
NETWORKS = {
    "resnet20": "ResNet-20",
    "stories260k": "decoder (stories260K)",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "minilm_l6": "MiniLM (STS-B)",
    "vit_cifar": "small ViT (CIFAR-10)",
}
EXAMPLES = {"stories260k": "windows of text", "minilm_l6": "pairs of sentences"}
# Accuracy, and divergence from the float network, of networks without classes.
MEASURED = {"minilm_l6": ("spearman", "loss")}
CLASSES = ("top1", "kl")
LABELS = {
    "top1": "top-1 (%)",
    "spearman": "rank correlation (%)",
    "kl": "KL (nats)",
    "loss": "½ (difference of similarity)²",
}
SETS = {"integers": PALETTE[0], "floats": PALETTE[1], "all": PALETTE[2]}
HEAT_BITS = 4.5  # budget of F19
OVER = 1.01  # of a budget, for uniform formats: short blocks at the ends of rows cost more
PARTS = ("patch_embed/proj", "q", "k", "v", "attn/proj", "fc1", "fc2", "head",
         "embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
         "down_proj", "conv_stem", "expand_conv", "depthwise_conv", "project_conv", "conv_head",
         "fc")  # fmt: skip


def models(result: Json) -> list[str]:
    """The networks of a result."""
    return list(dict.fromkeys(name.split("/")[0] for name in result["cells"]))


def measured(model: str) -> tuple[str, str]:
    """Names of the accuracy of a network, and of its divergence from the float network."""
    return MEASURED.get(model, CLASSES)


def rows_of(result: Json, model: str, **wanted: Any) -> list[Json]:
    """Measured rows of a network with these values, one for each draw."""
    return [
        row
        for name, cell in result["cells"].items()
        if name.split("/")[0] == model
        for row in cell["rows"]
        if row["measured"] is not None and all(row[k] == v for k, v in wanted.items())
    ]


def spread(rows: Sequence[Json], key: str) -> tuple[float, float]:
    """Mean over draws, and standard deviation."""
    values = np.array([row["measured"][key] for row in rows])
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def uniforms(result: Json, model: str) -> dict[str, list[Json]]:
    """Rows of every uniform format by its name."""
    found: dict[str, list[Json]] = defaultdict(list)
    for row in rows_of(result, model, candidates="all", effective_bits=None):
        found[row["solver"].removeprefix("uniform ")].append(row)
    return found


def formats_figures(result: Json) -> dict[str, str]:
    """SVG text of F18, F19 and of accuracy and KL against effective bits."""
    figures = {
        "F18-mix": ("format mix against budget", mix_figure(result)),
        "F19-parts": ("formats by part of the network", parts_figure(result)),
        "F10-bits": ("accuracy and KL against effective bits", accuracy_figure(result)),
    }
    return {
        f"formats_{name}": write_svg(figure, f"formats_{name}", f"{name}, {title}")
        for name, (title, figure) in figures.items()
    }


def mix_figure(result: Json) -> Figure:
    """F18: share of the weights of every format, at every budget, mean over draws."""
    order = [*result["candidates"]["all"]]
    colors = _format_colors(result)
    with style():
        figure = new_figure(2.4 * _rows(result) + 0.5)
        panels = _panels(figure, result, sharey=True)
        for axes, model in zip(panels, models(result), strict=True):
            budgets = result["config"]["budgets"]
            below = np.zeros(len(budgets))
            for name in order:
                shares = np.array([
                    np.mean([row["shares"].get(name, 0.0) for row in rows_of(
                        result, model, candidates="all", effective_bits=b, solver="exact")])
                    for b in budgets
                ])  # fmt: skip
                axes.bar(range(len(budgets)), 100 * shares, 0.8, 100 * below,
                         color=colors[name], label=name)  # fmt: skip
                below += shares
            axes.set_xticks(range(len(budgets)), [f"{b:g}" for b in budgets])
            axes.set_xlabel("budget (effective bits a weight)")
            axes.set_title(NETWORKS.get(model, model), loc="left")
            axes.grid(visible=False, axis="x")
        for axes in panels[:: _columns(result)]:
            axes.set_ylabel("share of the weights (%)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right center")
    return figure


def parts_figure(result: Json) -> Figure:
    """F19: share of the layers of every part that take each format at one budget."""
    names = [*result["candidates"]["all"]]
    budget = min(result["config"]["budgets"], key=lambda b: abs(b - HEAT_BITS))
    with style():
        figure = new_figure(2.7 * _rows(result) + 0.3)
        shares = {m: _part_shares(result, m, names, budget) for m in models(result)}
        panels = _panels(figure, result)
        for axes, (model, (parts, table)) in zip(panels, shares.items(), strict=True):
            axes.imshow(100 * table, cmap="viridis", vmin=0, vmax=100, aspect="auto")
            for i, j in np.argwhere(table > 0):
                color = "white" if table[i, j] < 0.6 else "black"
                axes.text(j, i, f"{100 * table[i, j]:.0f}", ha="center", va="center",
                          fontsize=5.5, color=color)  # fmt: skip
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(parts)), parts, fontsize=6.5)
            axes.grid(visible=False)
            title = f"{NETWORKS.get(model, model)}: % of layers"
            axes.set_title(title, loc="left", fontsize=7)
    return figure


def accuracy_figure(result: Json) -> Figure:
    """Top-1 with the float line, and KL, against effective bits; mean ± sd over draws."""
    with style():
        figure = new_figure(4.6)
        panels = figure.subplots(2, len(models(result)), sharex="col", squeeze=False)
        for column, model in enumerate(models(result)):
            for axes, key, scale in zip(panels[:, column], measured(model), (100, 1),
                                        strict=True):  # fmt: skip
                _series(axes, result, model, key, scale)
                if not column or measured(model) != CLASSES:
                    axes.set_ylabel(LABELS[key])
            top, bottom = panels[:, column]
            line = 100 * np.mean([c["float"][measured(model)[0]]
                                  for n, c in result["cells"].items()
                                  if n.split("/")[0] == model])  # fmt: skip
            top.axhline(line, color="black", lw=0.8, ls="--", label="float")
            top.set_title(NETWORKS.get(model, model), loc="left", fontsize=6.5)
            bottom.set_yscale("log")
            bottom.set_xlabel("effective bits a weight")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _panels(figure: Figure, result: Json, *, sharey: bool = False) -> Sequence[Axes]:
    """A panel for every network, row by row; places that are left stay empty."""
    grid = figure.subplots(_rows(result), _columns(result), sharey=sharey, squeeze=False)
    panels = list(grid.ravel())
    for axes in panels[len(models(result)) :]:
        axes.set_axis_off()
    return panels[: len(models(result))]


def _columns(result: Json) -> int:
    """Panels beside each other: two rows where there are more than three networks."""
    count = len(models(result))
    return count if count < 4 else -(-count // 2)


def _rows(result: Json) -> int:
    return -(-len(models(result)) // _columns(result))


def _series(axes: Axes, result: Json, model: str, key: str, scale: float) -> None:
    for name, color in SETS.items():
        x, y, sd = [], [], []
        for budget in result["config"]["budgets"]:
            rows = rows_of(
                result, model, candidates=name, effective_bits=budget, solver="exact"
            )
            if rows:
                mean, deviation = spread(rows, key)
                x.append(np.mean([row["costs"]["average_bits"] for row in rows]))
                y.append(scale * mean)
                sd.append(scale * deviation)
        axes.plot(x, y, "D-", color=color, label=f"exact, {name}", ms=3)
        error_bars(axes, *(np.array(v, float) for v in (x, y, sd)), color=color)
    label: str | None = "uniform"
    for name, rows in uniforms(result, model).items():
        bits = float(np.mean([row["costs"]["average_bits"] for row in rows]))
        mean, _ = spread(rows, key)
        axes.plot([bits], [scale * mean], "x", color="#7f7f7f", ms=4, label=label)
        if key in ("kl", "loss"):
            axes.annotate(name, (bits, scale * mean), fontsize=4.5, color="#5f5f5f",
                          xytext=(2, 2), textcoords="offset points")  # fmt: skip
        label = None


def _part_shares(
    result: Json, model: str, names: Sequence[str], budget: float
) -> tuple[list[str], np.ndarray]:
    """Parts of a network, and which share of their layers takes each format."""
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(names)))
    for row in rows_of(result, model, candidates="all", effective_bits=budget, solver="exact"):
        for layer, choice in row["allocation"].items():
            counts[part_of(layer)][names.index(weights_name(choice))] += 1
    parts = sorted(counts, key=lambda p: PARTS.index(p) if p in PARTS else -1)
    table = np.stack([counts[part] / counts[part].sum() for part in parts])
    return parts, table


def part_of(layer: str) -> str:
    """Part of a network that a layer belongs to: place in a block; stage of a ResNet."""
    path = layer.removesuffix("/dense").split("/")
    if path[0].startswith("layer") and path[0] != "layers":
        return path[0]
    if path[-2:] == ["attention", "output"]:
        return "attention output"
    return "/".join(path[-2:]) if path[-1] == "proj" else path[-1]


def weights_name(label: str) -> str:
    """Name of the format of the weights of a choice."""
    from jmpq.formats import Choice

    return Choice.parse(label).weights.name


def _format_colors(result: Json) -> dict[str, Any]:
    """Blues for integers, oranges for floats; more bits are lighter."""
    import matplotlib

    colors: dict[str, Any] = {}
    for kind, cmap in (("integers", "Blues_r"), ("floats", "Oranges_r")):
        names = result["candidates"][kind]
        places = np.linspace(0.05, 0.75, len(names))
        colors |= {n: matplotlib.colormaps[cmap](p) for n, p in zip(names, places, strict=True)}
    return colors


def formats_table(result: Json) -> str:
    """KL of the exact optimum of every set beside the best uniform format that fits."""
    draws, lines = len(result["config"]["draws"]), []
    for model in models(result):
        cells = [c for n, c in result["cells"].items() if n.split("/")[0] == model]
        accuracy, divergence = measured(model)
        of_float = {k: np.mean([c["float"][k] for c in cells]) for k in (accuracy, "loss")}
        called = LABELS[accuracy].removesuffix(" (%)")
        loss = f", loss {of_float['loss']:.4f}" if divergence == "kl" else ""
        lines += [
            f"**{NETWORKS.get(model, model)}**, {cells[0]['float']['examples']:,} "
            f"{EXAMPLES.get(model, 'images')}: float {called} "
            f"{100 * of_float[accuracy]:.2f} %{loss}. {LABELS[divergence].split(' (nats)')[0]} "
            f"to the float network, mean ± sd over {draws} calibration draws; {called} of "
            "`all` in %.",
            "",
            "| effective bits | integers | floats | all | all, greedy | all, reversed | best "
            f"uniform, at most 1 % over | {called} |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for budget in result["config"]["budgets"]:
            texts = [_told(rows_of(result, model, candidates=c, effective_bits=budget,
                                   solver=s), divergence)
                     for c, s in (("integers", "exact"), ("floats", "exact"), ("all", "exact"),
                                  ("all", "greedy"), ("all", "reversed"))]  # fmt: skip
            rows = rows_of(
                result, model, candidates="all", effective_bits=budget, solver="exact"
            )
            right = 100 * spread(rows, accuracy)[0]
            best = best_uniform(result, model, budget)
            shown = "–" if best is None else f"{best[0]}: {_told(best[1], divergence)}"
            lines.append(f"| {budget:g} | {' | '.join(texts)} | {shown} | {right:.2f} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def best_uniform(result: Json, model: str, budget: float) -> tuple[str, list[Json]] | None:
    """The uniform format of least KL within a budget, or just over it, and its rows."""
    fits = {
        name: rows
        for name, rows in uniforms(result, model).items()
        if all(row["costs"]["average_bits"] <= budget * OVER for row in rows)
    }
    key = measured(model)[1]
    return min(fits.items(), key=lambda item: spread(item[1], key)[0], default=None)


def _told(rows: Sequence[Json], key: str) -> str:
    if not rows:
        return "–"
    mean, deviation = spread(rows, key)
    if mean < 1e-3:
        return f"{mean:.1e} ± {deviation if deviation > 1e-9 * mean else 0:.0e}"
    digits = 2 if mean >= 1 else 3 if mean >= 0.1 else 4
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"
