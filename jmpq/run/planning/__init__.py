"""Planning: what `solve` and the steps after it decide, from the artifacts alone.

- `problems`: the allocation problem of a run folder, with its rules and budgets.
- `searches`: searches that minimise what composed logits predict.
- `comparisons`: the allocations that solutions are compared with: uniform, random, reversed.
- `inverse`: the least cost under a ceiling on the loss, and the front of loss and cost.
- `predictions`: all that is predicted of an allocation, in one place: sums of losses,
  cross-layer terms, composed and superposed logits.
- `recommendation`: the one allocation to take, and how sure that is.
"""
