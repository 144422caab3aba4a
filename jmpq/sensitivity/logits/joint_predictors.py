"""Joint predictors: the loss increase of whole allocations, behind one interface. No JAX."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.sensitivity.table import Sensitivity


@runtime_checkable
class JointPredictor(Protocol):
    """Predicts the loss increase of a batch of allocations, nats per example.

    Experiments and report call all predictors alike by `predict`. Searches, which ask many
    thousand times a second, call `predict_columns` with tables of one allocation a row: a
    column of `choices` for every layer of `layers`.

    - a `Sensitivity` itself: the sum of its single-layer losses;
    - `Quadratic`: its whole second-order form, cross-layer terms included;
    - `superposed.Superposed` and `composed.Composed` themselves (KL), and as
      `superposed.PredictedLoss`.
    """

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def choices(self) -> tuple[Choice, ...]: ...

    def predict(
        self, allocations: Sequence[Allocation], /
    ) -> Float[np.ndarray, " allocations"]: ...

    def predict_columns(
        self, table: Int[np.ndarray, "allocations layers"], /
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

    @property
    def layers(self) -> tuple[str, ...]:
        return self.sensitivity.layers

    @property
    def choices(self) -> tuple[Choice, ...]:
        return self.sensitivity.choices

    def predict(self, allocations: Sequence[Allocation]) -> Float[np.ndarray, " allocations"]:
        """Predicted increase, nats per example; unquantized layers add nothing."""
        return self.sensitivity.predict(allocations, interactions=True)

    def predict_columns(
        self, table: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, " allocations"]:
        """`predict` for searches: of rows of columns of `choices`."""
        return self.sensitivity.predict_columns(table, interactions=True)
