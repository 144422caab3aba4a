"""Evaluation: what the allocations of a plan really cost in loss and accuracy."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from jmpq.allocation import Allocation
from jmpq.data.dataset import IGNORED, Split
from jmpq.files import versions
from jmpq.problem import Plan, PlannedAllocation
from jmpq.run.artifacts import Evaluation
from jmpq.run.compute import join_devices
from jmpq.run.folder import EVALUATION, PLAN, RunFolder
from jmpq.run.lock import writes
from jmpq.run.options import Compute, Evaluate, MeasuredRole
from jmpq.run.outcomes import Measured
from jmpq.run.planning.predictions import with_predictions
from jmpq.run.planning.problems import planned_problem, table_of
from jmpq.run.planning.recommendation import recommend
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.subject import first_examples, load_subject


@writes
def evaluate(
    folder: str | os.PathLike[str],
    options: Evaluate = Evaluate(),
    *,
    reporter: Reporter = QUIET,
) -> Evaluation:
    """Measure loss, KL divergence to the float network and top-1; write ``evaluation.json``.

    Allocations are measured on the calibration and on the evaluation examples, those of which
    the store has the outcome not again. The file has all outcomes that are known of the plan,
    of whichever roles. If interrupted, the same call resumes from the last finished allocation.

    Args:
        folder: The run folder, with a plan.
        options: Which allocations, on which examples.
        reporter: Listens.

    Raises:
        ValueError: If an option makes no sense, or artifacts do not belong together.
        FileNotFoundError: If a step is missing; it says which.
    """
    mesh = join_devices(Compute(devices=options.devices))
    check_positive(options, "examples", "batch_size", "correct_examples")
    run = RunFolder(folder, plan=options.plan)
    given = None
    if options.allocation is not None:
        given = _written_by_hand(run, options.allocation)
    plan, subject = run.plan, load_subject(run)
    run.check_writable(EVALUATION)
    if given is not None:
        run.add_to_plan(given)
        reporter.say(f"Added {given.name} to {run.file(PLAN)}")
        run = RunFolder(folder, plan=options.plan)
        plan = run.plan
    corrected = None
    if options.correct != "none":
        corrected = first_examples(subject.calibration, options.correct_examples)
    splits = {
        "calibration": (subject.calibration, options.calibration_roles),
        "evaluation": (first_examples(subject.evaluation, options.examples), options.roles),
    }
    measured: dict[str, dict[str, Any]] = {a.name: {} for a in plan.allocations}
    float_outcomes, timing = {}, {}
    for name, (split, roles) in splits.items():
        outcomes = Measured(
            run, subject, split, options.batch_size,
            correct=options.correct, corrected=corrected, mesh=mesh,
        )  # fmt: skip
        wanted = _wanted(plan, roles) if given is None else [given]
        with reporter.bar(f"Measuring on {name:11s}", "allocations") as progress:
            outcomes([a.allocation for a in wanted], progress=progress)
        for planned in plan.allocations:
            if (outcome := outcomes.known(planned.allocation)) is not None:
                measured[planned.name][name] = outcome.to_json()
        float_outcomes[name] = outcomes.float_outcome().to_json()
        timing[name] = {"seconds_per_allocation": outcomes.seconds_per_allocation}
    evaluation = Evaluation(
        plan_sha256=run.sha256(PLAN),
        versions=versions("jax", "jaxlib", "flax"),
        loss=subject.loss,
        correct=options.correct,
        correct_examples=0 if corrected is None else len(corrected),
        device=jax.devices()[0].device_kind,
        splits={name: split.record() | chance(split) for name, (split, _) in splits.items()},
        float=float_outcomes,
        timing=timing,
        measured={name: outcomes for name, outcomes in measured.items() if outcomes},
    )
    evaluation.write(run.file(EVALUATION))
    evaluation = dataclasses.replace(evaluation, recommendation=recommend(plan, evaluation))
    found, count = float_outcomes["evaluation"], len(splits["evaluation"][0])
    quality = f"loss {found['loss']:.5g}"
    if found["top1"] is not None:
        quality = f"top-1 {100 * found['top1']:.2f} %"
    reporter.say(f"Float {quality} on {count} evaluation examples.")
    reporter.say(f"Wrote {run.file(EVALUATION)}")
    return evaluation


def _wanted(plan: Plan, roles: tuple[MeasuredRole, ...]) -> list[PlannedAllocation]:
    """The allocations of some roles; ``uniform`` are baselines of one choice."""
    return [
        a
        for a in plan.allocations
        if a.role in roles or (a.asked == "uniform" and "uniform" in roles)
    ]


def _written_by_hand(run: RunFolder, path: pathlib.Path) -> PlannedAllocation:
    """The allocation of a file, with its costs and predictions.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no allocation, or not one of the plan's layers and choices.
    """
    if not path.is_file():
        raise FileNotFoundError(f"allocation {path} not found: give a file of JSON.")
    table = table_of(run, run.planned(None).metric)
    problem = planned_problem(run, table, {})
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"it is {type(record).__name__}")
        allocation = problem.allocation(problem.columns(Allocation.from_json(record)))
    except ValueError as error:
        raise ValueError(
            f"{path} holds no allocation of {run.file(PLAN)} ({str(error).rstrip('.')}): "
            'expected JSON as {"conv1": "W8A8"}.'
        ) from error
    loss, costs = problem.evaluate(allocation)
    new = PlannedAllocation(
        name=f"given/{path.stem}",
        role="solution",
        allocation=allocation,
        costs=costs,
        metric=table.metric,
        predicted_loss=loss,
        asked="given",
    )
    (new,) = with_predictions(run, [new])
    return new


def chance(split: Split) -> dict[str, float]:
    """Share of a split's most frequent class, which guessing reaches; empty for regressions.

    Of labels by position, the share of all that count.
    """
    labels = split.labels[np.arange(len(split))]
    if labels.dtype.kind not in "iu":
        return {}
    counts = np.unique(labels[labels != IGNORED], return_counts=True)[1]
    return {"chance": float(counts.max() / counts.sum())}


def check_positive(options: object, *names: str) -> None:
    """Raise `ValueError` for counts below 1; None stands for all."""
    for name in names:
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"{name}={value}: give at least 1.")
