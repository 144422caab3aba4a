"""Tables T5 and T6, figures F3, F6 and F15 of the MiniLM experiment from its JSON.

A result that is not finished yet gives the tables and figures of what is there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from jmpq.report.style import PALETTE, metric_name, new_figure, style, write_svg

Json = Mapping[str, Any]
MODES = {"w": "weights alone", "wa": "activations at 8 bits"}
UNITS = {"encoder_layer": "an encoder layer the unit"}
PREDICTED = ("gauss_newton", "gauss_newton_full", "empirical_fisher", "empirical_fisher_full")


def label(method: str) -> str:
    """A method as a reader knows it."""
    if method == "qbert":
        return "Q-BERT's rule"
    solver, *rest = method.split("/")
    solver = {"local_search": "local search, cross terms", "exact": "knapsack"}.get(
        solver, solver
    )
    return ", ".join([solver, *(UNITS.get(part) or metric_name(part) for part in rest)])


def minilm_tables(result: Json) -> str:
    """All tables, in sections of Markdown."""
    pairs = result["config"]["examples"]
    parts = [
        "Post-training, no fine-tuning. Kernels are asymmetric, with ranges of least squared "
        "error and groups of output neurons; embeddings have 8 bits. Every allocation has at "
        "most the bytes of uniform bits (2.5: half way from 2 to 3, where uniform is 2; the "
        "rule takes fewer where its bits do not fit). Q-BERT's rule gives more bits "
        "to the encoder layers with the greatest mean + spread of λ. Scores are "
        "Spearman correlations with people's scores on "
        f"the test part, calibrated on {pairs} pairs of the development part.",
        "## Spearman (T5)",
        spearman_table(result),
        "## What groups and mixed bits are worth\n\nWeights alone; 1000 times the loss of "
        "Spearman, ± its standard error over pairs.",
        value_table(result),
        "## Embeddings and activations apart (T6)\n\nAll else float.",
        apart_table(result),
        "## Rank correlation of predicted and measured loss\n\nPredicted on calibration "
        "pairs; measured there for single matrices, on test pairs for allocations.",
        prediction_table(result),
    ]
    return "\n\n".join(parts) + "\n"


def measured_groups(result: Json) -> list[int]:
    """Numbers of groups that were measured, ascending."""
    return sorted({row["groups"] for row in result["joint"]})


def spearman_table(result: Json) -> str:
    """T5: Spearman of every method at every budget and number of groups."""
    config = result["config"]
    exact = result["float"]
    columns = [(mode, bits) for mode in MODES for bits in config["budgets"]]
    methods = dict.fromkeys(r["method"] for r in result["joint"])
    largest = max(row["measured"]["drop_sem"] or 0.0 for row in result["joint"])
    lines = [
        f"Float: {exact['spearman']:.4f} on all {exact['examples']:,} test pairs. Standard "
        f"errors of the difference to float are at most {largest:.4f}.",
        "",
        "| groups | allocation | "
        + " | ".join(f"{MODES[mode]}, {bits:g}" for mode, bits in columns)
        + " |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    found = {(r["groups"], r["method"], r["mode"], r["bits"]): r for r in result["joint"]}
    for groups in measured_groups(result):
        for method in methods:
            rows = [found.get((groups, method, *column)) for column in columns]
            if any(rows):
                cells = [_spearman(row and row["measured"]) for row in rows]
                lines.append(f"| {groups} | {label(method)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def value_table(result: Json) -> str:
    """What groups and what mixed bits are worth: 1000 · the loss of Spearman."""
    config = result["config"]
    groups = measured_groups(result)
    ways = [
        (g, m)
        for m in ("uniform", "exact/gauss_newton")
        for g in dict.fromkeys((groups[0], groups[-1]))
    ]
    lines = [
        "| mean bits | " + " | ".join(f"{label(m)}, {_groups(g)}" for g, m in ways) + " |",
        "| --- |" + " --- |" * len(ways),
    ]
    found = {
        (r["groups"], r["method"], r["bits"]): r["measured"]
        for r in result["joint"]
        if r["mode"] == "w"
    }
    for bits in config["budgets"]:
        cells = []
        for g, m in ways:
            drop, sem = (found[g, m, bits][key] for key in ("drop", "drop_sem"))
            lost = "destroyed" if drop is None else f"{1000 * drop:.1f} ± {1000 * sem:.1f}"
            cells.append(lost)
        lines.append(f"| {bits:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def apart_table(result: Json) -> str:
    """T6: embeddings alone and activations alone, all else float."""
    if "embeddings" not in result:
        return "Not measured yet."
    tables = list(dict.fromkeys(tuple(r["tables"]) for r in result["embeddings"]))
    names = [t[0].replace("_", " ") if len(t) == 1 else "all three" for t in tables]
    found = {(tuple(r["tables"]), r["bits"]): r["measured"] for r in result["embeddings"]}
    inputs = {r["bits"]: r["measured"] for r in result["activations"]}
    lines = [
        "| bits | " + " | ".join(f"{n} embedding" for n in names) + " | all activations |",
        "| --- |" + " --- |" * (len(names) + 1),
    ]
    for bits in sorted({*(b for _, b in found), *inputs}, reverse=True):
        cells = [found.get((t, bits)) for t in tables] + [inputs.get(bits)]
        lines.append(f"| {bits} | {' | '.join(map(_spearman, cells))} |")
    return "\n".join(lines)


def prediction_table(result: Json) -> str:
    """Rank correlation of predicted and measured loss over all joint allocations."""
    modes = [("w", g) for g in measured_groups(result)]
    modes += [("wa", g) for g in result["config"]["activation_groups"]]
    lines = [
        "| prediction | single matrices | "
        + " | ".join(f"{MODES[mode]}, {_groups(g)}" for mode, g in modes)
        + " |",
        "| --- | --- |" + " --- |" * len(modes),
    ]
    for name in PREDICTED:
        known = "single" in result and not name.endswith("_full")
        single = _rank(result["single"], name) if known else ""
        cells = [
            _rank([r for r in result["joint"] if (r["mode"], r["groups"]) == key], name)
            for key in modes
        ]
        lines.append(f"| {metric_name(name)} | {single} | {' | '.join(cells)} |")
    return "\n".join(lines)


def minilm_figures(result: Json) -> dict[str, str]:
    """SVG text of F3, F6 and F15."""
    drawn = {
        "F3-eigenvalues": (_eigenvalues(result), "Top eigenvalue of every encoder layer"),
        "F6-loss": (_prediction(result), "Predicted against measured loss"),
    }
    if "attention" in result:
        said = "Divergence of attention by encoder layer"
        drawn["F15-attention"] = _attention(result), said
    return {
        f"minilm_{name}": write_svg(figure, f"minilm_{name}", said)
        for name, (figure, said) in drawn.items()
    }


def _eigenvalues(result: Json) -> Figure:
    """F3: mean and standard deviation over subsets, every subset a dot."""
    layers = [name for name in result["eigenvalues"] if name.startswith("encoder/")]
    with style():
        figure = new_figure(2.2)
        axes = figure.add_subplot()
        for i, name in enumerate(layers):
            values = np.array([row["eigenvalue"] for row in result["eigenvalues"][name]])
            axes.plot(np.full(len(values), i) + 0.18, values, ".", color=PALETTE[6], ms=3)
            axes.errorbar(
                i, values.mean(), values.std(ddof=1), fmt="o", color=PALETTE[0], capsize=3
            )
        axes.set_xticks(range(len(layers)), [name.split("/")[-1] for name in layers])
        axes.set_xlabel("encoder layer")
        axes.set_ylabel("top eigenvalue, mean ± sd")
        axes.set_ylim(bottom=0)
    return figure


def _prediction(result: Json) -> Figure:
    """F6: single matrices, and joint allocations by number of groups."""
    with style():
        figure = new_figure(2.9)
        single, joint = figure.subplots(1, 2)
        for bits, color in zip(
            dict.fromkeys(r["bits"] for r in result.get("single", ())), PALETTE, strict=False
        ):
            rows = [r for r in result["single"] if r["bits"] == bits]
            _scatter(single, rows, "gauss_newton", color, f"{bits} bits")
        for groups, color in zip(measured_groups(result), PALETTE, strict=False):
            rows = [r for r in result["joint"] if (r["groups"], r["mode"]) == (groups, "w")]
            _scatter(joint, rows, "gauss_newton_full", color, _groups(groups))
        single.set_title("single matrices, Gauss–Newton")
        joint.set_title("allocations, Gauss–Newton with cross terms")
        for axes in (single, joint):
            axes.set_xscale("log")
            axes.set_yscale("log")
            low = max(axes.get_xlim()[0], axes.get_ylim()[0])
            high = min(axes.get_xlim()[1], axes.get_ylim()[1])
            axes.plot([low, high], [low, high], "-", color="#999999", lw=0.7, zorder=0)
            axes.set_xlabel("predicted loss")
            axes.set_ylabel("measured loss")
            if axes.lines[:-1]:
                axes.legend()
    return figure


def _scatter(axes: Any, rows: list[Json], name: str, color: str, said: str) -> None:
    kept = [r for r in rows if r["measured"]["loss"] and r["predicted"][name] > 0]
    axes.plot(
        [r["predicted"][name] for r in kept],
        [r["measured"]["loss"] for r in kept],
        "o",
        color=color,
        ms=3,
        label=said,
    )


def _attention(result: Json) -> Figure:
    """F15: KL of the attention from the float network's."""
    with style():
        figure = new_figure(2.4)
        axes = figure.add_subplot()
        for row, color in zip(result["attention"], PALETTE, strict=False):
            layers = np.arange(len(row["kl"]))
            axes.plot(layers, row["kl"], "o-", color=color, label=label(row["method"]))
        axes.set_yscale("log")
        axes.set_xticks(range(len(result["attention"][0]["kl"])))
        axes.set_xlabel("encoder layer")
        axes.set_ylabel("KL of attention, nats")
        bits = result["config"]["attention_bits"]
        axes.set_title(f"{bits:g} bits on average, {_groups(result['config']['lone_groups'])}")
        axes.legend()
    return figure


def _groups(groups: int) -> str:
    return f"{groups} group{'s' * (groups != 1)}"


def _spearman(measured: Json | None) -> str:
    if measured is None:
        return ""
    return "destroyed" if measured["spearman"] is None else f"{measured['spearman']:.4f}"


def _rank(rows: list[Json], name: str) -> str:
    kept = [r for r in rows if r["measured"]["loss"] is not None]
    ranks = (
        scipy.stats.rankdata([r["predicted"][name] for r in kept]),
        scipy.stats.rankdata([r["measured"]["loss"] for r in kept]),
    )
    return f"{np.corrcoef(*ranks)[0, 1]:.2f}"
