"""Sensitivities: the loss increase of every choice of every layer.

For those who want the table itself, or bring a metric. The idea: a *move* is the change of
one layer's kernel or input by one bit-width, and gets a scalar ε; the network is then a
function of ε, and ε = 0 is the float network. Every metric is a question about that function.

Start with `analyse.analyse`::

    moves = MoveNetwork(network=network, quantizers=quantizers)
    table = analyse(moves, GaussNewton(), batches, choice_grid([2, 4, 8]))

It gives a `table.Sensitivity`: losses[layers, choices] in nats per example, their standard
errors over batches, and the second-order terms between layers. `GaussNewton` is the default:
it chooses best and needs no labels. Calibration examples that the network was not trained on
matter more than the metric; a few hundred do.

- `moves`: the network as a function of ε. `table`: results as values and as a file; no JAX.
- `metric`: what a metric is. `metrics`: all of them, and by name.
- `analyse`: the loop over batches, resumable, on several devices.
- `calibration_batches`: batches whose labels fit the output.
- `batch_terms`, `by_width`: terms of a batch and of bit-widths, kept so that new bits are
  computed alone.
- `batch_memory`: the memory that a pass takes, and batches cut so that it fits.
- `logits`: predictions of whole allocations from changes of the logits.

To add a metric, see `jmpq.sensitivity.metrics`. A way to predict whole allocations goes to
`jmpq.sensitivity.logits`.
"""

from jmpq.lazy import attach

_HOMES = {
    "moves": ("MoveNetwork",),
    "metric": ("About", "Changes", "FromChanges", "Metric", "Terms"),
    "analyse": ("analyse", "estimate_batch"),
    "table": ("Move", "Sensitivity", "load_sensitivities", "save_sensitivities"),
    "logits.measure": ("measure_superposed",),
    "logits.superposed": ("PredictedLoss", "Superposed"),
    "logits.composed": ("Composed",),
}
__getattr__, __dir__, __all__ = attach(
    __name__, _HOMES, ("batch_memory", "logits", "metric", "metrics", "moves", "table")
)
