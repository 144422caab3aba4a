"""Searches that minimise the loss of whole allocations, measured or predicted.

For those who can score an allocation directly, by evaluating the quantized network on data or
by predicting its logits. The model (a `Problem` with its tables) proposes allocations, and the
score decides. Nothing is proven about the score: a solution's bound, gap and status refer to
the problem's own loss.

Choose by the time of one score:

- `objective_search`, microseconds to milliseconds: a tabu search from the knapsack's answer
  that scores thousands of neighbours, for predictions of joint allocations. The default of
  `jmpq solve` if composed logits are available.
- `refinement`, seconds: neighbours of an allocation, ranked by the model and measured once
  each. A journal on disk makes it resumable. The default of `jmpq refine`.
- `accuracy_floor`, minutes: a bisection of about ten measurements along the convex hull of loss
  and cost. It finds the cheapest allocation whose measured quality stays above a floor.

A search on a noisy score overfits to its data. Measure the answer on other examples.

An objective takes a batch of allocations, one row of columns each, and returns one number per
row. Every returned allocation meets the budgets. `neighbourhood` has the moves: single changes,
and swaps between two groups. `tabu_walks` is the walk over them, and `loss_field` gives the
change of the problem's own loss. Nothing here imports JAX.
"""
