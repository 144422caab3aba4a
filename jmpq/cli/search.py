"""The search of `jmpq solve` on composed logits: whole allocations, not sums over layers."""

import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jmpq.cli.joint import joint_predictors
from jmpq.cli.run_folder import SUPERPOSED

if TYPE_CHECKING:
    from jmpq.problem import Problem, Solution
    from jmpq.sensitivity.table import Sensitivity
    from jmpq.solvers.measured.objective_search import Objective


def composed_objective(
    run: pathlib.Path, provenance: "Mapping[str, Any]"
) -> "tuple[str, Callable[[Problem], Objective]] | None":
    """What composed logits predict of whole allocations: its name, and it for a problem.

    The KL divergence, or the increase of the loss where the sensitivities are of a user's.

    Args:
        run: The run folder, with superposed.npz.
        provenance: Of the sensitivities, which must be that of the logit changes.

    Returns:
        None where there are no logit changes.

    Raises:
        ValueError: If they belong to other sensitivities.
    """
    from jmpq.allocation import translate_columns

    measured, predictors = joint_predictors(run, provenance)
    if measured is None:
        return None
    own = provenance.get("loss", "cross_entropy") not in ("cross_entropy", "kl")
    predictor = predictors[name := "composed_loss" if own else "composed_kl"]

    def objective(problem: "Problem") -> "Objective":
        return lambda table: predictor.predict_columns(
            translate_columns(table, problem, predictor)
        )

    return name, objective


def composed_search(
    run: pathlib.Path,
    table: "Sensitivity",
    *,
    max_evaluations: int,
    time_limit_s: float,
    seed: int = 0,
) -> "Callable[[Problem], Solution] | None":
    """A solver that minimises what composed logits predict, from the exact optimum of sums.

    Args:
        run: The run folder, with superposed.npz.
        table: The main effects that came of it.
        max_evaluations: Allocations predicted in a search.
        time_limit_s: Seconds of a search, and of the exact solve before it.
        seed: Of the kicks of the search.

    Returns:
        The solver; None, said in a line, where the logit changes are gone.

    Raises:
        ValueError: If they belong to other sensitivities.
    """
    from jmpq.solvers import ObjectiveSearch, exact_solver

    found = composed_objective(run, table.provenance)
    if found is None:
        print(f"No search on composed logits: {run / SUPERPOSED} not found.")
        return None
    name, objective = found

    def search(problem: "Problem") -> "Solution":
        return ObjectiveSearch(
            objective=objective(problem),
            name=name,
            max_evaluations=max_evaluations,
            time_limit_s=time_limit_s,
            seed=seed,
            start=exact_solver(problem, time_limit_s=time_limit_s),
        )(problem)

    return search
