"""Many tight budgets at once: the multidimensional multiple-choice knapsack.

For problems where two or more budgets bind. Under one budget `one_budget` is faster and proves
more.

`anytime_search` is the solver. It runs these stages in order:

1. `lagrangian_dual` finds the prices of the budgets that maximise the Lagrangian bound, by an
   interior point method for such tables;
2. `repair_and_swap` builds an allocation within all budgets from these prices, and improves it
   by changing one or two groups at a time;
3. `meet_in_the_middle` improves it by changing many groups at once, so that little is left of
   every priced budget;
4. the integer program (`knapsack.integer_program`) runs over the options that reduced costs do
   not exclude. It proves the optimum if it ends, else it improves the bound.

The searches share `reduced_costs`. At given prices an allocation's gap to the bound is the sum
of its reduced costs plus the price of the unused budgets.

No proof relies on the searches. Bounds come from `relaxation_bounds` and the integer program.
An allocation counts only if its correctly rounded sums meet the budgets.
"""
