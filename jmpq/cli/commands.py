"""The commands: each names its step's options and makes one lazy call.

The texts of the options stand beside the options, in `jmpq.run.options`. What a step says
while it works it says through a reporter; what it returns is shown here.
"""

import os
import pathlib
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from jmpq.cli.show import (
    show_export,
    show_gaps,
    show_latency,
    show_layers,
    show_plan,
    show_recommendation,
)
from jmpq.files import write_text
from jmpq.run import options as o
from jmpq.run import progress
from jmpq.run.folder import RunFolder
from jmpq.run.lock import COMPILATIONS
from jmpq.run.planning.recommendation import recommend
from jmpq.study.options import Options as StudyOptions

RunPath = Annotated[pathlib.Path, Positional, arg(metavar="RUN", help="Folder of the run.")]


def train(run: RunPath, options: Annotated[o.Train, arg(name="")] = o.Train()) -> None:
    """Train a built-in network: RUN/weights.safetensors.

    For sentences a WordPiece tokenizer is made first, RUN/tokenizer.json. If interrupted,
    rerun the command; it resumes from the last epoch.

    For example: jmpq train runs/digits --epochs 15
    """
    from jmpq.run.steps.train import train

    train(run, options, reporter=progress.TERMINAL)


def layers(run: RunPath, options: Annotated[o.Layers, arg(name="")] = o.Layers()) -> None:
    """Find the layers of a network: RUN/layers.json, with parameters, MACs and shapes.

    For example: jmpq layers runs/r20 --model resnet20 --weights resnet20.safetensors
    """
    from jmpq.run.steps.layers import layers

    show_layers(layers(run, options, reporter=progress.TERMINAL))


def sensitivity(
    run: RunPath,
    options: Annotated[o.Sensitivity, arg(name="")] = o.Sensitivity(),
    compute: OmitArgPrefixes[o.Compute] = o.Compute(),
) -> None:
    """Predict losses: RUN/sensitivity.npz, nats per example for every layer and choice.

    If interrupted, rerun the command; it resumes from the last finished batch.

    For example: jmpq sensitivity runs/r20 --w-bits 2 3 4 6 8 --a-bits 4 8 --examples 1024
    """
    from jmpq.run.steps.sensitivity import sensitivity

    sensitivity(run, options, compute=compute, reporter=progress.TERMINAL)


def latency(run: RunPath, options: Annotated[o.Latency, arg(name="")] = o.Latency()) -> None:
    """Measure the seconds of every layer and choice: RUN/latency.csv, latency.json.

    Whole networks at a designed set of allocations are exported and timed in turns, and a sum
    over layers is fitted. Then `jmpq solve --budget latency_s=0.6x` knows the latency of every
    allocation, and --check measures its solutions: RUN/latency_check.json. If interrupted,
    rerun the command; it resumes from the last timed network.

    For example: jmpq latency runs/r20 --runtime onnxruntime
    """
    from jmpq.run.steps.latency import latency

    show_latency(latency(run, options, reporter=progress.TERMINAL))


def solve(
    run: RunPath,
    options: Annotated[o.Solve, arg(name="")] = o.Solve(),
    comparison: OmitArgPrefixes[o.Comparison] = o.Comparison(),
    inverse: OmitArgPrefixes[o.Inverse] = o.Inverse(),
) -> None:
    """Find allocations: RUN/plan.json, one for every metric and solver, with proven bounds.

    Needs no data. Every allocation carries what all metrics predict of it. Another budget is
    another plan: --name keeps it beside the first, --replace writes over it.

    For example: jmpq solve runs/r20 --name tight --budget size_bytes=20% bops=W4A4
    """
    from jmpq.run.steps.solve import solve

    plan = solve(
        run, options, comparison=comparison, inverse=inverse, reporter=progress.TERMINAL
    )
    show_plan(plan)
    show_gaps(plan)
    show_recommendation(recommend(plan))


def instance(run: RunPath, options: Annotated[o.Instance, arg(name="")] = o.Instance()) -> None:
    """Write the problems of a plan as files that other solvers read: RUN/instances.

    One for every metric, and one with its cross-layer terms, NAME_full, where it has them;
    with the best value that the plan found and the bound that it proved.

    For example: jmpq instance runs/r20 --formats json lp
    """
    from jmpq.run.steps.instance import instance

    instance(run, options, reporter=progress.TERMINAL)


def race(run: RunPath, options: Annotated[o.Race, arg(name="")] = o.Race()) -> None:
    """Find which solution under equal budgets measures best; add it to RUN/plan.json.

    The solutions are measured batch by batch on the calibration examples, and one that cannot
    be the best any more is dropped. The winner is called race/kl or race/loss.

    For example: jmpq race runs/r20 && jmpq refine runs/r20 --allocation race/kl
    """
    from jmpq.run.steps.race import race

    race(run, options, reporter=progress.TERMINAL)


def refine(run: RunPath, options: Annotated[o.Refine, arg(name="")] = o.Refine()) -> None:
    """Improve an allocation by swaps that measurement accepts; add it to RUN/plan.json.

    Composed logits, where RUN/superposed.npz has them, else the metric, propose changes and
    swaps within the budgets; the calibration examples decide. If interrupted, or called again
    with more evaluations, it resumes.

    For example: jmpq refine runs/r20 --max-evaluations 400
    """
    from jmpq.run.steps.refine import refine

    refine(run, options, reporter=progress.TERMINAL)


def floor(run: RunPath, options: Annotated[o.Floor, arg(name="")] = o.Floor()) -> None:
    """Find the cheapest allocation above an accuracy floor; add it to RUN/plan.json.

    Top-1 is measured on the calibration examples, along the allocations that a metric calls
    best for their cost, without budgets.

    For example: jmpq floor runs/r20 --max-drop 0.5 --minimize bops
    """
    from jmpq.run.steps.floor import floor

    floor(run, options, reporter=progress.TERMINAL)


def evaluate(run: RunPath, options: Annotated[o.Evaluate, arg(name="")] = o.Evaluate()) -> None:
    """Measure the allocations of the plan: RUN/evaluation.json.

    Loss (that of the sensitivities), KL divergence to the float network and top-1, on the
    calibration and on the evaluation examples. What was measured before, for any plan, is not
    measured again. If interrupted, rerun the command; it resumes from the last finished
    allocation.

    For example: jmpq evaluate runs/r20 --devices 2
    """
    from jmpq.run.steps.evaluate import evaluate

    evaluation = evaluate(run, options, reporter=progress.TERMINAL)
    show_recommendation(evaluation.recommendation)


def finetune(run: RunPath, options: Annotated[o.Finetune, arg(name="")] = o.Finetune()) -> None:
    """Train the network for an allocation's bits: RUN/finetuned.safetensors, finetuning.json.

    The network is quantized in every forward pass; batch statistics are frozen, their scale
    and bias are trained. If interrupted, rerun the command; it resumes from the last
    checkpoint.

    For example: jmpq finetune runs/r20 --epochs 5 --shift 4 --flip
    """
    from jmpq.run.steps.finetune import finetune

    finetune(run, options, reporter=progress.TERMINAL)


def export(run: RunPath, options: Annotated[o.Export, arg(name="")] = o.Export()) -> None:
    """Write an allocation as a file that another program runs: RUN/exported, export.json.

    The file is run in its own runtime beside jmpq's evaluation: agreement, bytes against
    size_bytes, and processor time against the float network in the same format.

    For example: jmpq export runs/r20 --format onnx --allocation uniform/W8A8
    """
    from jmpq.run.steps.export import export

    show_export(export(run, options, reporter=progress.TERMINAL))


def report(
    run: RunPath,
    plan: Annotated[str | None, arg(help="Name of the plan, as for jmpq evaluate.")] = None,
) -> None:
    """Write RUN/report.html, RUN/figures/*.svg and RUN/tables/*.csv; needs no data.

    Before evaluation it shows what a plan alone can show.
    For a plan with a name they are written into RUN/plans/NAME.

    For example: jmpq report runs/r20
    """
    from jmpq.report.report import write_report

    print(f"Wrote {write_report(run, plan=plan)}")
    show_recommendation(RunFolder(run, plan=plan).recommendation)


def study(
    run: Annotated[
        pathlib.Path, Positional, arg(metavar="FILE", help="TOML file that describes it.")
    ],
    options: Annotated[StudyOptions, arg(name="")] = StudyOptions(),
) -> None:
    """Do a study, a grid of runs: OUT/table.csv, a row for every run and allocation.

    Every list in FILE is an axis: networks, draws, bits, rounding, metrics, solvers, budgets
    and more (`jmpq.study.Study`). What was done before, for any study in OUT, is not done
    again. If interrupted, rerun the command; it resumes.

    For example: jmpq study runs/ablation.toml --table metric x budget --value kl
    """
    out = run.with_suffix("") if options.out is None else options.out
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / COMPILATIONS))
    from jmpq.study import make_engine, read_study, run_study, tabulate

    described = read_study(run)
    engine = make_engine(options.engine, options.jobs, slurm=described.slurm)
    table = run_study(described, out, engine=engine, reporter=progress.TERMINAL)
    if options.table:
        down, across = options.axes
        shown = tabulate(table, down, across, options.value)
        print(shown.markdown(), end="")
        name = f"{down}_by_{across}_{options.value}"
        for suffix, text in (
            ("md", shown.markdown()),
            ("tex", shown.latex()),
            ("csv", shown.csv()),
        ):
            write_text(out / "tables" / f"{name}.{suffix}", text)
        print(f"Wrote {out / 'tables' / name}.md, .tex and .csv")
    if options.style is not None:
        from jmpq.report.figure_study import study_figure, write_figure

        figure = study_figure(table, options.value, options.style)
        name = f"{options.value}_by_size_{options.style}"
        for path in write_figure(figure, out / "figures", name):
            print(f"Wrote {path}")


def demo(
    run: Annotated[
        pathlib.Path, Positional, arg(metavar="RUN", help="Folder of the run.")
    ] = pathlib.Path("runs/demo"),
    epochs: Annotated[int, arg(help="Passes over the training examples.")] = 15,
    seed: Annotated[int, arg(help="Seed of every step.")] = 0,
) -> None:
    """Run every step on embedded data: a small residual network on handwritten digits.

    For example: jmpq demo runs/demo
    """
    every = ("solution", "baseline", "sweep", "random", "single")
    full = o.Comparison(comparison="full")
    steps = {
        "train": lambda: train(run, o.Train(epochs=epochs, seed=seed)),
        "layers": lambda: layers(run, o.Layers(model="digits_resnet", data="digits")),
        "sensitivity": lambda: sensitivity(run, o.Sensitivity(seed=seed, rivals=True)),
        "solve": lambda: solve(run, o.Solve(seed=seed), full),
        "evaluate": lambda: evaluate(run, o.Evaluate(roles=every, calibration_roles=every)),
        "report": lambda: report(run),
    }
    for number, (name, step) in enumerate(steps.items(), start=1):
        print(f"\n[{number}/{len(steps)}] jmpq {name} {run}")
        step()
