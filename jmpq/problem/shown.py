"""The predictions of a plan that people are shown, each with the unit that it deserves."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jmpq.sensitivity.metrics.by_name import SCORES

DIVERGENCES = ("composed_kl", "superposed_kl")  # of whole allocations, never negative


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A predictor and the unit of what it predicts.

    >>> Shown(name="composed_kl", nats=True).text(0.0123)
    'KL divergence 0.0123 nats per example by composed logits'
    >>> Shown(name="squared_error", nats=False).heading
    'score by squared_error (no unit)'

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
        quantity = self.quantity.removesuffix(" divergence")
        return f"predicted {quantity} by {self.source} (nats)"

    def value(self, value: float) -> str:
        """A value with its unit."""
        unit = "nats per example" if self.nats else "(no unit)"
        return f"{value:.3g} {unit}".replace("-", "\u2212")

    def text(self, value: float) -> str:
        """A value in a sentence."""
        return f"{self.quantity} {self.value(value)} by {self.source}"


def shown_as(name: str, rows: Sequence[Mapping[str, float]]) -> Shown:
    """How one prediction of several allocations is shown.

    A sum that comes out negative is extrapolated, and one of another unit compares only with
    itself: both are scores.

    Args:
        name: Predictor.
        rows: Predictions of every allocation that is shown.
    """
    negative = any(row.get(name, math.nan) < 0 for row in rows)
    return Shown(name=name, nats=name not in SCORES and not negative)


def shown_prediction(rows: Sequence[Mapping[str, float]]) -> Shown | None:
    """The one prediction that is shown where there is room for one.

    The divergence by composed logits where every allocation has it, for it knows the whole
    allocation; else the sum of the leading metric. None without predictions.

    Args:
        rows: Predictions of every allocation that is shown.
    """
    for name in DIVERGENCES:
        if rows and all(name in row for row in rows):
            return shown_as(name, rows)
    lead = next((name for row in rows for name in row), None)
    return None if lead is None else shown_as(lead, rows)
