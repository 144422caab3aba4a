"""Table 7 as a figure: the training curve, and accuracy before and after fine-tuning."""

from matplotlib.figure import Figure

from jmpq.report.contents import Json
from jmpq.report.style import PALETTE, NothingToDrawError, new_figure, style

STAGES = {
    "float": "float network",
    "post_training": "post-training",
    "post_training_corrected": "post-training, corrected",
    "finetuned": "fine-tuned",
}


def finetuning_figure(finetuning: Json) -> Figure:
    """Draw the training loss against steps, and top-1 of every stage with its error.

    Args:
        finetuning: The content of ``finetuning.json``.

    Raises:
        NothingToDrawError: If no step was taken.
    """
    curve, outcomes = finetuning["curve"], finetuning["outcomes"]
    if not curve:
        raise NothingToDrawError("fine-tuning took no step")
    stages = [name for name in STAGES if name in outcomes and name != "float"]
    with style():
        figure = new_figure(2.4)
        left, right = figure.subplots(1, 2)
        steps = [point["step"] for point in curve]
        left.plot(steps, [point["loss"] for point in curve], color=PALETTE[0])
        left.set_xlabel("step")
        left.set_ylabel("training loss (nats per example)")
        left.set_yscale("log" if min(point["loss"] for point in curve) > 0 else "linear")
        for row, name in enumerate(reversed(stages)):
            found = outcomes[name]
            color = PALETTE[1] if name == "finetuned" else PALETTE[6]
            right.errorbar(
                100 * found["top1"], row, xerr=100 * (found["top1_sem"] or 0.0), fmt="o",
                color=color, elinewidth=0.8,
            )  # fmt: skip
        right.axvline(100 * outcomes["float"]["top1"], ls="--", lw=0.9, color="k")
        right.set_yticks(range(len(stages)), [STAGES[name] for name in reversed(stages)])
        right.set_ylim(-0.6, len(stages) - 0.4)
        right.set_xlabel("top-1 accuracy (%)")
    return figure
