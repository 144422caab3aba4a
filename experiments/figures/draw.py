"""Redraw every figure and table from the committed results alone: no network, no data.

Run:     python -m experiments.figures
Reads:   experiments/results/*.json
Writes:  experiments/figures/*.svg, and the tables of README.md between their marks
"""

import json
import pathlib
import re
from typing import Any

from experiments.bench.convolution import convolution_table
from experiments.bench.flow import flow_table
from experiments.figures.curvature import curvature_table
from experiments.figures.equalization import equalization_table
from experiments.figures.evaluation import evaluation_table
from experiments.figures.fidelity import (
    closer_table,
    cost_table,
    fidelity_details,
    fidelity_figures,
    fidelity_table,
)
from experiments.figures.finetune import finetune_figures, finetune_table
from experiments.figures.imagenet import imagenet_figures, imagenet_table
from experiments.figures.iqp import iqp_table
from experiments.figures.minilm import minilm_figures, minilm_tables, value_table
from experiments.figures.outcome import (
    curse_table,
    outcome_figures,
    outcome_table,
    spent_table,
)
from experiments.figures.post_training import post_training_table
from experiments.figures.solvers import (
    ablation_table,
    gap_figure,
    published_table,
    time_figure,
    time_table,
    water_filling_figure,
)
from experiments.figures.sst2 import sst2_tables
from jmpq.files import write_text
from jmpq.report.figure_accuracy import accuracy_figure
from jmpq.report.figure_bits import bits_figure
from jmpq.report.figure_prediction import prediction_figure
from jmpq.report.style import metric_name, write_svg

HERE = pathlib.Path(__file__).parents[1]
README = HERE.parent / "README.md"
COMPARED = (
    "gauss_newton",
    "gauss_newton_full",
    "gauss_newton_difference",
    "gauss_newton_difference_full",
    "empirical_fisher",
    "hawq_trace",
)
SOURCES = {
    "heldout": "Calibrated on {calibration:,} test images set aside, accuracy on the other "
    "{evaluation:,}",
    "train": "Calibrated on {calibration:,} training images, accuracy on all {evaluation:,} "
    "test images",
}


def resnet20_figures(result: dict[str, Any]) -> dict[str, str]:
    """SVG text of F1, F6 and F10 for each source of calibration examples."""
    drawn = {}
    for source, run in result["runs"].items():
        evaluation = {
            **run,
            "measured": {row["name"]: row["measured"] for row in run["allocations"]},
        }
        figures = {
            "F1-bits": bits_figure(run),
            "F6-kl": prediction_figure(
                run, evaluation, target="kl", split="calibration", metrics=COMPARED
            ),
            "F10-accuracy": accuracy_figure(run, evaluation),
        }
        for name, figure in figures.items():
            key = f"resnet20_cifar10_{source}_{name}"
            drawn[key] = write_svg(figure, key, f"{name}, ResNet-20 on CIFAR-10, {source}")
    return drawn


def resnet20_table(result: dict[str, Any]) -> str:
    """The README's table: predicted beside measured, one row an allocation."""
    lines = []
    for source, run in result["runs"].items():
        rows = {row["name"]: row for row in run["allocations"]}
        floats = run["float"]["evaluation"]
        counts = {name: split["examples"] for name, split in run["splits"].items()}
        lines += [
            f"**{SOURCES[source].format(**counts)}**: float top-1 "
            f"{100 * floats['top1']:.2f} %, loss {floats['loss']:.4f}.",
            "",
            "| allocation | predicted | loss increase | KL | top-1 % |",
            "| --- | --- | --- | --- | --- |",
        ]
        for metric in run["sensitivities"]:
            for solver in ("exact", "greedy"):
                label = f"{solver}, {metric_name(metric)}"
                lines.append(_row(label, rows[f"{solver}/{metric}"]))
        lines.append(_row("uniform W4A4", rows["uniform/W4A4"]))
        lines.append(_row("reversed greedy", rows["reversed"]))
        lines.append(_random(run["allocations"]))
        lines.append("")
    return "\n".join(lines)


def _row(label: str, row: dict[str, Any]) -> str:
    found = row["measured"]["evaluation"]
    predicted = "-" if row["predicted_loss"] is None else f"{row['predicted_loss']:.4g}"
    return (
        f"| {label} | {predicted} | {found['increase']:.4f} ± {found['increase_sem']:.4f} | "
        f"{found['kl']:.4f} ± {found['kl_sem']:.4f} | "
        f"{100 * found['top1']:.2f} ± {100 * found['top1_sem']:.2f} |"
    )


def _random(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds of the random baseline."""
    import numpy as np

    found = [r["measured"]["evaluation"] for r in rows if r["name"].startswith("random/")]

    def shown(key: str, scale: float = 1.0, digits: int = 4) -> str:
        values = scale * np.array([outcome[key] for outcome in found])
        return f"{values.mean():.{digits}f} (sd {values.std(ddof=1):.{digits}f})"

    return (
        f"| random, {len(found)} seeds | - | {shown('increase')} | {shown('kl')} | "
        f"{shown('top1', 100, 2)} |"
    )


def solver_figures(result: dict[str, Any]) -> dict[str, str]:
    """SVG text of F11 (gap against budget, time against layers) and F17."""
    figures = {
        "F11-gap": gap_figure(result),
        "F11-time": time_figure(result),
        "F17-water-filling": water_filling_figure(result),
    }
    return {
        f"bench_solvers_{name}": write_svg(figure, f"bench_solvers_{name}", f"{name}, solvers")
        for name, figure in figures.items()
    }


def solver_tables(result: dict[str, Any]) -> dict[str, str]:
    """Markdown of T4, T8 and the times behind F11."""
    return {
        "bench_solvers_T4": ablation_table(result),
        "bench_solvers_T8": published_table(result),
        "bench_solvers_times": time_table(result),
    }


def into_readme(name: str, text: str) -> None:
    """Put a table between its marks in README.md."""
    old = README.read_text()
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not mark.search(old):
        raise ValueError(f"README.md has no marks '<!-- {name} -->' and '<!-- /{name} -->'.")
    new = mark.sub(lambda m: f"{m[1]}\n{text}\n{m[2]}", old)
    if new != old:
        write_text(README, new)


def _read(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def main() -> None:
    """Redraw everything."""
    result = _read("resnet20_cifar10")
    for name, svg in resnet20_figures(result).items():
        write_text(HERE / "figures" / f"{name}.svg", svg)
    into_readme("resnet20_cifar10", resnet20_table(result))
    bench = _read("bench_solvers")
    for name, svg in solver_figures(bench).items():
        write_text(HERE / "figures" / f"{name}.svg", svg)
    for name, text in solver_tables(bench).items():
        into_readme(name, text)
    into_readme("iqp", iqp_table(_read("bench_iqp")))
    into_readme("post_training", post_training_table(_read("post_training")))
    into_readme("equalization", equalization_table(_read("equalization")))
    into_readme("bench_evaluation", evaluation_table(_read("bench_evaluation")))
    studies = [_read(f"fidelity_{name}") for name in ("resnet20", "resnet32", "resnet44")]
    for name, svg in fidelity_figures(studies).items():
        write_text(HERE / "figures" / f"{name}.svg", svg)
    write_text(HERE / "tables" / "fidelity.md", fidelity_details(studies))
    into_readme("fidelity", fidelity_table(studies, "heldout"))
    into_readme("fidelity_closer", closer_table(studies[0]))
    into_readme("fidelity_T2", cost_table(studies[0]))
    into_readme("bench_curvature", curvature_table(_read("bench_curvature")))
    into_readme("bench_convolution", convolution_table(_read("bench_convolution")))
    into_readme("bench_flow", flow_table(_read("bench_flow")))
    minilm = _read("minilm")
    for name, svg in minilm_figures(minilm).items():
        write_text(HERE / "figures" / f"{name}.svg", svg)
    write_text(HERE / "tables" / "minilm.md", minilm_tables(minilm))
    into_readme("minilm", value_table(minilm))
    write_text(HERE / "tables" / "sst2.md", sst2_tables(_read("sst2")))
    outcomes = {name: _read(name) for name in ("outcome_resnet20", "outcome_resnet20_nearest")}
    for name, svg in outcome_figures(outcomes).items():
        write_text(HERE / "figures" / f"{name}.svg", svg)
    told = [outcome_table(o) for o in outcomes.values()]
    told += [spent_table(o) for o in outcomes.values() if "spent" in o]
    into_readme("outcome", "\n\n".join(told))
    networks = _read("imagenet")
    for name, svg in imagenet_figures(networks).items():
        write_text(HERE / "figures" / f"{name}.svg", svg)
    into_readme("imagenet", imagenet_table(networks))
    into_readme("outcome_curse", "\n\n".join(map(curse_table, outcomes.values())))
    tuned = _read("finetune_resnet20")
    for name, svg in finetune_figures(tuned).items():
        write_text(HERE / "figures" / f"{name}.svg", svg)
    into_readme("finetune", finetune_table(tuned))
