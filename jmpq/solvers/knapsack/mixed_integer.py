"""The mixed-integer solvers behind cvxpy: their options, statuses and dual bounds.

cvxpy maps statuses and passes on what each solver reports; this file interprets it case by
case. Only a reported dual bound counts as a bound. If cvxpy passes none on, the solution has
the bound of the linear relaxation, and its status is ``feasible`` unless that bound proves the
optimum.
"""

from typing import Any

from jmpq.text import did_you_mean

LISTED = ("HIGHS", "SCIP", "SCIPY", "GUROBI", "GLPK_MI", "CBC")  # with options below
TOLERANCES = {"HIGHS": 1e-9, "SCIP": 1e-9, "GUROBI": 1e-9, "SCIPY": 1e-6}  # of constraints


def installed() -> tuple[str, ...]:
    """Names of the mixed-integer solvers that cvxpy finds."""
    from cvxpy.reductions.solvers.defines import INSTALLED_MI_SOLVERS

    return tuple(INSTALLED_MI_SOLVERS)


def check_installed(solver: str) -> None:
    """Check that a mixed-integer solver is installed.

    Raises:
        ValueError: If cvxpy does not find `solver`; the message lists those it finds.
    """
    if solver not in (names := installed()):
        raise ValueError(
            f"cvxpy finds no mixed-integer solver {solver!r}; it finds {', '.join(names)}."
            f"{did_you_mean(solver, names)} Install it "
            "(SCIP: the extra `scip` of jmpq) or choose one of these."
        )


def options(solver: str, time_limit_s: float, gap: float) -> dict[str, Any]:
    """Arguments of `cvxpy.Problem.solve` for a time limit, a relative gap and tolerances.

    Solvers that are not listed get no arguments and so have no time limit.
    """
    tolerance = TOLERANCES.get(solver)
    match solver:
        case "HIGHS":
            return {
                "time_limit": time_limit_s,
                "mip_rel_gap": gap,
                "mip_abs_gap": 0.0,
                "mip_feasibility_tolerance": tolerance,
                "primal_feasibility_tolerance": tolerance,
                "dual_feasibility_tolerance": tolerance,
                "output_flag": False,
            }
        case "SCIP":
            limits = {"limits/time": time_limit_s, "limits/gap": gap}
            tolerances = {"numerics/feastol": tolerance, "numerics/dualfeastol": tolerance}
            return {"scip_params": {**limits, **tolerances}}
        case "SCIPY":
            return {"scipy_options": {"time_limit": time_limit_s, "mip_rel_gap": gap}}
        case "GUROBI":
            return {
                "TimeLimit": time_limit_s,
                "MIPGap": gap,
                "MIPGapAbs": 0.0,
                "FeasibilityTol": tolerance,
                "OptimalityTol": tolerance,
                "IntFeasTol": tolerance,
            }
        case "GLPK_MI":
            return {"tm_lim": max(int(1000 * time_limit_s), 1), "mip_gap": gap}
        case "CBC":
            return {"maximumSeconds": time_limit_s, "allowableGap": 0.0}
        case _:
            return {}


def dual_bound(solver: str, stats: Any) -> float | None:
    """The dual bound in cvxpy's ``extra_stats``; None if there is none."""
    if stats is None:
        return None
    match solver:
        case "HIGHS":
            return float(stats.mip_dual_bound)
        case "SCIP":
            return float(stats["model"].getDualbound())
        case "SCIPY":
            return float(stats["mip_dual_bound"])
        case "GUROBI":
            return float(stats.ObjBound)
        case _:
            return None


def has_answer(solver: str, status: str, stats: Any) -> bool:
    """Whether cvxpy's status promises an allocation.

    Raises:
        RuntimeError: If the solver failed.
    """
    import cvxpy

    match status:
        case cvxpy.OPTIMAL | cvxpy.OPTIMAL_INACCURATE:
            return True
        case cvxpy.USER_LIMIT:  # out of time, with or without an answer
            return solver != "HIGHS" or stats.primal_solution_status == 2
        case cvxpy.INFEASIBLE | cvxpy.INFEASIBLE_INACCURATE:
            return False  # out of time, or nothing is left beside the greedy answer
        case _:
            raise RuntimeError(f"{solver} ended with status {status!r}.")
