"""Solvers that jmpq is compared with, on any problem: mixed-integer, evolutionary, exhaustive.

Each takes a problem and a time limit and returns a loss, a bound and a remark (`Found`). What
they are started with is the problem as `write_program` states it: no dominated choice left out,
no bound from elsewhere.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.bench.solvers import plain_highs, pulp_cbc
from experiments.common.provenance import versions
from jmpq.problem import Infeasible, Problem
from jmpq.problem.instances.program_file import highs_model
from jmpq.solvers import Greedy, LocalSearch, Solver, make_solver
from jmpq.solvers.quadratic.quadratic_program import scip

STATES = 2_000_000  # of the Pareto front, before it is given up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a rival found.

    Attributes:
        loss: Loss of the allocation, evaluated anew; None without one within the budgets.
        bound: Lower bound that it proves; None for none.
        remark: Remark that the file makes about itself.
    """

    loss: float | None
    bound: float | None = None
    remark: str = ""


Rival = Callable[[Problem, float], Found]


def rivals(problem: Problem) -> dict[str, Rival]:
    """Those that take the problem and are installed, by name; jmpq's own solvers first."""
    cross = problem.interactions is not None
    found = versions("pyscipopt", "pulp", "pymoo")
    every: dict[str, Rival | None] = {
        "jmpq": lambda p, s: ours(make_solver(p, time_limit_s=s), p),
        "jmpq greedy": None if cross else lambda p, s: ours(Greedy(), p),
        "jmpq local search": (
            (lambda p, s: ours(LocalSearch(time_limit_s=s, restarts=None, bound=False), p))
            if cross
            else None
        ),
        "HiGHS": None if cross else highs,
        "HiGHS by cvxpy": None if cross else cvxpy_highs,
        "HiGHS, linearized": linearized if cross else None,
        "SCIP": by_scip if found["pyscipopt"] else None,
        "CBC by PuLP": by_cbc if found["pulp"] and not cross else None,
        "NSGA-II": nsga2 if found["pymoo"] else None,
        "Pareto front": None if cross or len(problem.budgets) != 1 else pareto_front,
    }
    return {name: rival for name, rival in every.items() if rival is not None}


def ours(solver: Solver, problem: Problem) -> Found:
    """One of jmpq's solvers."""
    solution = solver(problem)
    bound = solution.bound if math.isfinite(solution.bound) else None
    return Found(loss=solution.loss, bound=bound, remark=solution.solver)


def answered(
    problem: Problem,
    columns: Int[np.ndarray, " layers"] | None,
    bound: float | None,
    remark: str,
) -> Found:
    """An answer from outside, evaluated by jmpq."""
    if bound is not None and not math.isfinite(bound):
        bound = None
    if columns is None:
        return Found(loss=None, bound=bound, remark=remark)
    loss, costs = problem.evaluate(columns)
    if problem.violated(costs):
        return Found(loss=None, bound=bound, remark=f"{remark}, over a budget")
    return Found(loss=loss, bound=bound, remark=remark)


def highs(problem: Problem, time_limit_s: float) -> Found:
    """HiGHS itself, by its own Python package; ended by the clock that `time` shows."""
    from highspy import HighsStatus

    deadline = time.perf_counter() + time_limit_s
    model, reduced = highs_model(problem), problem.reduced()
    # Its own limit is one of the wall's clock: no more than a way out.
    options: dict[str, Any] = {"time_limit": 100 * time_limit_s, "threads": 1}
    options |= {"mip_rel_gap": 0.0, "mip_abs_gap": 0.0}

    def end(event: Any) -> None:
        event.interrupt(time.perf_counter() > deadline)

    for moment in (model.cbMipInterrupt, model.cbSimplexInterrupt, model.cbIpmInterrupt):
        moment.subscribe(end)
    for name, value in options.items():
        model.setOptionValue(name, value)
    # Whoever ran first in this process fixed the threads of all; with others it refuses to run.
    model.resetGlobalScheduler(True)
    if model.run() == HighsStatus.kError:
        raise RuntimeError("HiGHS refused to run: see its log with output_flag on")
    info = model.getInfo()
    columns = None
    if info.primal_solution_status == 2:
        table = np.full(reduced.losses.shape, -np.inf)
        table[reduced.allowed] = model.getSolution().col_value
        columns = reduced.expand(table.argmax(axis=1))
    status = model.modelStatusToString(model.getModelStatus())
    return answered(problem, columns, info.mip_dual_bound, status)


def cvxpy_highs(problem: Problem, time_limit_s: float) -> Found:
    """HiGHS on the program as cvxpy states it."""
    found = plain_highs(problem, time_limit_s)
    return Found(loss=found["loss"], bound=found["bound"], remark=found["back_end_status"])


def linearized(problem: Problem, time_limit_s: float) -> Found:
    """HiGHS on the linearized program: a variable for every pair of options."""
    from experiments.quadratic.iqp_rivals import Linearized

    count = int(problem.allowed.sum())
    if count > 150:
        return Found(loss=None, remark=f"left out: {count} options are too many pairs")
    return ours(Linearized(time_limit_s=time_limit_s), problem)


def by_scip(problem: Problem, time_limit_s: float) -> Found:
    """SCIP on the program, quadratic where there are cross-layer terms."""
    deadline = time.perf_counter() + time_limit_s
    columns, bound = scip(problem, deadline, processor_time=True)
    return answered(problem, columns, bound, "")


def by_cbc(problem: Problem, time_limit_s: float) -> Found:
    """CBC, which hands on no bound."""
    found = pulp_cbc(problem, time_limit_s)
    return Found(loss=found["loss"], remark=found["back_end_status"])


def nsga2(problem: Problem, time_limit_s: float) -> Found:
    """NSGA-II of pymoo: loss and the cost of the first budget, all budgets as constraints."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem as Stated
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    deadline = time.perf_counter() + time_limit_s
    reduced = problem.reduced(interactions=True)
    ranked = [np.flatnonzero(row) for row in reduced.allowed]
    sizes = np.array([len(row) for row in ranked])
    table = np.zeros(reduced.losses.shape, dtype=np.int64)  # column of every rank
    for row, columns in zip(table, ranked, strict=True):
        row[: len(columns)] = columns
    groups = np.arange(len(sizes))
    best: list[tuple[float, np.ndarray]] = []

    class Allocations(Stated):
        count = 0

        def __init__(self) -> None:
            k = len(reduced.limits)
            super().__init__(
                n_var=len(sizes),
                n_obj=1 + (k > 0),
                n_ieq_constr=k,
                xl=0,
                xu=sizes - 1,
                vtype=int,
            )

        def _evaluate(self, x: np.ndarray, out: dict, *_: object, **__: object) -> None:
            if time.perf_counter() > deadline:
                raise TimeoutError
            taken = table[groups, x.astype(int)]
            losses = whole_losses(reduced.losses, reduced.interactions, taken)
            used = reduced.costs[:, groups, taken].sum(axis=2)
            out["F"] = np.stack([losses, *used[:1]], axis=1)
            if len(used):
                scale = np.maximum(np.abs(reduced.limits), 1e-300)
                out["G"] = ((used - reduced.limits[:, None]) / scale[:, None]).T
            fits = np.flatnonzero((used <= reduced.limits[:, None]).all(axis=0))
            for k in fits[np.argsort(losses[fits])[:1]]:
                if not best or losses[k] < best[0][0]:
                    best[:] = [(float(losses[k]), taken[k].copy())]
            Allocations.count += len(x)

    operators = {
        "sampling": IntegerRandomSampling(),
        "crossover": SBX(vtype=float, repair=RoundingRepair()),
        "mutation": PM(vtype=float, repair=RoundingRepair()),
    }
    algorithm = NSGA2(pop_size=100, eliminate_duplicates=False, **operators)
    with contextlib.suppress(TimeoutError):
        minimize(Allocations(), algorithm, ("n_gen", 10**9), seed=0)
    columns = reduced.expand(best[0][1]) if best else None
    return answered(problem, columns, None, f"{Allocations.count} evaluations")


def whole_losses(
    losses: Float[np.ndarray, "groups choices"],
    interactions: Float[np.ndarray, "groups choices groups choices"] | None,
    taken: Int[np.ndarray, "rows groups"],
) -> Float[np.ndarray, " rows"]:
    """Losses of many allocations at once."""
    rows = np.arange(len(losses))
    total = losses[rows, taken].sum(axis=1)
    if interactions is not None:
        size = losses.size
        chosen = np.zeros((len(taken), size))
        np.put_along_axis(chosen, rows * losses.shape[1] + taken, 1.0, axis=1)
        total += 0.5 * ((chosen @ interactions.reshape(size, size)) * chosen).sum(axis=1)
    return total


def pareto_front(problem: Problem, time_limit_s: float) -> Found:
    """Every undominated pair of cost and loss, group by group: an optimum if it ends."""
    started = time.perf_counter()
    reduced = problem.reduced()
    (limit,), (table,) = reduced.limits, reduced.costs
    open_ = np.where(reduced.allowed, table, np.inf)
    rest = np.append(np.cumsum(open_.min(axis=1)[::-1])[::-1][1:], 0.0)
    costs, losses = np.zeros(1), np.zeros(1)
    trail: list[
        tuple[np.ndarray, np.ndarray]
    ] = []  # of every state: the one before, the column
    for group in range(len(table)):
        columns = np.flatnonzero(reduced.allowed[group])
        cost = (costs[:, None] + table[group, columns]).ravel()
        loss = (losses[:, None] + reduced.losses[group, columns]).ravel()
        order = np.lexsort((loss, cost))
        order = order[cost[order] + rest[group] <= limit]
        if not len(order):
            raise Infeasible("The budget cannot be met.")
        least = np.minimum.accumulate(loss[order])
        kept = order[np.append(True, loss[order][1:] < least[:-1])]
        trail.append((kept // len(columns), columns[kept % len(columns)]))
        costs, losses = cost[kept], loss[kept]
        if len(costs) > STATES or time.perf_counter() - started > time_limit_s:
            return Found(loss=None, remark=f"given up: {len(costs)} states at group {group}")
    at, chosen = int(losses.argmin()), np.zeros(len(table), dtype=np.int64)
    for group in range(len(table) - 1, -1, -1):
        before, column = trail[group]
        chosen[group], at = column[at], int(before[at])
    found = answered(problem, reduced.expand(chosen), None, f"{len(costs)} states at the end")
    return dataclasses.replace(found, bound=found.loss)
