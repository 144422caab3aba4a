"""One budget: the multiple-choice knapsack as the paper states it.

`expanding_core` is the solver: it finds and proves the optimum, of a million layers in seconds.
It starts at the best Lagrangian bound, where all but one group take a choice of their convex
frontier. Groups may then deviate, one after another, by rising least cost of a deviation. Most
proofs need only a few groups, the core.

- `core_states`: the inner loop: states of the groups so far, extended and pruned;
- `dynamic_programming`: a short independent solver for integer costs, which enumerates all sums
  of costs. It is slower and serves as the reference in tests;
- `whole_units`: the budget that can bind, and costs as multiples of a common unit, which
  dynamic programming needs.

Both also solve problems without budgets, or with budgets that even the dearest allocation
meets. If a second budget can bind, both raise an error that names it; `several_budgets` solves
such problems.

Both return the columns with the bound that they proved. After a time limit the bound is below
the loss. The sums that decide are correctly rounded (`jmpq.problem.exact_sum`), and bounds are
lowered by the largest possible rounding error.
"""
