"""Joint predictors: the loss increase of whole allocations, behind one interface. No JAX."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from jmpq.sensitivity.table import Sensitivity


@runtime_checkable
class JointPredictor(Protocol):
    """Predicts the loss increase of a batch of allocations, nats per example.

    An allocation is a column of the choices for every layer. Search, experiments and report
    call all predictors alike:

    - a `Sensitivity` itself: the sum of its single-layer losses;
    - `Quadratic`: its whole second-order form, cross-layer terms included;
    - `superposed.Superposed` and `composed.Composed` themselves (KL), and as
      `superposed.PredictedLoss`.
    """

    def predict(
        self, choice: Int[np.ndarray, "allocations layers"], /
    ) -> Float[np.ndarray, " allocations"]: ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Quadratic:
    """firstᵀe + ½ eᵀSe with all cross-layer terms of a sensitivity.

    Raises:
        ValueError: If the metric has none.
    """

    sensitivity: Sensitivity

    def __post_init__(self) -> None:
        if not self.sensitivity.has_interactions:
            raise ValueError(
                f"Metric {self.sensitivity.metric!r} has no cross-layer terms: use the "
                "sensitivity itself, the sum of its losses."
            )

    def predict(
        self, choice: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, " allocations"]:
        """Predicted increase, nats per example."""
        return self.sensitivity.predict(choice, interactions=True)
