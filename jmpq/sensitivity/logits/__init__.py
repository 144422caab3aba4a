"""Joint predictions: the loss increase of whole allocations, from changes of the logits.

For searches and reports, which ask for thousands of allocations: no network is run. Every move
is made alone once, one forward pass a move and batch, and its change of the logits is kept
(`measure.measure_superposed`). From these changes any allocation is predicted in microseconds.

- `measure`: `measure_superposed`, the only file here that runs a network.
- `superposed`: `Superposed`, the measured changes, a file, and the plainest prediction: the
  true loss of the added changes. `PredictedLoss` makes a loss of it instead of the KL.
- `composed`: `Composed`, made of a `Superposed`: each move is an affine map of the logits, and
  maps are composed in the order of the layers. **Take this one: it predicts random
  allocations best**, above all at few bits, where coarse layers attenuate what passes.
  `Composed.main_effects` is its additive part: the metric ``composed``, for a knapsack.
- `transferred`: `Transferred`, the composed changes of calibration examples applied to the
  float logits of thousands of others: what a few images lack is images.
- `joint_predictors`: `JointPredictor`, the interface of both, of a `Sensitivity` itself (the
  sum of its losses) and of `Quadratic` (its cross-layer terms too).
- `increases`: ready-made losses of predicted logits. Predictions load no JAX: on a processor
  NumPy is faster than a compiled program, and nothing is compiled.

The best predictor of random allocations is not always the best chooser: on ResNet-20 the
sums of ``gauss_newton`` choose the most accurate ones.

To add a predictor, write a frozen class in a file here with `layers`, `choices`, `predict` and
`predict_columns` (see `JointPredictor`). In `jmpq.run.planning`, `predictions` decides which of
them a plan carries, `searches` which are searched.
"""
