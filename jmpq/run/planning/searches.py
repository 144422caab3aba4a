"""Searches on what composed logits predict of whole allocations."""

import dataclasses
from collections.abc import Callable

from jmpq.allocation import translate_columns
from jmpq.problem import Problem, Solution
from jmpq.run.folder import SUPERPOSED, RunFolder
from jmpq.run.options import Solve
from jmpq.run.planning.predictions import logit_predictors, searched_name
from jmpq.run.progress import Reporter
from jmpq.solvers import Objective, ObjectiveSearch, make_solver


def composed_objective(folder: RunFolder) -> Callable[[Problem], Objective] | None:
    """The prediction by composed logits as an objective of a problem; None without them.

    Raises:
        ValueError: If the logit changes were not measured with the sensitivities.
    """
    if not (predictors := logit_predictors(folder)):
        return None
    predictor = predictors[searched_name(folder)]

    def objective(problem: Problem) -> Objective:
        return lambda table: predictor.predict_columns(
            translate_columns(table, problem, predictor)
        )

    return objective


def composed_search(
    folder: RunFolder, options: Solve, reporter: Reporter
) -> Callable[[Problem], Solution] | None:
    """A solver that minimises the prediction, from the exact optimum of sums.

    None without logit changes, which is said in a line.

    Raises:
        ValueError: If the logit changes were not measured with the sensitivities.
    """
    if (objective := composed_objective(folder)) is None:
        reporter.say(f"No search on composed logits: {folder.path / SUPERPOSED} not found.")
        return None

    def search(problem: Problem) -> Solution:
        predict = objective(problem)
        found = ObjectiveSearch(
            objective=predict,
            name=searched_name(folder),
            max_evaluations=options.search_evaluations,
            time_limit_s=options.time_limit_s,
            seed=options.seed,
            start=make_solver(problem, time_limit_s=options.time_limit_s),
        )(problem)
        # Predicted anew, alone, as the plan's check will: the value is that of the allocation.
        (value,) = predict(found.columns[None]).tolist()
        return dataclasses.replace(found, objective_value=value)

    return search
