"""One budget: the multiple-choice knapsack as the paper states it.

`expanding_core` is the solver: the optimum of one budget with its proof, a million layers in
seconds. It starts at the best Lagrangian bound, where all but one group take a choice of their
convex frontier, and lets groups deviate one after another in the order of what a deviation
costs at least. A few groups, the core, are all that most proofs need.

- `core_states`: its inner loop, states of the groups so far, extended and pruned;
- `dynamic_programming`: a short independent proof for integer costs, exact by enumeration of
  all sums of costs. It is the reference that the core is tested against, and slower;
- `whole_units`: which budget can bind at all, and costs as whole numbers of a common unit,
  without which dynamic programming has nothing to enumerate.

Problems without any budget, or with budgets that even the dearest allocation meets, are solved
here too. Where a second budget can bind, both solvers refuse the problem by name; the folder
`several_budgets` takes it.

Both return the columns with the bound that they have proved: a time limit ends the search with
a bound below the loss and never with a claim. Sums that decide are correctly rounded
(`jmpq.problem.exact_sum`), and bounds are lowered by what rounding may have added.
"""
