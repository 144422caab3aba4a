"""The inverse problems of a plan: least cost under a loss ceiling, and the front."""

import pathlib
from collections.abc import Iterator, Mapping

from jmpq.files import write_csv
from jmpq.problem import Infeasible, PlannedAllocation, Problem, with_budgets
from jmpq.run.options import Inverse
from jmpq.run.progress import Reporter
from jmpq.solvers import Exact, least_cost, pareto_hull


def least_cost_allocations(
    problems: Mapping[str, Problem],
    options: Inverse,
    *,
    time_limit_s: float,
    reporter: Reporter,
) -> Iterator[PlannedAllocation]:
    """The cheapest allocation of every metric under a ceiling on its loss, budgets ignored.

    A metric that cannot stay under the ceiling is named and left out.

    Raises:
        ValueError: If no metric can, or the cost is unknown.
    """
    if options.loss_ceiling is None:
        return
    reasons, solver = {}, Exact(time_limit_s=time_limit_s)
    for metric, problem in problems.items():
        free, name = with_budgets(problem, {}), options.minimize
        try:
            least = least_cost(free, name, options.loss_ceiling, solver=solver)
        except Infeasible as error:
            reasons[metric] = str(error)
            reporter.say(f"least {name}, {metric}: {error}")
            continue
        reporter.say(
            f"least {name}, {metric}: {least.cost:.10g} at a loss of {least.loss:.4g} "
            f"({least.status}, bound {least.bound:.10g})"
        )
        yield PlannedAllocation(
            name=f"least_{name}/{metric}",
            role="baseline",
            allocation=least.allocation,
            costs=least.costs,
            metric=metric,
            predicted_loss=least.loss,
            asked="least_cost",
            solver=least.solver,
            objective=name,
            objective_value=least.cost,
            wall_s=least.wall_s,
        )
    if len(reasons) == len(problems):
        raise ValueError(next(iter(reasons.values())))


def write_front(path: pathlib.Path, problem: Problem, name: str) -> int:
    """Write the convex hull of loss against a cost as CSV; returns the number of points.

    One row a point by rising cost: the cost, the loss, and the choice of every layer.
    """
    hull = pareto_hull(problem, name)
    rows = [
        {name: hull.costs[i], "loss": hull.losses[i], **hull.allocation(i).to_json()}
        for i in range(len(hull.costs))
    ]
    write_csv(path, rows)
    return len(rows)
