"""The inverse problems of `jmpq solve`: least cost under a loss ceiling, and the front."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jmpq.problem import PlannedAllocation, Problem


def least_cost_allocations(
    problems: Mapping[str, "Problem"],
    name: str,
    ceiling: float,
    *,
    time_limit_s: float,
) -> Iterator["PlannedAllocation"]:
    """The cheapest allocation of every metric under a ceiling on its loss, budgets ignored.

    Prints one line each. A metric that cannot stay under the ceiling is named and left out.

    Raises:
        ValueError: If no metric can, or the cost is unknown.
    """
    from jmpq.problem import Infeasible, PlannedAllocation, with_budgets
    from jmpq.solvers import Exact, least_cost

    reasons = {}
    for metric, problem in problems.items():
        free = with_budgets(problem, {})
        try:
            found = least_cost(free, name, ceiling, solver=Exact(time_limit_s=time_limit_s))
        except Infeasible as error:
            reasons[metric] = str(error)
            print(f"least {name}, {metric}: {error}")
            continue
        print(
            f"least {name}, {metric}: {found.cost:.10g} at a loss of {found.loss:.4g} "
            f"({found.status}, bound {found.bound:.10g})"
        )
        yield PlannedAllocation(
            name=f"least_{name}/{metric}",
            role="baseline",
            allocation=found.allocation,
            costs=found.costs,
            metric=metric,
            predicted_loss=found.loss,
            asked="least_cost",
            solver=found.solver,
            objective=name,
            objective_value=found.cost,
            wall_s=found.wall_s,
        )
    if len(reasons) == len(problems):
        raise ValueError(next(iter(reasons.values())))


def write_front(path: pathlib.Path, problem: "Problem", name: str) -> int:
    """Write the convex hull of loss against a cost as CSV; returns the number of points.

    One row a point by rising cost: the cost, the loss, and the choice of every layer.
    """
    from jmpq.files import write_csv
    from jmpq.solvers import pareto_hull

    hull = pareto_hull(problem, name)
    rows = []
    for point in range(len(hull.costs)):
        labels = hull.allocation(point).to_json()
        rows.append({name: hull.costs[point], "loss": hull.losses[point], **labels})
    write_csv(path, rows)
    return len(rows)
