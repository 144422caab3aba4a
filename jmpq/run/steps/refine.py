"""Refinement: swaps that a model proposes and a measurement accepts."""

import os

import numpy as np

from jmpq.files import json_sha256
from jmpq.problem import PlannedAllocation, Problem
from jmpq.run.compute import join_devices
from jmpq.run.folder import PLAN, RunFolder
from jmpq.run.lock import writes
from jmpq.run.network import check_classes
from jmpq.run.options import Compute, Refine
from jmpq.run.outcomes import Measured
from jmpq.run.planning.predictions import with_predictions
from jmpq.run.planning.problems import planned_problem, table_of
from jmpq.run.planning.searches import composed_objective
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.subject import Subject, load_subject
from jmpq.solvers import refine as refine_allocation


@writes
def refine(
    folder: str | os.PathLike[str], options: Refine = Refine(), *, reporter: Reporter = QUIET
) -> PlannedAllocation:
    """Improve an allocation of the plan by measurement; add it to ``plan.json``.

    Composed logits, where they were measured, else the metric, propose changes and swaps
    within the budgets; the measurement on the calibration examples accepts them. Every
    measurement is kept: if interrupted, or called again with more evaluations, the search
    resumes.

    Args:
        folder: The run folder, with a plan.
        options: First allocation, quantity to measure, and limits.
        reporter: Listens.

    Returns:
        The new allocation, ``refined/NAME``.

    Raises:
        ValueError: If there is no such allocation, or artifacts do not belong together.
        FileNotFoundError: If a step is missing; it says which.
    """
    mesh = join_devices(Compute(devices=options.devices))
    run = RunFolder(folder, plan=options.plan)
    start = run.planned(options.allocation, with_budgets=True)
    run.check_writable(PLAN)
    subject = load_subject(run)
    if options.measure == "kl":
        check_classes(subject.network, "measure=kl", "Choose --measure loss.")
    problem = planned_problem(run, table_of(run, start.metric), start.budgets)
    field = "kl" if options.measure == "kl" else "increase"
    outcomes = Measured(run, subject, subject.calibration, options.batch_size, mesh=mesh)
    model = composed_objective(run)
    with reporter.bar("Refining", "allocations") as progress:
        refined = refine_allocation(
            problem,
            start.allocation,
            lambda allocations: np.array([getattr(o, field) for o in outcomes(allocations)]),
            max_evaluations=options.max_evaluations,
            patience=options.patience,
            predict=model and model(problem),
            journal=run.journal(f"refine.{_key(run, subject, problem, field)}"),
            progress=lambda done, best: progress(done, options.max_evaluations),
        )
    reporter.say(
        f"{start.name}: measured {options.measure} {refined.start:.5g} -> "
        f"{refined.measured:.5g} nats per example on {len(subject.calibration)} calibration "
        f"examples, {len(refined.path) - 1} accepted of {refined.evaluations} measured"
        + ("." if refined.finished else "; the evaluations ran out.")
    )
    new = PlannedAllocation(
        name=f"refined/{start.name}",
        role="solution",
        allocation=refined.allocation,
        costs=problem.evaluate(refined.allocation)[1],
        metric=start.metric,
        asked="refine",
        objective=f"measured {options.measure}",
        objective_value=refined.measured,
        budgets=dict(start.budgets),
    )
    (new,) = with_predictions(run, [new])
    run.add_to_plan(new)
    reporter.say(f"Added {new.name} to {run.file(PLAN)}")
    return new


def _key(run: RunFolder, subject: Subject, problem: Problem, field: str) -> str:
    """Names the journal of one kind of measurement on one set of examples."""
    of = {
        "examples": subject.calibration.sha256,
        "quantizers": subject.quantizers.sha256,
        "loss": subject.loss if field == "increase" else None,
        "layers": list(problem.layers),
        "choices": [choice.label for choice in problem.choices],
        "weights": run.layers.weights_sha256,
    }
    return f"{json_sha256(of)[:12]}.{field}"
