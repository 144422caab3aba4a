"""Predictions of joint allocations that need more than a sensitivity table."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jmpq.cli.run_folder import SUPERPOSED

if TYPE_CHECKING:
    from jmpq.problem import PlannedAllocation
    from jmpq.sensitivity.logits.joint_predictors import JointPredictor
    from jmpq.sensitivity.logits.superposed import Superposed

SAME = ("weights_sha256", "quantizers_sha256", "calibration", "loss")


def joint_predictors(
    run: pathlib.Path, origin: Mapping[str, Any]
) -> tuple["Superposed | None", dict[str, "JointPredictor"]]:
    """What metric `composed` of `jmpq sensitivity` left in a run folder, predictors by name.

    Args:
        run: The run folder.
        origin: Provenance of the sensitivities, which must be that of the logit changes.

    Raises:
        ValueError: If the file cannot be read or belongs to other sensitivities.
    """
    from jmpq.cli.losses import find_loss
    from jmpq.sensitivity.logits.composed import Composed, ridge_for
    from jmpq.sensitivity.logits.superposed import PredictedLoss, Superposed

    path = run / SUPERPOSED
    if not path.is_file():
        return None, {}
    found = Superposed.load(path)
    for key in SAME:
        if found.provenance.get(key) != origin.get(key):
            raise ValueError(
                f"{path} belongs to other sensitivities ({key} differs): run `jmpq sensitivity "
                f"{run}` with metric composed again, or delete it."
            )
    composed = Composed(superposed=found, ridge=ridge_for(found.logits.shape[1]))
    predictors: dict[str, JointPredictor] = {"composed_kl": composed, "superposed_kl": found}
    if (name := origin.get("loss", "cross_entropy")) != "kl":
        loss = find_loss(name)
        predictors["composed_loss"] = PredictedLoss(logits=composed, loss=loss)
        predictors["superposed_loss"] = PredictedLoss(logits=found, loss=loss)
    return found, predictors


def joint_predictions(
    run: pathlib.Path,
    origin: Mapping[str, Any],
    allocations: Sequence["PlannedAllocation"],
) -> dict[str, dict[str, float]]:
    """Predicted increase, nats per example, by allocation and predictor; {} without any."""
    found, predictors = joint_predictors(run, origin)
    if found is None:
        return {}
    values = [a.allocation for a in allocations]
    by_name = {name: predictor.predict(values) for name, predictor in predictors.items()}
    return {
        a.name: {name: float(row[i]) for name, row in by_name.items()}
        for i, a in enumerate(allocations)
    }
