"""Evaluation: what the allocations of a plan really cost in loss and accuracy."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax

from jmpq.allocation import Allocation
from jmpq.deploy.measure import difference_of
from jmpq.files import versions
from jmpq.problem import Plan, PlannedAllocation
from jmpq.run.artifacts import Evaluation
from jmpq.run.compute import join_devices
from jmpq.run.float_quality import chance, guessing
from jmpq.run.folder import EVALUATION, PLAN, RunFolder
from jmpq.run.lock import writes
from jmpq.run.loss import find_loss
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
        options: Allocations and examples to evaluate.
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
    float_outcomes, timing, stores = {}, {}, {}
    for name, (split, roles) in splits.items():
        stores[name] = outcomes = Measured(
            run, subject, split, options.batch_size,
            correct=options.correct, corrected=corrected, mesh=mesh, each=name == "evaluation",
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
        reference=None,
        differences={},
    )
    evaluation = _compared(plan, evaluation, stores["evaluation"])
    evaluation.write(run.file(EVALUATION))
    evaluation = dataclasses.replace(evaluation, recommendation=recommend(plan, evaluation))
    found, count = float_outcomes["evaluation"], len(splits["evaluation"][0])
    quality = f"loss {found['loss']:.5g}"
    if found["top1"] is not None:
        quality = f"top-1 {100 * found['top1']:.2f} %"
    reporter.say(f"Float {quality} on {count} evaluation examples.")
    if warning := guessing(
        found["loss"],
        found["top1"],
        splits["evaluation"][0],
        measured=find_loss(subject.loss),
        classes=subject.network.tap.jaxpr.outvars[0].aval.shape[-1],
    ):
        reporter.say(warning)
    reporter.say(f"Wrote {run.file(EVALUATION)}")
    return evaluation


def _compared(plan: Plan, evaluation: Evaluation, outcomes: Measured) -> Evaluation:
    """With the paired differences to the recommended allocation, if that was measured."""
    chosen = recommend(plan, evaluation)
    known = {k for k, found in evaluation.measured.items() if "evaluation" in found}
    if chosen is None or chosen.name not in known:
        return evaluation
    reference = outcomes.of_examples(chosen.allocation)
    differences = {
        a.name: difference_of(outcomes.of_examples(a.allocation), reference)
        for a in plan.allocations
        if a.name in known - {chosen.name}
    }
    return dataclasses.replace(evaluation, reference=chosen.name, differences=differences)


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


def check_positive(options: object, *names: str) -> None:
    """Raise `ValueError` for counts below 1; None stands for all."""
    for name in names:
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"{name}={value}: give at least 1.")
