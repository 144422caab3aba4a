"""The problems of a run as files, for solvers that know no jmpq."""

import dataclasses
import math
import os
import pathlib

from jmpq.problem import Instance, Known, Plan, Problem, write_instance, write_program
from jmpq.run.folder import INSTANCES, RunFolder
from jmpq.run.lock import writes
from jmpq.run.options import Instance as Options
from jmpq.run.planning.problems import planned_problem, planned_tables, table_named
from jmpq.run.progress import QUIET, Reporter


@writes
def instance(
    folder: str | os.PathLike[str],
    options: Options = Options(),
    *,
    reporter: Reporter = QUIET,
) -> dict[str, Instance]:
    """Write the problem of every metric, under the rules and budgets of the plan.

    Where a metric has cross-layer terms there are two problems, without and with them. What the
    plan found and proved travels along.

    Args:
        folder: The run folder, with a plan.
        options: Problems and formats to write.
        reporter: Listens.

    Returns:
        The instances, by name; the files are ``instances/NAME.FORMAT``.

    Raises:
        ValueError: If a metric was not computed, or artifacts do not belong together.
        FileNotFoundError: If a step is missing; it says which.
    """
    run = RunFolder(folder, plan=options.plan)
    plan, made = run.plan, {}
    limits = {name: budget.limit for name, budget in plan.budgets.items()}
    for metric in options.metrics or run.sensitivities.tables:
        _ = table_named(run, metric)  # refused early
        table = planned_tables(run)[metric]
        problem = planned_problem(run, table, limits, interactions=table.has_interactions)
        asked = {name: budget.asked for name, budget in plan.budgets.items()}
        problem = dataclasses.replace(problem, asked=asked)
        whole = {metric: problem.separable()}
        if table.has_interactions:
            whole[f"{metric}_full"] = problem
        made |= {name: _instance(name, each, plan) for name, each in whole.items()}
    for name, each in made.items():
        known = "nothing known of its best value"
        if each.known is not None:
            known = f"best known {each.known.loss:.6g} ({each.known.source})"
        for kind in dict.fromkeys(options.formats):
            path = run.file(INSTANCES) / f"{name}.{kind}"
            _write(path, each)
            reporter.say(f"Wrote {path}: {known}")
    return made


def _instance(name: str, problem: Problem, plan: Plan) -> Instance:
    """A problem with the best that the plan knows of it.

    Every allocation of the plan within the budgets counts, whoever made it; a bound counts
    where it was proven for this problem.
    """
    best, bound, by = None, -math.inf, ""
    for a in sorted(
        plan.allocations, key=lambda a: a.metric != name
    ):  # its own solutions first
        try:
            columns = problem.columns(a.allocation)
            loss, costs = problem.evaluate(columns)
        except ValueError:  # a choice that the rules or the candidates do not have
            continue
        if problem.violated(costs):
            continue
        if best is None or loss < best[0]:
            best, by = (loss, columns), a.name
        if a.metric == name and a.budgets == problem.limits and a.bound is not None:
            bound = max(bound, a.bound)
    if best is None:
        return Instance(name=name, problem=problem)
    known = Known(
        loss=best[0],
        bound=min(bound, best[0]),
        columns=best[1],
        source=f"{by} of a plan by jmpq {plan.jmpq}",
    )
    return Instance(name=name, problem=problem, known=known)


def _write(path: pathlib.Path, instance: Instance) -> None:
    if path.suffix in (".lp", ".mps"):
        write_program(path, instance.problem)
    else:
        write_instance(path, instance)
