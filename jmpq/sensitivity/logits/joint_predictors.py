"""Joint predictors: the loss increase of whole allocations, behind one interface. No JAX."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import Allocation, column_table
from jmpq.formats import Choice
from jmpq.sensitivity.logits.saturation import saturate, unsaturate
from jmpq.sensitivity.table import Sensitivity


@runtime_checkable
class JointPredictor(Protocol):
    """Predicts the loss increase of a batch of allocations, nats per example.

    Experiments and report call all predictors alike by `predict`. Searches, which ask many
    thousand times a second, call `predict_columns` with tables of one allocation a row: a
    column of `choices` for every layer of `layers`.

    - a `Sensitivity` itself: the sum of its single-layer losses;
    - `Quadratic`: its whole second-order form, cross-layer terms included;
    - `Saturated`: its losses with damage that saturates;
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


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Saturated:
    """c (1 − Π_i (1 − Ω_i / c)): single-layer losses Ω whose joint damage ends at c.

    Near zero the sum of the losses; the order of allocations is that of the sum of
    −log(1 − Ω_i / c), so a knapsack finds the best one.

    Attributes:
        sensitivity: Gives Ω: path attribution as reported, or any other metric in nats.
        c: Greatest damage, nats per example; `fit` finds it from measured allocations.

    Raises:
        ValueError: If `c` is not positive, or a loss reaches it.

    References:
        Form reported, not read in the source (arXiv 2607.12266); the fit is ours.
    """

    sensitivity: Sensitivity
    c: float

    def __post_init__(self) -> None:
        saturate(self.sensitivity.losses, self.c)

    @classmethod
    def fit(
        cls,
        sensitivity: Sensitivity,
        allocations: Sequence[Allocation],
        measured: Float[np.ndarray, " _"],
    ) -> "Saturated":
        """The c of least squares from a few measured increases, nats per example.

        Sought between the greatest loss in the table and 10⁶ times it, where nothing
        saturates any more.

        Raises:
            ValueError: If there are fewer than two allocations, a measurement is not finite,
                or no loss in the table is positive.
        """
        import scipy.optimize  # slow to import, and needed here alone

        measured = np.asarray(measured, np.float64)
        count, finite = len(allocations), int(np.isfinite(measured).sum())
        if not 2 <= count == finite == len(measured):
            raise ValueError(
                f"{count} allocations with {finite} finite measurements: give at least two, "
                "each with its measured increase."
            )
        if not (least := sensitivity.losses.max()) > 0:
            raise ValueError(
                f"Metric {sensitivity.metric!r} predicts no increase at all: there is no "
                "damage that could saturate."
            )

        whole = sensitivity.with_unquantized
        table = column_table(whole.layers, whole.choices, allocations)

        def error(log_ratio: float) -> float:
            trial = cls(sensitivity=whole, c=float(least * np.exp(log_ratio)))
            return float(np.square(trial.predict_columns(table) - measured).sum())

        # A grid first: the error may have several minima.
        grid = np.linspace(1e-6, np.log(1e6), 200)
        best = int(np.argmin([error(x) for x in grid]))
        bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        found = scipy.optimize.minimize_scalar(
            error, bounds=bounds, method="bounded", options={"xatol": 1e-10}
        )
        return cls(sensitivity=sensitivity, c=float(least * np.exp(found.x)))

    @property
    def layers(self) -> tuple[str, ...]:
        return self.sensitivity.layers

    @property
    def choices(self) -> tuple[Choice, ...]:
        return self.sensitivity.choices

    def predict(self, allocations: Sequence[Allocation]) -> Float[np.ndarray, " allocations"]:
        """Predicted increase, nats per example; unquantized layers add nothing."""
        whole = dataclasses.replace(self, sensitivity=self.sensitivity.with_unquantized)
        return whole.predict_columns(column_table(whole.layers, whole.choices, allocations))

    def predict_columns(
        self, table: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, " allocations"]:
        """`predict` for searches: of rows of columns of `choices`."""
        shares = saturate(self.sensitivity.losses, self.c)
        rows = np.arange(len(self.layers))
        return unsaturate(shares[rows, np.asarray(table)].sum(axis=-1), self.c)
