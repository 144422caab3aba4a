"""The allocation problem: choices, costs, rules, budgets, solutions, plans. No JAX."""

from jmpq.formats import FLOAT_BITS, Choice, choice_grid
from jmpq.problem.budgets import Budget, limit_of, parse_budget, with_budgets
from jmpq.problem.build import LossTable, build_problem
from jmpq.problem.costs import (
    COST_NAMES,
    Overhead,
    activation_bytes,
    allocation_costs,
    average_bits,
    bops,
    cost_table,
    size_bytes,
)
from jmpq.problem.plan import (
    Plan,
    PlannedAllocation,
    PlannedBudget,
    SolveTime,
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
    "COST_NAMES",
    "FLOAT_BITS",
    "OPTIMALITY",
    "Allow",
    "Budget",
    "Choice",
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
    "SolveTime",
    "Status",
    "Tie",
    "Unit",
    "activation_bytes",
    "allocation_costs",
    "apply_rules",
    "average_bits",
    "bops",
    "build_problem",
    "choice_grid",
    "cost_table",
    "describe",
    "first_and_last",
    "limit_of",
    "load_problem",
    "parse_budget",
    "parse_rule",
    "planned_allocation",
    "planned_budgets",
    "problem_of",
    "read_plan",
    "rules_from_json",
    "rules_to_json",
    "save_problem",
    "size_bytes",
    "solution_from_columns",
    "transformer_units",
    "with_budgets",
    "write_plan",
]
