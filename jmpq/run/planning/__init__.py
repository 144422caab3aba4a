"""Planning: what `solve` and the steps after it decide, from the artifacts alone.

For the steps `solve`, `race`, `refine`, `floor` and `evaluate`, and for whoever wants a part of
what they do: every function here takes a run folder's artifacts or a `Problem`, and returns
plain values. No data is read and nothing is measured.

Start with `problems`: it reads the sensitivities of a folder and states the problem that the
options ask for. The step `solve` then goes through these files from top to bottom.

- `problems`: the allocation problem of a run folder, with its rules and budgets.
- `searches`: searches that minimise what composed logits predict.
- `comparisons`: the allocations that solutions are compared with: uniform, random, reversed.
- `inverse`: the least cost under a ceiling on the loss, and the front of loss and cost.
- `predictions`: all that is predicted of an allocation, in one place: sums of losses,
  cross-layer terms, composed and superposed logits.
- `recommendation`: the one allocation to take, and how sure that is.

An allocation of a plan carries all predictions that the artifacts allow, whoever proposed it,
so that tables and figures compare like with like. `predictions` is the only place that makes
them. A recommendation rests on calibration examples alone; what the evaluation examples say is
shown beside it and never used to choose.
"""
