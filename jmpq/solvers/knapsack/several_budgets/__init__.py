"""Many tight budgets at once: the multidimensional multiple-choice knapsack.

For problems where two or more budgets bind; under one, `one_budget` is faster and proves more.

`anytime_search` is the solver. It goes through what the other files do, in this order:

1. `lagrangian_dual`: the prices of the budgets at which the Lagrangian bound is best, those of
   the linear relaxation, by an interior point method made for tables;
2. `repair_and_swap`: an allocation within all budgets from these prices, made better by
   changing one or two groups at a time;
3. `meet_in_the_middle`: better ones by changing many groups at once, so that no priced budget
   leaves much;
4. the integer program (`knapsack.integer_program`) over the options that reduced costs do not
   exclude, which proves the optimum where it ends, and a better bound where it does not.

`reduced_costs` is what the searches share: at given prices, an allocation's gap to the bound
is a sum of reduced costs and of the price of what it leaves of the budgets.

Nothing the searches compute is part of a proof. Bounds come from `relaxation_bounds` and from
the integer program, and an allocation counts when its correctly rounded sums meet the budgets.
"""
