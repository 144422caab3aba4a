"""The one prediction that people are shown of every allocation of a plan, with its unit."""

import dataclasses
import math
from collections.abc import Iterable

from jmpq.problem.plan import PlannedAllocation
from jmpq.sensitivity.metrics.by_name import SCORES

DIVERGENCES = ("composed_kl", "superposed_kl")  # of whole allocations, never negative


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A predictor and the unit of what it predicts.

    >>> Shown(name="composed_kl", nats=True).text(0.0123)
    'KL divergence 0.0123 nats per example by composed logits'
    >>> Shown(name="squared_error", nats=False).text(3.21)
    'score 3.21 (no unit) by squared_error'

    Attributes:
        name: Predictor, a key of the predictions of an allocation.
        nats: Whether its values are nats per example; else they are scores, of which only the
            order tells something.
    """

    name: str
    nats: bool

    @property
    def source(self) -> str:
        """Name of the predictor in a sentence."""
        return self.name.replace("_kl", " logits") if self.name in DIVERGENCES else self.name

    @property
    def quantity(self) -> str:
        """Name of what is predicted."""
        if not self.nats:
            return "score"
        return "KL divergence" if self.name in DIVERGENCES else "loss increase"

    @property
    def heading(self) -> str:
        """Head of a column, with the unit."""
        if not self.nats:
            return f"score by {self.source} (no unit)"
        return f"predicted {self.quantity.removesuffix(' divergence')} by {self.source} (nats)"

    def text(self, value: float) -> str:
        """A value in a sentence."""
        unit = "nats per example" if self.nats else "(no unit)"
        return f"{self.quantity} {value:.3g} {unit} by {self.source}".replace("-", "−")


def shown_prediction(allocations: Iterable[PlannedAllocation]) -> Shown | None:
    """The prediction to show beside each other for solutions and baselines.

    The divergence by composed logits where every allocation has it, for it knows the whole
    allocation; else the sum of the leading metric. A sum that comes out negative is
    extrapolated, and one of another unit compares only with itself: both are scores. None
    without predictions.
    """
    shown = [a for a in allocations if a.role in ("solution", "baseline")]
    for name in DIVERGENCES:
        if shown and all(name in a.predictions for a in shown):
            return Shown(name=name, nats=True)
    lead = next((name for a in shown for name in a.predictions), None)
    if lead is None:
        return None
    values = [a.predictions.get(lead, math.nan) for a in shown]
    return Shown(name=lead, nats=lead not in SCORES and not any(v < 0 for v in values))
