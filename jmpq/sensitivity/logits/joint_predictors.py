"""Joint predictors: the loss increase of whole allocations, behind one interface. No JAX."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int

from jmpq.sensitivity.logits.saturation import saturate, unsaturate
from jmpq.sensitivity.table import Sensitivity


@runtime_checkable
class JointPredictor(Protocol):
    """Predicts the loss increase of a batch of allocations, nats per example.

    An allocation is a column of the choices for every layer. Search, experiments and report
    call all predictors alike:

    - a `Sensitivity` itself: the sum of its single-layer losses;
    - `Quadratic`: its whole second-order form, cross-layer terms included;
    - `Saturated`: its losses with damage that saturates;
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
        choice: Int[np.ndarray, "_ _"],
        measured: Float[np.ndarray, " _"],
    ) -> "Saturated":
        """The c of least squares from a few measured increases, nats per example.

        Sought between the greatest loss in the table and 10⁶ times it, where nothing
        saturates any more.

        Raises:
            ValueError: If there are fewer than two allocations, a measurement is not finite,
                or no loss in the table is positive.
        """
        measured = np.asarray(measured, np.float64)
        if len(measured) < 2 or len(choice) != len(measured) or not np.isfinite(measured).all():
            raise ValueError(
                f"{len(choice)} allocations with {int(np.isfinite(measured).sum())} finite "
                "measurements: give at least two, each with its measured increase."
            )
        if not (least := sensitivity.losses.max()) > 0:
            raise ValueError(
                f"Metric {sensitivity.metric!r} predicts no increase at all: there is no "
                "damage that could saturate."
            )

        def error(log_ratio: float) -> float:
            found = cls(sensitivity=sensitivity, c=float(least * np.exp(log_ratio)))
            return float(np.square(found.predict(choice) - measured).sum())

        # A grid first: the error may have several minima.
        grid = np.linspace(1e-6, np.log(1e6), 200)
        best = int(np.argmin([error(x) for x in grid]))
        bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        found = scipy.optimize.minimize_scalar(
            error, bounds=bounds, method="bounded", options={"xatol": 1e-10}
        )
        return cls(sensitivity=sensitivity, c=float(least * np.exp(found.x)))

    def predict(
        self, choice: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, " allocations"]:
        """Predicted increase, nats per example."""
        shares = saturate(self.sensitivity.losses, self.c)
        layers = np.arange(len(self.sensitivity.layers))
        return unsaturate(shares[layers, np.asarray(choice)].sum(axis=-1), self.c)
