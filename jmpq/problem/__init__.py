"""The allocation problem: choices, costs, rules, budgets, solutions, plans. No JAX."""

from jmpq.formats import FLOAT_BITS, Choice, choice_grid
from jmpq.problem.budgets import Budget, limit_of, parse_budget, with_budgets
from jmpq.problem.build import LossTable, build_problem
from jmpq.problem.costs import COSTS, Cost, Overhead, additive_cost, allocation_costs
from jmpq.problem.plan import (
    Plan,
    PlannedAllocation,
    PlannedBudget,
    plan_to_json,
    planned_allocation,
    planned_budgets,
    read_plan,
    write_plan,
)
from jmpq.problem.problem import Problem, problem_of
from jmpq.problem.problem_file import load_problem, save_problem
from jmpq.problem.rules import (
    Allow,
    Exclude,
    Pin,
    Rule,
    Tie,
    apply_rules,
    describe,
    first_and_last,
    parse_rule,
    rules_from_json,
    rules_to_json,
)
from jmpq.problem.solution import (
    OPTIMALITY,
    Infeasible,
    Solution,
    Status,
    solution_from_columns,
)
from jmpq.problem.transformer_ties import Unit, transformer_units

__all__ = [
    "COSTS",
    "FLOAT_BITS",
    "OPTIMALITY",
    "Allow",
    "Budget",
    "Choice",
    "Cost",
    "Exclude",
    "Infeasible",
    "LossTable",
    "Overhead",
    "Pin",
    "Plan",
    "PlannedAllocation",
    "PlannedBudget",
    "Problem",
    "Rule",
    "Solution",
    "Status",
    "Tie",
    "Unit",
    "additive_cost",
    "allocation_costs",
    "apply_rules",
    "build_problem",
    "choice_grid",
    "describe",
    "first_and_last",
    "limit_of",
    "load_problem",
    "parse_budget",
    "parse_rule",
    "plan_to_json",
    "planned_allocation",
    "planned_budgets",
    "problem_of",
    "read_plan",
    "rules_from_json",
    "rules_to_json",
    "save_problem",
    "solution_from_columns",
    "transformer_units",
    "with_budgets",
    "write_plan",
]
