"""Searches on the loss of whole allocations, measured or predicted, instead of a sum.

For whoever can score an allocation as it is: evaluate the quantized network on real data, or
predict its logits. The model (a `Problem` with its tables) proposes, the score decides.
Nothing here proves anything about the score; a solution's bound, gap and status are those of
the problem's own loss.

Which one, by what a score costs:

- `objective_search`, microseconds to milliseconds: a tabu search from the knapsack's answer
  that scores thousands of neighbours, for predictions of joint allocations. The default of
  `jmpq solve` where composed logits are known.
- `refinement`, seconds: neighbours of one allocation in the order that the model ranks them,
  each measured once; a record on disk makes it resumable. The default of `jmpq refine`.
- `accuracy_floor`, minutes: some ten measurements, a bisection along the convex hull of loss
  and cost for the cheapest allocation whose measured quality stays above a floor.

A search that minimises a noisy score finds allocations that are lucky on its data: measure
the answer on other examples than it was searched on.

An objective is a function of a batch of allocations, rows of columns of the problem's choices,
that returns one number each. The budgets hold for every allocation that is returned. The moves
and the walk are those of `jmpq.solvers.quadratic`; no JAX, whatever the objective uses.
"""
