"""All figures of a run, in the order of the report."""

import dataclasses
from collections.abc import Callable

from matplotlib.figure import Figure

from jmpq.network.layers import types_of
from jmpq.report.contents import Contents, relative_metrics
from jmpq.report.figure_accuracy import accuracy_figure
from jmpq.report.figure_bits import bits_figure
from jmpq.report.figure_finetuning import finetuning_figure
from jmpq.report.figure_gap import gap_figure
from jmpq.report.figure_prediction import prediction_figure
from jmpq.report.figure_sensitivity import sensitivity_figure
from jmpq.report.measured import fidelity_split
from jmpq.report.style import NothingToDrawError

_MEASURED = ("F6-loss", "F6-kl", "F10-accuracy")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Drawing:
    """A figure with its words; `figure` is None where there was nothing to draw.

    Attributes:
        name: File name without ending, and prefix of the SVG's identifiers.
        title: A few words.
        caption: What is drawn, and how to read it.
        figure: The figure, or None.
        missing: Why there is no figure; empty where there is one.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None
    missing: str = ""


def draw_figures(contents: Contents) -> tuple[Drawing, ...]:
    """Draw every figure for which the artifacts have data.

    Before evaluation those that show what was measured are left out.
    """
    plan, evaluation = contents.plan, contents.evaluation
    relative = relative_metrics(contents.sensitivities)
    split = fidelity_split(plan, evaluation)
    drawings = (
        _draw(
            "F1-bits",
            "F1. Bits per layer",
            "Weight bits (bars) and activation bits (circles) of each layer, in the order of "
            "the network, or type by type in a transformer; the dashed line is the uniform "
            "baseline. Allocations that came out the same share a row.",
            lambda: bits_figure(plan, types=types_of(contents.layers.layers)),
        ),
        _draw(
            "F2-sensitivity",
            "F2. Sensitivity per layer and bit",
            "Predicted loss increase when one layer alone is quantized; error bars: one "
            "standard error over batches. Labels name the pair of weight and activation bits "
            "that is drawn. Negative predictions are open markers at their absolute value, "
            "zeros are crosses on the lower edge.",
            lambda: sensitivity_figure(contents.sensitivities),
        ),
        _draw(
            "F6-loss",
            "F6a. Predicted against measured loss increase",
            f"{split.capitalize()} split. Left: one layer quantized; right: all layers. ρ is "
            "Spearman's rank correlation over n points: single layers, and on the right the "
            "random joint allocations without a budget (all joint ones where fewer than "
            "three were measured). The dashed line is equality; open markers on an edge are "
            "values of zero or less.",
            lambda: prediction_figure(
                plan, evaluation, target="increase", split=split, relative=relative
            ),
        ),
        _draw(
            "F6-kl",
            "F6b. Predicted increase against measured KL divergence",
            "As F6a, measured by the KL divergence from the output of the float network.",
            lambda: prediction_figure(
                plan, evaluation, target="kl", split=split, relative=relative
            ),
        ),
        _draw(
            "F10-accuracy",
            "F10. Accuracy against size and bit operations",
            "Top-1 accuracy on the evaluation split, with one standard error. Dashed: float "
            "network; dotted: the plan's budget; small markers: solutions at other budgets.",
            lambda: accuracy_figure(plan, evaluation),
        ),
        _draw(
            "F11-gap",
            "F11. Optimality gap",
            "Predicted loss above the best lower bound that any solver proved for the same "
            "metric and budgets, in percent of the predicted loss: the part of it that might "
            "still be saved (0 means proven optimal).",
            lambda: gap_figure(plan),
        ),
    )
    if not contents.evaluated:
        drawings = tuple(each for each in drawings if each.name not in _MEASURED)
    if (finetuning := contents.finetuning) is None:
        return drawings
    return (
        *drawings,
        _draw(
            "T7-finetuning",
            "T7. Post-training against fine-tuned",
            f"{finetuning['name']}. Left: training loss, means over equal runs of steps. "
            "Right: top-1 accuracy on the evaluation split with one standard error; dashed: "
            "float network.",
            lambda: finetuning_figure(finetuning),
        ),
    )


def _draw(name: str, title: str, caption: str, draw: Callable[[], Figure]) -> Drawing:
    try:
        figure = draw()
    except NothingToDrawError as error:
        return Drawing(name=name, title=title, caption=caption, figure=None, missing=str(error))
    return Drawing(name=name, title=title, caption=caption, figure=figure)
