"""Predictions of every kind, by name: made when an allocation enters the plan, kept there.

============================  ==========================================================
``METRIC``                    the sum of the metric's single-layer losses
``METRIC_full``               with its cross-layer terms, where it has them
``composed_kl``, ``_loss``    composed logits: KL divergence, increase of the loss
``superposed_kl``, ``_loss``  superposed logits
============================  ==========================================================

The logits' predictors come from ``superposed.npz``; without it there are none. JAX is needed
for a loss of the user's own alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

from jmpq.allocation import Allocation
from jmpq.problem import PlannedAllocation
from jmpq.run.folder import RunFolder
from jmpq.run.planning.problems import planned_tables
from jmpq.sensitivity.logits.composed import Composed, ridge_for
from jmpq.sensitivity.logits.increases import READY, Loss, Ready
from jmpq.sensitivity.logits.joint_predictors import JointPredictor, Quadratic
from jmpq.sensitivity.logits.superposed import PredictedLoss
from jmpq.sensitivity.table import Sensitivity

SEARCHED_BY_KL = ("cross_entropy", "kl")  # losses whose search minimises the KL divergence


def all_predictors(
    folder: RunFolder, tables: Mapping[str, Sensitivity] | None = None
) -> dict[str, JointPredictor]:
    """Every predictor of a run, by name.

    Args:
        folder: The run folder.
        tables: Sensitivities by metric; those of the folder by default.

    Raises:
        ValueError: If the logit changes were not measured with the sensitivities.
    """
    predictors: dict[str, JointPredictor] = {}
    for name, table in (tables or folder.sensitivities.tables).items():
        predictors[name] = table
        if table.has_interactions:
            predictors[f"{name}_full"] = Quadratic(sensitivity=table)
    return predictors | logit_predictors(folder)


def logit_predictors(folder: RunFolder) -> dict[str, JointPredictor]:
    """The predictors by logit changes; none where they were not measured.

    Raises:
        ValueError: If the logit changes were not measured with the sensitivities.
    """
    if (superposed := folder.superposed) is None:
        return {}
    composed = Composed(superposed=superposed, ridge=ridge_for(superposed.logits[:1].shape[-1]))
    predictors: dict[str, JointPredictor] = {}
    if superposed.logits[0].ndim and superposed.logits.shape[-1] > 1:  # class probabilities
        predictors = {"composed_kl": composed, "superposed_kl": superposed}
    if (name := folder.sensitivities.loss) != "kl":
        loss = loss_to_predict(name)
        predictors["composed_loss"] = PredictedLoss(logits=composed, loss=loss)
        predictors["superposed_loss"] = PredictedLoss(logits=superposed, loss=loss)
    return predictors


def loss_to_predict(name: str) -> Loss:
    """A loss of a run for predictions: by its name where it is ready-made.

    Raises:
        ValueError: If there is no such loss.
    """
    if name in READY:
        return cast(Ready, name)
    from jmpq.run.loss import find_loss  # loads JAX

    return find_loss(name)


def searched_name(folder: RunFolder) -> str:
    """The prediction that a search on whole allocations minimises, by name.

    The KL divergence, or the increase of the loss where the sensitivities are of a user's: it
    predicts the rank of joint allocations better than the increase of the loss on few examples.
    """
    return "composed_kl" if folder.sensitivities.loss in SEARCHED_BY_KL else "composed_loss"


def predict_all(
    predictors: Mapping[str, JointPredictor], allocations: Sequence[Allocation]
) -> list[dict[str, float]]:
    """Predicted increase of every allocation by every predictor, nats per example."""
    columns = {name: each.predict(allocations) for name, each in predictors.items()}
    return [
        {name: float(values[i]) for name, values in columns.items()}
        for i in range(len(allocations))
    ]


def with_predictions(
    folder: RunFolder,
    allocations: Sequence[PlannedAllocation],
    tables: Mapping[str, Sensitivity] | None = None,
) -> tuple[PlannedAllocation, ...]:
    """Allocations of a plan with the predictions of every predictor of a run.

    Args:
        folder: The run folder.
        allocations: The allocations.
        tables: Sensitivities by metric; as the folder's plan counts them by default.
    """
    predictors = all_predictors(folder, planned_tables(folder) if tables is None else tables)
    rows = predict_all(predictors, [planned.allocation for planned in allocations])
    return tuple(
        dataclasses.replace(planned, predictions=row)
        for planned, row in zip(allocations, rows, strict=True)
    )
