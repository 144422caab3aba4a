"""The accuracy floor: the cheapest allocation whose measured accuracy stays above it."""

import os

import numpy as np

from jmpq.problem import PlannedAllocation, additive_cost
from jmpq.run.compute import join_devices
from jmpq.run.folder import PLAN, RunFolder
from jmpq.run.lock import writes
from jmpq.run.network import check_classes
from jmpq.run.options import Compute, Floor
from jmpq.run.outcomes import Measured
from jmpq.run.planning.predictions import with_predictions
from jmpq.run.planning.problems import planned_problem, planned_tables, table_named, table_of
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.subject import load_subject
from jmpq.solvers import cheapest_above, pareto_hull


@writes
def floor(
    folder: str | os.PathLike[str], options: Floor = Floor(), *, reporter: Reporter = QUIET
) -> PlannedAllocation:
    """Find the cheapest allocation above an accuracy floor; add it to ``plan.json``.

    Bisects the allocations that a metric calls best for their cost, without budgets, by top-1
    on the calibration examples.

    Args:
        folder: The run folder, with a plan.
        options: The floor, the cost and the metric.
        reporter: Listens.

    Returns:
        The new allocation, ``floor_DROP/METRIC/COST``.

    Raises:
        ValueError: If no allocation stays above the floor, there is no such cost, or artifacts
            do not belong together.
        FileNotFoundError: If a step is missing; it says which.
    """
    mesh = join_devices(Compute(devices=options.devices))
    run, cost = RunFolder(folder, plan=options.plan), options.minimize
    additive_cost(cost)  # refused early
    if options.metric is None:
        table = table_of(run, run.planned(None).metric)
    else:
        _ = table_named(run, options.metric)  # refused early
        table = planned_tables(run)[options.metric]
    run.check_writable(PLAN)
    problem = planned_problem(run, table, {})
    hull = pareto_hull(problem, cost)
    subject = load_subject(run)
    check_classes(subject.network, "A floor of accuracy", "Choose a budget by --budget.")
    outcomes = Measured(run, subject, subject.calibration, options.batch_size, mesh=mesh)
    top1 = outcomes.float_outcome().top1
    least = top1 - options.max_drop / 100
    steps = int(np.ceil(np.log2(max(len(hull.costs), 2))))
    with reporter.bar("Bisecting", "allocations") as progress:
        done = 0

        def told(point: int, quality: float) -> None:
            nonlocal done
            done += 1
            progress(done, max(steps + 2, done))

        cheapest = cheapest_above(
            hull,
            lambda allocations: np.array([o.top1 for o in outcomes(allocations)]),
            least - 0.5 / len(subject.calibration),  # half an example: counts are compared
            steps=steps,
            progress=told,
        )
    reporter.say(
        f"{cost} {cheapest.cost:.10g} at a top-1 of {100 * cheapest.quality:.2f} % "
        f"(float {100 * top1:.2f} %, floor {100 * least:.2f} %) on "
        f"{len(subject.calibration)} calibration examples, {len(cheapest.measured)} measured."
    )
    loss, costs = problem.evaluate(cheapest.allocation)
    new = PlannedAllocation(
        name=f"floor_{options.max_drop:g}/{table.metric}/{cost}",
        role="solution",
        allocation=cheapest.allocation,
        costs=costs,
        metric=table.metric,
        predicted_loss=loss,
        asked="floor",
        solver="cheapest_above",
        objective=cost,
        objective_value=cheapest.cost,
    )
    (new,) = with_predictions(run, [new])
    run.add_to_plan(new)
    reporter.say(f"Added {new.name} to {run.file(PLAN)}")
    return new
