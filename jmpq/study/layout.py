"""Which cells a study consists of, and which allocation each line of its table is."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jmpq.files import json_sha256
from jmpq.problem import Plan, PlannedAllocation
from jmpq.problem.plan import read_plan
from jmpq.run.folder import PLAN
from jmpq.run.options import Comparison
from jmpq.study.cells import Cell, code_of, network_cell
from jmpq.study.grid import SEARCH, Study, options_json, parse_bits

BASELINE = "baseline"  # solver of the lines that no solver made


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Line:
    """A place in the grid before its allocation is known.

    Attributes:
        axes: Values of the axes, but for how the allocation is treated after it is found.
        plan: Cell whose plan has the allocation.
        quantizers: Cell that calibrated the quantizers.
    """

    axes: Mapping[str, Any]
    plan: Cell
    quantizers: Cell


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """An allocation of a line; random baselines are several.

    Attributes:
        line: The line.
        allocation: Chosen allocation, with its costs and prediction.
        number: Number of a random allocation; 0 of any other.
    """

    line: Line
    allocation: PlannedAllocation
    number: int = 0


def lines(study: Study) -> list[Line]:
    """All lines of a study, in the order of its table."""
    made: list[Line] = []
    for name, network in study.networks.items():
        base = network_cell(network)
        for examples, draw, bits, rounding in itertools.product(
            study.examples, study.draws, study.bits, study.rounding
        ):
            axes = {"network": name, "examples": examples, "draw": draw, "bits": bits}
            made += _calibrated(study, base, axes | {"rounding": rounding})
    return made


def _calibrated(study: Study, base: Cell, axes: Mapping[str, Any]) -> Iterator[Line]:
    """Lines of one network and one calibration."""
    w_bits, a_bits = parse_bits(axes["bits"])
    given = dataclasses.replace(
        study.sensitivity,
        examples=axes["examples"],
        seed=axes["draw"],
        w_bits=w_bits,
        a_bits=a_bits,
        weights=dataclasses.replace(study.sensitivity.weights, rounding=axes["rounding"]),
    )

    def tables(metric: Any, *parents: Cell) -> Cell:
        options = options_json(dataclasses.replace(given, metrics=(metric,)))
        return Cell("sensitivity", options, (base, *parents), code_of(loss=given.loss))

    quantizers = tables("squared_error")  # the metric that takes no pass
    of = {
        metric: quantizers if metric == "squared_error" else tables(metric, quantizers)
        for metric in study.metrics
    }
    for budget in study.budgets:
        for metric, solver in itertools.product(study.metrics, study.solvers):
            if solver == SEARCH and metric != "composed":
                continue
            solved = _solve(study, of[metric], metric, solver, budget)
            for evaluations in study.refine:
                yield Line(
                    axes={**axes, "metric": metric, "solver": solver, "budget": budget,
                          "refine": evaluations},
                    plan=_refined(study, solved, solver, evaluations),
                    quantizers=quantizers,
                )  # fmt: skip
        if study.baselines:
            plan = _baselines(study, of[study.metrics[0]], budget, axes["draw"])
            for baseline in study.baselines:
                yield Line(
                    axes={**axes, "metric": baseline, "solver": BASELINE, "budget": budget,
                          "refine": 0},
                    plan=plan,
                    quantizers=quantizers,
                )  # fmt: skip


def _solve(study: Study, table: Cell, metric: str, solver: str, budget: str) -> Cell:
    searched = solver == SEARCH
    solving = dataclasses.replace(
        study.solve,
        budget=tuple(budget.split()),
        metrics=(metric,),
        solvers=("exact",) if searched else (solver,),
        search_evaluations=study.solve.search_evaluations if searched else 0,
    )
    none = options_json(Comparison(comparison="none"))
    return Cell("solve", {"solve": options_json(solving), "comparison": none}, (table,))


def _baselines(study: Study, table: Cell, budget: str, draw: int) -> Cell:
    solving = dataclasses.replace(
        study.solve,
        budget=tuple(budget.split()),
        metrics=(study.metrics[0],),
        solvers=("greedy",),
        search_evaluations=0,
        seed=study.solve.seed + draw * study.random,  # other random allocations in every draw
    )
    comparison = options_json(Comparison(comparison="baselines", random=study.random))
    return Cell("solve", {"solve": options_json(solving), "comparison": comparison}, (table,))


def _refined(study: Study, solved: Cell, solver: str, evaluations: int) -> Cell:
    if not evaluations:
        return solved
    start = None  # the only solution
    if solver == SEARCH:
        from jmpq.run.planning.predictions import SEARCHED_BY_KL

        kind = "kl" if study.sensitivity.loss in SEARCHED_BY_KL else "loss"
        start = f"{SEARCH}/composed_{kind}"
    options = dataclasses.replace(
        study.refinement, allocation=start, max_evaluations=evaluations
    )
    return Cell("refine", options_json(options), (solved,))


def with_parents(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells and all that they are made from, in waves: each needs only those before it."""
    depth: dict[str, int] = {}
    known: dict[str, Cell] = {}

    def visit(cell: Cell) -> int:
        if cell.key not in depth:
            depth[cell.key] = 1 + max(map(visit, cell.parents), default=-1)
            known[cell.key] = cell
        return depth[cell.key]

    for cell in cells:
        visit(cell)
    waves: list[list[Cell]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for key, cell in known.items():
        waves[depth[key]].append(cell)
    return waves


def chosen(line: Line, root: pathlib.Path) -> list[Chosen]:
    """The allocations of a line whose plan is made; none where there is no solution."""
    record = line.plan.record(root)
    if record is None or record["note"]:
        return []
    plan = read_plan(line.plan.folder(root) / PLAN)
    metric, solver = line.axes["metric"], line.axes["solver"]
    if solver == BASELINE:
        found = _of_baseline(plan, metric)
    else:
        wanted = "refine" if line.axes["refine"] else solver
        found = [a for a in plan.allocations if a.asked == wanted and a.role == "solution"]
    return [Chosen(line=line, allocation=a, number=i) for i, a in enumerate(found)]


def _of_baseline(plan: Plan, kind: str) -> list[PlannedAllocation]:
    found = [a for a in plan.allocations if a.role == "baseline" and a.asked == kind]
    if kind != "uniform":
        return found
    within = [a for a in found if not plan.exceeded(a.costs)]
    return sorted(within, key=lambda a: tuple(a.costs[name] for name in plan.budgets))[-1:]


def measure_cells(study: Study, found: Sequence[Chosen]) -> dict[tuple[str, str], Cell]:
    """Cells that measure the allocations, by the key of their quantizers and the correction."""
    groups: dict[str, list[Chosen]] = {}
    for one in found:
        groups.setdefault(one.line.quantizers.key, []).append(one)
    cells = {}
    for (key, group), correct in itertools.product(groups.items(), study.correct):
        evaluate = options_json(dataclasses.replace(study.evaluate, correct=correct))
        quantizers = group[0].line.quantizers
        # The store depends on all but the allocations.
        empty = Cell("measure", {"evaluate": evaluate}, (quantizers,))
        records = {
            json_sha256(r): r for one in group for r in [one.allocation.allocation.to_json()]
        }
        options = {
            "evaluate": evaluate,
            "store": empty.key,
            "allocations": [records[name] for name in sorted(records)],
        }
        cells[key, correct] = Cell("measure", options, (quantizers,))
    return cells


def finetune_cell(study: Study, one: Chosen, epochs: int) -> Cell:
    """The cell that trains the network for the bits of an allocation."""
    options = dataclasses.replace(
        study.finetuning, allocation=one.allocation.name, epochs=epochs
    )
    return Cell("finetune", options_json(options), (one.line.plan,))
