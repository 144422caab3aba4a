"""Metrics: predictions of the loss increase of every choice; one file a family.

All fill the same table, losses[layers, choices], with standard errors over batches. δ is the
perturbation Q(w) − w or Q(a) − a, u the change of the logits, p the softmax output. Losses are
nats per example, except for ``squared_error``, which has a unit of its own and compares only
with itself.

- ``gauss_newton`` (`taylor`), **the default and the one that chooses best**: ½ mean Var_p(u),
  the second-order KL divergence, with its cross-layer terms; needs no labels. On ResNet-20 its
  sums choose the most accurate allocations. ``gauss_newton_difference`` takes u from forward
  passes.
- ``composed`` (`jmpq.sensitivity.logits`), **predicts joint allocations best**: the increase by
  a choice, averaged over the choices of all other layers. Made of measured logit changes, so
  not a metric of `analyse`.
- ``empirical_fisher`` (MPQCO), ``first_order``, ``hessian`` (`taylor`): one backward pass; the
  gradient term, which misleads; the exact Hessian with all cross terms, by tangents where the
  network is piecewise linear (`tangent_hessian`).
- ``hawq_trace`` (HAWQ-V2), ``hawq_eigenvalue`` (HAWQ), ``qbert`` (Q-BERT): curvature of a layer
  times the squared perturbation; Q-BERT's is in `hawq_eigenvalue`.
- ``output_fisher`` (AutoQuantize): squared gradients at a layer's output. ``fisher_trace``:
  HAWQ-V2's score with the empirical Fisher. ``absolute_gradient``: mean |⟨∇L_n, δ⟩|.
- ``measured_loss``, ``measured_kl``, ``measured_pairs_loss``, ``measured_pairs_kl`` (CLADO):
  the network run with one choice, or every pair of moves, made (`measured_moves`).
- ``path_attribution``: the damage of a whole bit-width, shared out; reported elsewhere.
- ``squared_error``: ‖δ‖², blind to the loss; the simplest rival.

`by_name` makes a metric from its name. To add one, write a frozen dataclass in a file here,
its options as fields, after `jmpq.sensitivity.metric.Metric`: `about` names it, a call with the
`MoveNetwork`, one batch and a key returns `Terms`, a compiled function of all moves at once.
Then name it in `by_name`: in `MetricName`, `TITLES` and `make_metric`, from where the command
line and the report take it; losses that are not nats in `SCORES` too. One that is zero for the
loss ``kl`` goes into ``ZERO_FOR_KL`` of `jmpq.run.loss`. An option that people set goes into
`make_metric`, ``Sensitivity`` of `jmpq.run.options` and the step. Name the file in this list
and the class in ``_HOMES`` below.
Tests compare it with the dense reference of tests/sensitivity/dense.py.
"""

from jmpq.lazy import attach

_HOMES = {
    "taylor": ("EmpiricalFisher", "ExactHessian", "FirstOrder", "GaussNewton"),
    "hawq_trace": ("HawqTrace",),
    "hawq_eigenvalue": ("EigenSearch", "HawqEigenvalue", "QBert"),
    "output_fisher": ("OutputFisher",),
    "fisher_trace": ("FisherTrace",),
    "absolute_gradient": ("AbsoluteGradient",),
    "measured_moves": ("MeasuredMoves",),
    "path_attribution": ("PathAttribution", "path_attribution"),
    "squared_error": ("SquaredError",),
    "by_name": ("DEFAULT_METRICS", "MetricName", "RIVALS", "TITLES", "make_metric"),
}
__getattr__, __dir__, __all__ = attach(__name__, _HOMES, ("by_name",))
