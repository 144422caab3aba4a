"""Metrics by name: for command line, experiments and reports. No JAX until one is made."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from jmpq.text import did_you_mean

if TYPE_CHECKING:
    from jmpq.sensitivity.metric import Metric
    from jmpq.training.losses import ExampleLoss

MetricName = Literal[
    "composed",
    "gauss_newton",
    "gauss_newton_difference",
    "empirical_fisher",
    "first_order",
    "hessian",
    "output_fisher",
    "hawq_eigenvalue",
    "hawq_trace",
    "qbert",
    "fisher_trace",
    "absolute_gradient",
    "squared_error",
    "measured_loss",
    "measured_kl",
    "measured_pairs_loss",
    "measured_pairs_kl",
    "path_attribution",
]
# The first leads: it chooses best. Composed logits predict best.
DEFAULT_METRICS: tuple[MetricName, ...] = ("gauss_newton", "composed")
RIVALS: tuple[MetricName, ...] = ("empirical_fisher", "hawq_trace", "squared_error")
# Their losses are divergences of class probabilities.
OF_CLASSES: tuple[MetricName, ...] = ("measured_kl", "measured_pairs_kl")
# Their losses are not nats per example: only the order of allocations tells something.
SCORES: tuple[MetricName, ...] = ("squared_error",)
TITLES: Mapping[MetricName, str] = MappingProxyType(
    {
        "composed": "composed logits, main effects",
        "gauss_newton": "Gauss–Newton",
        "gauss_newton_difference": "Gauss–Newton (difference)",
        "empirical_fisher": "empirical Fisher",
        "first_order": "first order",
        "hessian": "exact Hessian",
        "output_fisher": "output Fisher",
        "hawq_eigenvalue": "HAWQ eigenvalue",
        "hawq_trace": "HAWQ-V2 trace",
        "qbert": "Q-BERT eigenvalue",
        "fisher_trace": "Fisher trace",
        "absolute_gradient": "absolute gradient",
        "squared_error": "squared error",
        "measured_loss": "measured loss",
        "measured_kl": "measured KL",
        "measured_pairs_loss": "measured pairs, loss",
        "measured_pairs_kl": "measured pairs, KL",
        "path_attribution": "path attribution",
    }
)


def check_output(name: str, output: tuple[int, ...]) -> None:
    """Refuse an output without classes for a metric that takes class probabilities.

    Args:
        name: Name of the metric, for the message.
        output: Shape of the network's output for one example, classes last.

    Raises:
        ValueError: If there are not two classes; it names the metrics that work.
    """
    if not output or output[-1] < 2:
        works = [other for other in TITLES if other not in OF_CLASSES]
        raise ValueError(
            f"Metric {name!r} is a KL divergence of class probabilities, and an output of "
            f"shape {list(output)} has none. With a loss of your own, or squared_error, these "
            f"work: {', '.join(works)}."
        )


def make_metric(
    name: MetricName | str,
    *,
    loss: "ExampleLoss | None" = None,
    traces: Literal["auto", "exact", "probes"] = "auto",
    probes: int = 1,
    qbert_spread: float = 1.0,
    class_samples: int | Literal["all"] = "all",
) -> "Metric":
    """A metric of `analyse` by its name; the loss is cross-entropy by default.

    Args:
        name: Name of the metric.
        loss: Loss of one example.
        traces: `HawqTrace.traces`.
        probes: `HawqTrace.num_probes`.
        qbert_spread: `QBert.spread`.
        class_samples: `GaussNewton.class_samples`, by derivative.

    Raises:
        ValueError: If there is no such name, or it is ``composed``, which is made of logit
            changes instead.
    """
    from jmpq.sensitivity.metrics.absolute_gradient import AbsoluteGradient
    from jmpq.sensitivity.metrics.fisher_trace import FisherTrace
    from jmpq.sensitivity.metrics.hawq_eigenvalue import HawqEigenvalue, QBert
    from jmpq.sensitivity.metrics.hawq_trace import HawqTrace
    from jmpq.sensitivity.metrics.measured_moves import MeasuredMoves
    from jmpq.sensitivity.metrics.output_fisher import OutputFisher
    from jmpq.sensitivity.metrics.path_attribution import PathAttribution
    from jmpq.sensitivity.metrics.squared_error import SquaredError
    from jmpq.sensitivity.metrics.taylor import (
        EmpiricalFisher,
        ExactHessian,
        FirstOrder,
        GaussNewton,
    )
    from jmpq.training.losses import cross_entropy

    loss = loss or cross_entropy
    match name:
        case "gauss_newton":
            return GaussNewton(loss=loss, class_samples=class_samples)
        case "gauss_newton_difference":
            return GaussNewton(changes="difference", loss=loss)
        case "empirical_fisher":
            return EmpiricalFisher(loss=loss)
        case "first_order":
            return FirstOrder(loss=loss)
        case "hessian":
            return ExactHessian(loss=loss)
        case "hawq_eigenvalue":
            return HawqEigenvalue(loss=loss)
        case "qbert":
            return QBert(spread=qbert_spread, loss=loss)
        case "hawq_trace":
            return HawqTrace(traces=traces, num_probes=probes, loss=loss)
        case "fisher_trace":
            return FisherTrace(loss=loss)
        case "absolute_gradient":
            return AbsoluteGradient(loss=loss)
        case "squared_error":
            return SquaredError()
        case "output_fisher":
            return OutputFisher(loss=loss)
        case "measured_loss":
            return MeasuredMoves(kind="loss", loss=loss)
        case "measured_kl":
            return MeasuredMoves(kind="kl")
        case "measured_pairs_loss":
            return MeasuredMoves(pairs="all", kind="loss", loss=loss)
        case "measured_pairs_kl":
            return MeasuredMoves(pairs="all", kind="kl")
        case "path_attribution":
            return PathAttribution(loss=loss)
        case "composed":
            raise ValueError(
                "Metric 'composed' is made of logit changes: measure them with "
                "measure_superposed and take Composed(superposed=...).main_effects(...)."
            )
        case _:
            raise ValueError(
                f"There is no metric {name!r}.{did_you_mean(name, TITLES)} Choose one of "
                f"{', '.join(TITLES)}."
            )
