"""Knapsacks: a loss that is a sum over layers, under one budget or several.

One choice a layer, losses and costs that add up: the multiple-choice knapsack problem of
operations research, which is what the paper solves.

By default `one_budget` for one budget and `several_budgets` for several. Both prove what
they return. `greedy` is the paper's own search, with the bound of the linear relaxation: the
more layers, the nearer to the optimum. `integer_program` is an independent proof for any
budgets, with which `several_budgets` ends, and `baselines` are allocations to compare with.

Other questions about the same tables: `least_cost` is the inverse problem (the least cost
under a ceiling on the loss), `pareto` all budgets at once: the corners of the trade-off, each
optimal for its own cost.

What they share, from the ground up:

- `frontier`: which choices of a group matter, the undominated and the convex ones;
- `frontier_steps`: the steps along all frontiers, and how many of them the budgets pay for;
- `relaxation_bounds`: Lagrangian bounds. All proofs here rest on one: for any prices λ ≥ 0 of
  the budgets, the least priced losses less the price of the budgets;
- `lagrangian_dual`: the prices of several budgets for which that is most;
- `feasibility`: an allocation within several budgets, or which of them conflict;
- `mixed_integer`: the solvers behind cvxpy, their options, statuses and dual bounds.

Arithmetic is part of each proof. Bounds are lowered by what rounding may have added, and sums
that decide whether a budget is met are correctly rounded.
"""
