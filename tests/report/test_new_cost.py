"""A new cost is one entry of `COSTS`: budgets, plan and report take it from there."""

import dataclasses
import json

import numpy as np
import pytest

from jmpq.problem import COSTS, Cost, Plan, allocation_costs, build_problem, write_plan
from jmpq.problem.costs import Overhead
from jmpq.problem.plan import planned_allocation, planned_budgets
from jmpq.quantizers.spec import KernelSpec
from jmpq.report.contents import Contents
from jmpq.report.figure_accuracy import accuracy_figure
from jmpq.report.figure_gap import gap_figure
from jmpq.report.style import cost_named
from jmpq.report.summary import summary
from jmpq.report.tables import all_tables, cell
from jmpq.solvers import solve
from tests.problem.tables import GRID, LAYERS, losses_of
from tests.report import synthetic_run


def energy(layers, choices, overhead):
    return np.array([[0.5 * layer.macs * c.w_bits for c in choices] for layer in layers])


def test_a_new_cost_is_one_entry(monkeypatch, tmp_path):
    cost = Cost(name="energy_pj", title="energy", unit="pJ", table=energy)
    monkeypatch.setitem(COSTS, "energy_pj", cost)
    macs = sum(layer.macs for layer in LAYERS)
    spec = KernelSpec()
    problem = build_problem(LAYERS, losses_of(), overhead=spec, budgets=["energy_pj=W4A8"])
    assert problem.budgets == {"energy_pj": 2.0 * macs}
    assert problem.float_costs["energy_pj"] == 16.0 * macs
    solution = solve(problem)
    chosen = solution.allocation
    want = sum(0.5 * layer.macs * chosen[layer.name].w_bits for layer in LAYERS)
    assert solution.costs["energy_pj"] == want <= 2.0 * macs
    assert allocation_costs(LAYERS, chosen, Overhead.of(LAYERS, spec))["energy_pj"] == want

    planned = planned_allocation(
        "exact/m", "solution", problem, solution, metric="m", asked="exact"
    )
    planned = dataclasses.replace(planned, predictions={"m": solution.loss})
    plan = Plan(
        jmpq="", versions={}, seed=0, created="", weights_sha256="", sensitivity_sha256="",
        quantizers={}, layers=problem.layers, choices=GRID, rules=(),
        budgets=planned_budgets(problem), unquantized=problem.constants, allocations=(planned,),
    )  # fmt: skip
    write_plan(tmp_path / "plan.json", plan)
    made = json.loads((tmp_path / "plan.json").read_text())
    layers = dataclasses.replace(synthetic_run.layer_table(), layers=tuple(LAYERS))
    contents = Contents(
        layers=layers,
        sensitivities={},
        plan=made,
        evaluation=synthetic_run.evaluation(made, ""),
    )
    table = all_tables(contents)[0]
    (column,) = [c for c in table.columns if c.key == "energy_pj"]
    assert (column.heading, cell(table.shown[0], column)) == ("energy (pJ)", f"{want:.4g}")
    said = dict(summary(contents))["Budget"]
    assert said.startswith(f"energy at most {2.0 * macs:.4g} pJ, asked as W4A8 (reachable: ")
    labels = [axes.get_xlabel() for axes in accuracy_figure(made, contents.evaluation).axes]
    assert "energy (pJ)" in labels
    assert gap_figure(made).axes[0].get_xlabel() == "budget: energy (pJ)"


def test_a_cost_without_an_entry_is_named():
    with pytest.raises(ValueError, match=r"cost 'watts', which has no title.*one of size"):
        cost_named("watts")
