"""The artifacts of a run in the shape of their files, as figures and tables take them.

Figures draw from plain JSON values, so that the committed results of an experiment are drawn by
the same code as a run folder.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jmpq.problem.plan import Plan, plan_to_json
from jmpq.run.artifacts import Exports, Finetuning, LayerTable
from jmpq.run.folder import RunFolder
from jmpq.run.planning.recommendation import Recommendation
from jmpq.sensitivity.table import NATS, Sensitivity

Json = Mapping[str, Any]

FLOAT, FINETUNED = "float", "finetuned"  # names of exports that no plan has
NOT_EVALUATED: Json = MappingProxyType({"splits": {}, "float": {}, "measured": {}})


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Contents:
    """What a report is drawn from.

    Attributes:
        layers: The layer table.
        sensitivities: Sensitivities by metric.
        plan: The plan.
        evaluation: Outcomes of the plan; `NOT_EVALUATED` before evaluation.
        recommendation: Allocation to use; None if none meets the budgets.
        finetuning: The fine-tuning; None where there was none.
        latency: Source of the table of latencies; None if it was not measured.
        latency_check: Measured latency of the plan's allocations; None without any.
        exports: The files for other programs; None where there are none.
    """

    layers: LayerTable
    sensitivities: Mapping[str, Sensitivity]
    plan: Json
    evaluation: Json
    recommendation: Recommendation | None = None
    finetuning: Json | None = None
    latency: Json | None = None
    latency_check: Json | None = None
    exports: Json | None = None

    @property
    def evaluated(self) -> bool:
        """Whether anything was measured."""
        return self.evaluation is not NOT_EVALUATED


def read_contents(folder: RunFolder) -> Contents:
    """Read the artifacts of a run folder and of its plan; there need not be an evaluation.

    Raises:
        FileNotFoundError: If an artifact is missing; it names the step that writes it.
        ValueError: If an artifact cannot be used, or was made from another one than the
            artifact beside it; it names the step to run again.
    """
    finetuning, latency, check = folder.finetuning, folder.latency, folder.latency_check
    exports = folder.exports
    return Contents(
        layers=folder.layers,
        sensitivities=folder.sensitivities.tables,
        plan=plan_to_json(folder.plan),
        evaluation=folder.evaluation.to_json() if folder.is_evaluated else NOT_EVALUATED,
        recommendation=folder.recommendation,
        finetuning=None if finetuning is None else finetuning.to_json(),
        latency=None if latency is None else latency.to_json(),
        latency_check=None if check is None else check.to_json(),
        exports=None if exports is None else _exports(exports, folder.plan, finetuning),
    )


def _exports(exports: Exports, plan: Plan, finetuning: Finetuning | None) -> Json:
    """The record of exports, each with whether its name has meant another allocation since."""
    now = {allocation.name: allocation.allocation for allocation in plan.allocations}
    if finetuning is not None:
        now[FINETUNED] = finetuning.allocation
    record = exports.to_json()
    for key, file in exports.files.items():
        earlier = file.name != FLOAT and file.allocation != now.get(file.name)
        record["files"][key]["earlier_plan"] = earlier
    return record


def relative_metrics(sensitivities: Mapping[str, Sensitivity]) -> frozenset[str]:
    """Metrics whose losses are not in nats per example: only their order can be compared."""
    return frozenset(m for m, s in sensitivities.items() if s.unit != NATS)
