"""A race: which of the solutions under equal budgets measures best."""

import os

from jmpq.deploy.race import race as race_allocations
from jmpq.problem import PlannedAllocation
from jmpq.run.compute import join_devices
from jmpq.run.folder import PLAN, RunFolder
from jmpq.run.lock import writes
from jmpq.run.network import check_classes
from jmpq.run.options import Compute, Race
from jmpq.run.outcomes import Measured
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.subject import load_subject


@writes
def race(
    folder: str | os.PathLike[str], options: Race = Race(), *, reporter: Reporter = QUIET
) -> PlannedAllocation:
    """Find the solution that measures best under its budgets; add it to ``plan.json``.

    The solutions are measured batch by batch on the calibration examples, and one that cannot
    be the best any more is dropped.

    Args:
        folder: The run folder, with a plan.
        options: Budgets and the quantity to measure.
        reporter: Listens.

    Returns:
        The winner, as ``race/kl`` or ``race/loss``.

    Raises:
        ValueError: If there is no such allocation, or artifacts do not belong together.
        FileNotFoundError: If a step is missing; it says which.
    """
    mesh = join_devices(Compute(devices=options.devices))
    run = RunFolder(folder, plan=options.plan)
    first = run.planned(options.allocation, with_budgets=True)
    run.check_writable(PLAN)
    subject = load_subject(run)
    if options.measure == "kl":
        check_classes(subject.network, "measure=kl", "Choose --measure loss.")
    runners = {
        a.allocation: a  # equal ones race once, under the last one's name
        for a in run.plan.allocations
        if a.role == "solution" and a.budgets == first.budgets and a.asked != "race"
    }
    outcomes = Measured(run, subject, subject.calibration, options.batch_size, mesh=mesh)
    result = race_allocations(outcomes.evaluator, list(runners), by=options.measure)
    for allocation, end, outcome in zip(runners, result.finished, result.outcomes, strict=True):
        if end and outcomes.known(allocation) is None:
            outcomes.keep(allocation, outcome)
    best, outcome = list(runners.values())[result.best], result.outcomes[result.best]
    value = outcome.kl if options.measure == "kl" else outcome.loss
    reporter.say(
        f"{len(runners)} solutions raced, {100 * result.share:.0f} % of the work of "
        f"measuring all: {best.name} has {options.measure} {value:.5g} nats per example on "
        f"{outcome.examples} calibration examples; {int(result.finished.sum())} finished."
    )
    winner = PlannedAllocation(
        name=f"race/{options.measure}",
        role="solution",
        allocation=best.allocation,
        costs=best.costs,
        metric=best.metric,
        asked="race",
        objective=f"measured {options.measure}",
        objective_value=value,
        budgets=dict(best.budgets),
        predictions=best.predictions,
    )
    run.add_to_plan(winner)
    reporter.say(f"Added {winner.name} to {run.file(PLAN)}")
    return winner
