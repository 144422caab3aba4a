"""All figures of a run, in the order of the report."""

import dataclasses
import math
from collections.abc import Callable

from matplotlib.figure import Figure

from jmpq.network.layers import types_of
from jmpq.problem.shown import DIVERGENCES
from jmpq.report.contents import Contents, Json, relative_metrics
from jmpq.report.figure_accuracy import accuracy_figure
from jmpq.report.figure_bits import bits_figure, reference_uniform
from jmpq.report.figure_finetuning import finetuning_figure
from jmpq.report.figure_gap import gap_figure
from jmpq.report.figure_latency import latency_figure, measured_latency
from jmpq.report.figure_prediction import prediction_figure
from jmpq.report.figure_sensitivity import sensitivity_figure
from jmpq.report.measured import Split, Target, fidelity_split, metrics_of, outcome
from jmpq.report.style import NothingToDrawError

_MEASURED = ("accuracy", "prediction")
ROWS = 6  # allocations in the figure of bits


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Drawing:
    """A figure with its words; `figure` is None where there was nothing to draw.

    Attributes:
        name: File name without ending, and prefix of the SVG's identifiers.
        title: A few words.
        caption: Content of the figure, and how to read it.
        figure: The figure, or None.
        missing: Why there is no figure; empty where there is one.
        folded: Whether the page shows it only when it is asked for.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None
    missing: str = ""
    folded: bool = False


def draw_figures(contents: Contents) -> tuple[Drawing, ...]:
    """Draw every figure for which the artifacts have data, the most asked for first.

    Before evaluation those that show what was measured are left out.
    """
    plan, evaluation = contents.plan, contents.evaluation
    relative = relative_metrics(contents.sensitivities)
    split = fidelity_split(plan, evaluation)
    target = _target(plan, evaluation, split)
    quantity = "KL divergence" if target == "kl" else "loss increase"
    drawings = (
        _draw(
            "accuracy",
            "Accuracy against cost",
            "Top-1 on the evaluation examples, with one standard error. Large markers are "
            "solutions, small ones solutions at other budgets, squares uniform bits. Dashed: "
            "float network. Dotted: the budget. Latency is measured if jmpq latency "
            "--check ran, else predicted.",
            lambda: accuracy_figure(
                plan, evaluation, latency=measured_latency(contents.latency_check)
            ),
        ),
        _draw(
            "bits",
            "Bits per layer",
            "Weight bits (bars) and activation bits (circles) of each layer, in the order of "
            "the network, or type by type in a transformer. The dashed line is the uniform "
            "baseline. Equal allocations share a row.",
            lambda: bits_figure(
                plan, names=_named(contents), types=types_of(contents.layers.layers)
            ),
        ),
        _draw(
            "prediction",
            "Prediction against measurement",
            f"Predicted increase against the measured {quantity}, {split} examples. Left: one "
            "layer quantized. Right: all layers. ρ is Spearman's rank correlation over n "
            "points; on the right over random allocations where they were measured. The "
            "dashed line is equality.",
            lambda: prediction_figure(
                plan,
                evaluation,
                target=target,
                split=split,
                metrics=_predictors(plan),
                relative=relative,
            ),
        ),
        _draw(
            "sensitivity",
            "Sensitivity of every layer",
            "Predicted loss increase when one layer alone is quantized, by the leading metric, "
            "with one standard error over batches; sensitivities.csv has all metrics. Labels "
            "name the weight and activation bits that are drawn. An axis that reaches zero is "
            "linear around it.",
            lambda: sensitivity_figure(contents.sensitivities, metrics=_leading(contents)),
            folded=True,
        ),
        _draw(
            "gap",
            "Distance from the proven optimum",
            "Left: predicted loss above the best lower bound that any solver proved for the "
            "same metric and budgets, in percent of that loss. 0 means proven optimal. Right: "
            "seconds of the solver.",
            lambda: gap_figure(plan),
            folded=True,
        ),
    )
    if not contents.evaluated:
        drawings = tuple(each for each in drawings if each.name not in _MEASURED)
    if contents.latency is not None or contents.latency_check is not None:
        drawings += (
            _draw(
                "latency",
                "Predicted against measured latency",
                _latency_caption(contents),
                lambda: latency_figure(contents.latency, contents.latency_check, plan),
            ),
        )
    if (finetuning := contents.finetuning) is None:
        return drawings
    return (
        *drawings,
        _draw(
            "finetuning",
            "Before and after fine-tuning",
            f"{finetuning['name']}. Left: training loss, means over equal runs of steps. "
            "Right: top-1 on the evaluation examples with one standard error. Dashed: float "
            "network.",
            lambda: finetuning_figure(finetuning),
        ),
    )


def _named(contents: Contents) -> list[str]:
    """Allocations in the figure of bits: uniform, the recommended one, then the others."""
    plan, lead = contents.plan, contents.recommendation
    uniform = reference_uniform(plan)
    names = [uniform["name"]] if uniform else []
    names += [lead.name] if lead else []
    names += [a["name"] for a in plan["allocations"] if a["role"] == "solution"]
    return list(dict.fromkeys(names))[:ROWS]


def _leading(contents: Contents) -> list[str]:
    """The metric that leads, where the sensitivity file has it, else its first."""
    metrics = list(contents.sensitivities)
    return [m for m in metrics_of(contents.plan)[:1] if m in metrics] or metrics[:1]


def _predictors(plan: Json) -> list[str]:
    """The metric that leads and what predicts whole allocations, each once."""
    metrics = metrics_of(plan)
    return list(dict.fromkeys([*metrics[:1], *(m for m in DIVERGENCES[:1] if m in metrics)]))


def _target(plan: Json, evaluation: Json, split: Split) -> Target:
    """The KL divergence where it was measured, else the loss."""
    found = (outcome(evaluation, a["name"], split) for a in plan["allocations"])
    return "kl" if any(o and math.isfinite(o.kl) for o in found) else "increase"


def _latency_caption(contents: Contents) -> str:
    made = contents.latency or contents.latency_check or {}
    clock = "processor time" if made["clock"] == "cpu" else "time on the clock"
    text = f"Whole networks, {clock} of a call of batch {made['batch_size']} in "
    text += f"{made['runtime']}, {made['threads']} thread(s). The dashed line is equality."
    if made.get("held_out_error") is not None:
        text += f" Mean error on held-out networks {100 * made['held_out_error']:.1f} %"
        if made["repeatability"] is not None:
            text += f"; measuring one again differs by {100 * made['repeatability']:.1f} %"
        text += "."
    return text


def _draw(
    name: str, title: str, caption: str, draw: Callable[[], Figure], *, folded: bool = False
) -> Drawing:
    words = {"name": name, "title": title, "caption": caption, "folded": folded}
    try:
        return Drawing(figure=draw(), **words)
    except NothingToDrawError as error:
        return Drawing(figure=None, missing=str(error), **words)
