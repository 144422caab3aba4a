"""The allocation problem: losses, costs, rules and budgets in; allocations with proofs out.

For whoever has losses per layer and choice (of bits) and wants to state what is to be
minimised under what. A problem is plain tables with names, and so is a solution; both travel
as files. No JAX.

- `problem`: the `Problem`, a multiple-choice knapsack with several budgets, and its form over
  groups of tied layers, which solvers work on.
- `build`: the usual way to one, ``build_problem(network, sensitivity, overhead=..., rules=...,
  budgets=...)``. `problem_of` takes bare arrays instead.
- `costs`: what a choice costs: bytes with scales and zero points, bit operations, average
  bits; the definitions, as functions of the layer table.
- `rules`: one line of text each: ``pin``, ``allow``, ``exclude``, ``tie``, with regular
  expressions on layer names. The default elsewhere is `first_and_last` at 8 bits.
  `transformer_ties` has those of encoders ready-made.
- `budgets`: limits as people ask for them: ``size_bytes=0.27MB``, ``bops=40%``,
  ``size_bytes=W4A8``, ``size_bytes=0.13x``.
- `interactions`: cross-layer terms, checked and summed over groups.
- `solution`: what a solver returns. `solution_from_columns` evaluates the answer by itself, so
  that loss, costs, gap and status never are a solver's word; `Infeasible` names the budgets
  that conflict and how far each would have to be raised.
- `plan`: the allocations of a run with their proofs, as JSON that is readable without jmpq;
  `plan_check` recomputes what a plan claims when it is read.
- `shown`: which of an allocation's predictions people are shown, with its unit.
- `instances`: problems as files that any program can read, with the best value known, and as
  integer programs. `named_candidate`: candidates that are not bits, in tables from elsewhere.
- `exact_sum`: correctly rounded sums. A budget is met or not, whatever the order of layers.

To add a cost, and with it a budget, write its table (layers × choices) in `costs` and give it
an entry in `costs.COSTS`: budgets, plans, tables and the report take it from there. Name it in
the help of ``Solve.budget`` (`jmpq.run.options`) and in ``reference_costs`` of
tests/problem/tables.py. A budget on a peak over layers allows or forbids each choice by itself.
For one problem only, pass ``costs=`` to `build_problem`, as `jmpq.latency` does.

Losses are nats per example; a cost carries its unit in its name; MB = 10⁶ bytes. What solves a
problem is the next stage, `jmpq.solvers`.
"""

from jmpq.problem.budgets import with_budgets
from jmpq.problem.build import build_problem
from jmpq.problem.costs import COSTS, Cost, Overhead, additive_cost, allocation_costs
from jmpq.problem.instances.instance import Instance, Known, read_instance, write_instance
from jmpq.problem.instances.program_file import write_program
from jmpq.problem.named_candidate import NamedCandidate
from jmpq.problem.plan import Plan, PlannedAllocation, read_plan, write_plan
from jmpq.problem.problem import Problem, problem_of
from jmpq.problem.rules import (
    Allow,
    Exclude,
    Pin,
    Tie,
    first_and_last,
    parse_rule,
)
from jmpq.problem.solution import Infeasible, Solution, solution_from_columns
from jmpq.problem.transformer_ties import transformer_units

__all__ = [
    "COSTS",
    "Allow",
    "Cost",
    "Exclude",
    "Infeasible",
    "Instance",
    "Known",
    "NamedCandidate",
    "Overhead",
    "Pin",
    "Plan",
    "PlannedAllocation",
    "Problem",
    "Solution",
    "Tie",
    "additive_cost",
    "allocation_costs",
    "build_problem",
    "first_and_last",
    "parse_rule",
    "problem_of",
    "read_instance",
    "read_plan",
    "solution_from_columns",
    "transformer_units",
    "with_budgets",
    "write_instance",
    "write_plan",
    "write_program",
]
