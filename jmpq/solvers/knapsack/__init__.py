"""Knapsacks: a loss that is a sum over layers, under one budget or several.

Every layer takes one choice, and losses and costs add up over the layers. This is the
multiple-choice knapsack problem of operations research (MCKP), which the paper solves.

The defaults are `one_budget` for one budget and `several_budgets` for several. Both return a
proven bound. `greedy` is the paper's search with the bound of the linear relaxation; its gap
shrinks with the number of layers. `integer_program` is an independent proof for any budgets and
the last stage of `several_budgets`. `baselines` are allocations to compare with.

Two files answer other questions about the same tables. `least_cost` is the inverse problem: the
least cost under a ceiling on the loss. `pareto` is the convex hull of all trade-offs.

Shared parts, from the ground up:

- `frontier`: the choices of a group that matter: undominated ones, convex frontiers;
- `frontier_steps`: steps along the frontiers, and how many of them fit the budgets;
- `relaxation_bounds`: Lagrangian bounds, on which all proofs here rest. For any prices λ ≥ 0 of
  the budgets, the minimal priced loss minus the price of the budgets is a lower bound;
- `lagrangian_dual`: the prices of several budgets that maximise this bound;
- `feasibility`: an allocation within several budgets, or the budgets that conflict;
- `mixed_integer`: the solvers behind cvxpy: options, statuses and dual bounds.

Proofs account for rounding. Bounds are lowered by the largest possible rounding error, and the
sums that decide whether a budget is met are correctly rounded.
"""
