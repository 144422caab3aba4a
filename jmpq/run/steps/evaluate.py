"""Evaluation: what the allocations of a plan really cost in loss and accuracy."""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jmpq.allocation import Allocation
from jmpq.data.dataset import Split
from jmpq.deploy.measure import Evaluator, Outcome
from jmpq.files import versions
from jmpq.journal import Journal
from jmpq.run.artifacts import Evaluation
from jmpq.run.compute import join_devices
from jmpq.run.folder import EVALUATION, PLAN, RunFolder
from jmpq.run.options import Compute, Evaluate
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.recommendation import recommend
from jmpq.run.subject import first_examples, load_subject

Outcomes = dict[Allocation, dict[str, Any]]


def evaluate(
    folder: str | os.PathLike[str],
    options: Evaluate = Evaluate(),
    *,
    reporter: Reporter = QUIET,
) -> Evaluation:
    """Measure loss, KL divergence to the float network and top-1; write ``evaluation.json``.

    Every allocation of the plan is measured on the calibration and on the evaluation examples.
    If interrupted, the same call resumes from the last finished allocation.

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
    run = RunFolder(folder)
    plan, subject = run.plan, load_subject(run)
    run.check_writable(EVALUATION)
    corrected = None
    if options.correct != "none":
        corrected = first_examples(subject.calibration, options.correct_examples)
    splits = {
        "calibration": (subject.calibration, options.calibration_roles),
        "evaluation": (first_examples(subject.evaluation, options.examples), options.roles),
    }
    plan_sha256, journals = run.sha256(PLAN), []
    measured: dict[str, dict[str, Any]] = {a.name: {} for a in plan.allocations}
    float_outcomes, timing = {}, {}
    for name, (split, roles) in splits.items():
        wanted = [a for a in plan.allocations if a.role in roles]
        evaluator = subject.evaluator(
            split, options.batch_size, correct=options.correct, corrected=corrected, mesh=mesh
        )
        of = [plan_sha256, split.sha256, subject.quantizers.sha256, options.correct]
        of += [corrected.sha256] if corrected is not None else []
        journals.append(Journal(run.journal(f"{EVALUATION}.{name}"), of))
        with reporter.bar(f"Measuring on {name:11s}", "allocations") as progress:
            outcomes, seconds = _measured(
                evaluator, [a.allocation for a in wanted], journals[-1], progress
            )
        for allocation in wanted:
            measured[allocation.name][name] = outcomes[allocation.allocation]
        float_outcomes[name] = evaluator.float_outcome().to_json()
        timing[name] = {"seconds_per_allocation": seconds}
    evaluation = Evaluation(
        plan_sha256=plan_sha256,
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
    evaluation.write(run.path / EVALUATION)
    evaluation = dataclasses.replace(evaluation, recommendation=recommend(plan, evaluation))
    for journal in journals:
        journal.remove()
    top1, count = float_outcomes["evaluation"]["top1"], len(splits["evaluation"][0])
    reporter.say(f"Float top-1 {100 * top1:.2f} % on {count} evaluation examples.")
    reporter.say(f"Wrote {run.path / EVALUATION}")
    return evaluation


def _measured(
    evaluator: Evaluator, allocations: Sequence[Allocation], journal: Journal, progress: Any
) -> tuple[Outcomes, float | None]:
    """Outcomes by allocation, and seconds per allocation without compilation.

    Equal allocations are measured once, those in the journal not again.
    """
    known: Outcomes = {}
    for allocation in dict.fromkeys(allocations):
        if (entry := journal.get(allocation.label)) is not None:
            known[allocation] = entry.value
    todo = [allocation for allocation in dict.fromkeys(allocations) if allocation not in known]
    ends: list[float] = []
    progress(0, len(todo))

    def keep(index: int, outcome: Outcome) -> None:
        known[todo[index]] = outcome.to_json()
        journal.keep(todo[index].label, known[todo[index]])
        progress(index + 1, len(todo))
        ends.append(time.perf_counter())

    evaluator(todo, done=keep)
    chunk = evaluator.candidates_per_call  # the first one compiles
    if len(ends) <= chunk:
        return known, None
    return known, (ends[-1] - ends[chunk - 1]) / (len(ends) - chunk)


def chance(split: Split) -> dict[str, float]:
    """Share of a split's most frequent class, which guessing reaches; empty for regressions."""
    labels = split.labels[np.arange(len(split))]
    if labels.dtype.kind not in "iu":
        return {}
    return {"chance": float(np.unique(labels, return_counts=True)[1].max() / len(labels))}


def check_positive(options: object, *names: str) -> None:
    """Raise `ValueError` for counts below 1; None stands for all."""
    for name in names:
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"{name}={value}: give at least 1.")
