"""The artifacts of a run in the shape of their files, as figures and tables take them.

Figures draw from plain JSON values, so that the committed results of an experiment are drawn by
the same code as a run folder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jmpq.problem.plan import plan_to_json
from jmpq.run.artifacts import LayerTable
from jmpq.run.folder import RunFolder
from jmpq.sensitivity.table import NATS, Sensitivity

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Contents:
    """What a report is drawn from; `finetuning` is None where there was none."""

    layers: LayerTable
    sensitivities: Mapping[str, Sensitivity]
    plan: Json
    evaluation: Json
    finetuning: Json | None = None


def read_contents(folder: RunFolder) -> Contents:
    """Read the artifacts of a run folder and of its plan.

    Raises:
        FileNotFoundError: If an artifact is missing; it names the step that writes it.
        ValueError: If an artifact cannot be used, or was made from another one than the
            artifact beside it; it names the step to run again.
    """
    evaluation, finetuning = folder.evaluation, folder.finetuning
    return Contents(
        layers=folder.layers,
        sensitivities=folder.sensitivities.tables,
        plan=plan_to_json(folder.plan),
        evaluation=evaluation.to_json(),
        finetuning=None if finetuning is None else finetuning.to_json(),
    )


def relative_metrics(sensitivities: Mapping[str, Sensitivity]) -> frozenset[str]:
    """Metrics whose losses are not in nats per example: only their order can be compared."""
    return frozenset(m for m, s in sensitivities.items() if s.unit != NATS)
