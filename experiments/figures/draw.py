"""Redraw every figure and table from the committed results alone: no network, no data.

Run:     python -m experiments.figures
Reads:   experiments/results/*.json
Writes:  experiments/figures/*.svg, and the tables of README.md and docs/ between their marks
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.bench.convolution import convolution_table
from experiments.bench.evaluation import evaluation_table
from experiments.bench.evaluation_formats import evaluation_formats_table
from experiments.bench.flow import flow_table
from experiments.common.older import mark_of, notes
from experiments.deployment import deployment_table, float_table
from experiments.figures.bert.minilm import minilm_figures, minilm_tables
from experiments.figures.bert.sst2 import sst2_tables
from experiments.figures.confirmation import confirmation_table
from experiments.figures.curvature import curvature_table
from experiments.figures.equalization import equalization_table
from experiments.figures.finetune import finetune_figures, finetune_table
from experiments.figures.formats import formats_figures, formats_table
from experiments.figures.imagenet import imagenet_figures, imagenet_table
from experiments.figures.kv_cache import kv_cache_figures, kv_cache_table
from experiments.figures.latency import latency_error_table, latency_figures, latency_table
from experiments.figures.outcome import (
    curse_table,
    outcome_figures,
    outcome_table,
    spent_table,
)
from experiments.figures.perturbation import (
    importance_figures,
    importance_table,
    landscape_figures,
    landscape_table,
)
from experiments.figures.post_training import post_training_table
from experiments.figures.predicting.fidelity import (
    closer_table,
    cost_table,
    fidelity_details,
    fidelity_figures,
    fidelity_table,
)
from experiments.figures.predicting.prediction import prediction_table
from experiments.figures.readme import READ_BY_README, readme_figure, readme_table
from experiments.figures.solving.iqp import iqp_table
from experiments.figures.solving.leaderboard import leaderboard_table, summary_table
from experiments.figures.solving.several_budgets import several_budgets_table
from experiments.figures.solving.solvers import (
    ablation_table,
    gap_figure,
    published_table,
    time_figure,
    time_table,
    water_filling_figure,
)
from experiments.figures.whole_flow import whole_flow_tables
from jmpq.files import write_text
from jmpq.report.figure_accuracy import accuracy_figure
from jmpq.report.figure_bits import bits_figure
from jmpq.report.figure_prediction import prediction_figure
from jmpq.report.style import metric_name, write_svg

HERE = pathlib.Path(__file__).parents[1]
OUTCOMES = ("outcome_resnet20", "outcome_resnet20_nearest")
PREDICTION = ("prediction_resnet20", "prediction_resnet32", "prediction_resnet44")
FIDELITY = ("fidelity_resnet20", "fidelity_resnet32", "fidelity_resnet44")
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


def pages() -> list[pathlib.Path]:
    """The pages that people read: README.md and those of the results."""
    root = HERE.parent
    return [root / "README.md", *sorted((root / "docs" / "results").glob("*.md"))]


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
    """Predicted beside measured, one row an allocation."""
    lines, mark = [], mark_of(result, "random")
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
        lines.append(_row(f"reversed greedy{mark}", rows["reversed"]))
        lines.append(_random(run["allocations"], mark))
        lines += notes([mark])
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


def _random(rows: list[dict[str, Any]], mark: str) -> str:
    """Mean and standard deviation over the seeds of the random baseline."""
    import numpy as np

    found = [r["measured"]["evaluation"] for r in rows if r["name"].startswith("random/")]

    def shown(key: str, scale: float = 1.0, digits: int = 4) -> str:
        values = scale * np.array([outcome[key] for outcome in found])
        return f"{values.mean():.{digits}f} (sd {values.std(ddof=1):.{digits}f})"

    return (
        f"| random, {len(found)} seeds{mark} | - | {shown('increase')} | {shown('kl')} | "
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


def filled(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The text of a page with its tables as they are now, each between its marks.

    Raises:
        ValueError: If the page has marks of a table that is not drawn.
    """
    if unknown := sorted(set(marked(page)) - set(tables)):
        raise ValueError(
            f"No table is called {', '.join(unknown)}: correct the mark '<!-- NAME -->' of the "
            "page, or draw the table in experiments/figures/draw.py."
        )
    for name in marked(page):
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        drawn = tables[name]()
        page = mark.sub(lambda m, drawn=drawn: f"{m[1]}\n{drawn}\n{m[2]}", page)
    return page


def marked(page: str) -> list[str]:
    """Names of the tables of a page."""
    return re.findall(r"^<!-- /(\w+) -->$", page, re.MULTILINE)


def _read(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def figures() -> dict[str, str]:
    """SVG text of every committed figure, by name."""
    outcomes = {name: _read(name) for name in OUTCOMES}
    return {
        **readme_figure(outcomes["outcome_resnet20_nearest"]),
        **resnet20_figures(_read("resnet20_cifar10")),
        **solver_figures(_read("bench_solvers")),
        **fidelity_figures([_read(name) for name in FIDELITY]),
        **minilm_figures(_read("minilm")),
        **outcome_figures(outcomes),
        **imagenet_figures(_read("imagenet")),
        **finetune_figures(_read("finetune_resnet20")),
        **formats_figures(_read("formats")),
        **kv_cache_figures(_read("kv_cache")),
        **latency_figures(_read("latency")),
        **importance_figures(_read("importance")),
        **landscape_figures(_read("landscape")),
    }


def tables() -> dict[str, Callable[[], str]]:
    """What draws every table of README.md and docs, by the name of its marks."""

    def of(draw: Callable[[Any], str], name: str) -> Callable[[], str]:
        return lambda: draw(_read(name))

    def of_all(draw: Callable[[Any], str], names: Iterable[str]) -> Callable[[], str]:
        return lambda: draw([_read(name) for name in names])

    ages = {f"age_{name}": age for name, age in ages_of_results().items()}
    return {
        **{name: functools.partial(str, text) for name, text in ages.items()},
        "readme_results": lambda: readme_table({name: _read(name) for name in READ_BY_README}),
        "resnet20_cifar10": of(resnet20_table, "resnet20_cifar10"),
        "bench_solvers_T4": of(ablation_table, "bench_solvers"),
        "bench_solvers_T8": of(published_table, "bench_solvers"),
        "bench_solvers_times": of(time_table, "bench_solvers"),
        "bench_several_budgets": of(several_budgets_table, "bench_several_budgets"),
        "leaderboard": of(leaderboard_table, "leaderboard"),
        "leaderboard_summary": of(summary_table, "leaderboard"),
        "iqp": of(iqp_table, "bench_iqp"),
        "post_training": of(post_training_table, "post_training"),
        "equalization": of(equalization_table, "equalization"),
        "deployment": of(deployment_table, "deployment"),
        "deployment_float": of(float_table, "deployment"),
        "bench_evaluation": of(evaluation_table, "bench_evaluation"),
        "bench_evaluation_formats": of(evaluation_formats_table, "bench_evaluation_formats"),
        "fidelity": of_all(lambda studies: fidelity_table(studies, "heldout"), FIDELITY),
        "fidelity_details": of_all(fidelity_details, FIDELITY),
        "fidelity_closer": of(closer_table, FIDELITY[0]),
        "fidelity_T2": of(cost_table, FIDELITY[0]),
        "bench_curvature": of(curvature_table, "bench_curvature"),
        "bench_convolution": of(convolution_table, "bench_convolution"),
        "bench_flow": of(flow_table, "bench_flow"),
        "minilm": of(minilm_tables, "minilm"),
        "sst2": of(sst2_tables, "sst2"),
        "outcome": of_all(outcome_tables, OUTCOMES),
        "outcome_curse": of_all(lambda r: "\n\n".join(map(curse_table, r)), OUTCOMES),
        "confirmation_kl": of(lambda r: confirmation_table(r, "kl"), "confirmation"),
        "confirmation_top1": of(lambda r: confirmation_table(r, "top1"), "confirmation"),
        "whole_flow": of(whole_flow_tables, "whole_flow"),
        "imagenet": of(imagenet_table, "imagenet"),
        "finetune": of(finetune_table, "finetune_resnet20"),
        "formats": of(formats_table, "formats"),
        "kv_cache": of(kv_cache_table, "kv_cache"),
        "latency": of(latency_table, "latency"),
        "latency_error": of(latency_error_table, "latency"),
        "prediction": of_all(prediction_table, PREDICTION),
        "importance": of(importance_table, "importance"),
        "landscape": of(landscape_table, "landscape"),
    }


def ages_of_results() -> dict[str, str]:
    """Of every committed result, whether today's code made it; by name."""
    from experiments.claims.claim import all_modules

    made = {name: made for _, module in all_modules() for name, made in module.MADE.items()}
    return {
        name: f"**Age.** `{name}.json`: "
        + (one.stale or "made by the code that is here, as far as its imports tell.")
        for name, one in made.items()
    }


def outcome_tables(results: Sequence[dict[str, Any]]) -> str:
    """T1 of every run of the outcome experiment, then what the methods cost."""
    told = [outcome_table(result) for result in results]
    told += [spent_table(result) for result in results if "spent" in result]
    return "\n\n".join(told)


def main() -> None:
    """Redraw everything."""
    for name, svg in figures().items():
        write_text(HERE / "figures" / f"{name}.svg", svg)
    drawn = tables()
    for page in pages():
        old = page.read_text()
        if (new := filled(old, drawn)) != old:
            write_text(page, new)
