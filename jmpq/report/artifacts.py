"""The artifacts of a run folder, read and checked against each other."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmpq.files import file_sha256
from jmpq.sensitivity.table import NATS, Sensitivity, load_sensitivities

Json = Mapping[str, Any]

NEEDED = {
    "layers": ("layers", "weights_sha256"),
    "plan": ("layers", "choices", "budgets", "allocations", "weights_sha256"),
    "evaluation": ("plan_sha256", "float", "measured"),
    "finetuning": ("weights_sha256", "allocation", "curve", "outcomes", "config"),
}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Artifacts:
    """The four artifacts of a run; the JSON ones as they are in their files, but for the
    plan's predictions, to which those of the evaluation are added. Fine-tuning is None where
    there was none.
    """  # noqa: D205

    layers: Json
    sensitivities: Mapping[str, Sensitivity]
    plan: Json
    evaluation: Json
    finetuning: Json | None = None


def read_artifacts(run: Path) -> Artifacts:
    """Read what the steps before `report` left in a run folder.

    Args:
        run: Folder with ``layers.json``, ``sensitivity.npz``, ``plan.json`` and
            ``evaluation.json``; ``finetuning.json`` if it is there.

    Raises:
        FileNotFoundError: If an artifact is missing; names the step that writes it.
        ValueError: If an artifact can't be read, or was made from another one than the
            artifact beside it; names the step to run again.
    """
    layers = _read_json(run, "layers.json", "layers")
    path = _existing(run, "sensitivity.npz", "sensitivity")
    sensitivities = load_sensitivities(path)
    plan = _read_json(run, "plan.json", "solve")
    evaluation = _read_json(run, "evaluation.json", "evaluate")
    finetuning = None
    if (run / "finetuning.json").is_file():
        finetuning = _read_json(run, "finetuning.json", "finetune")
    artifacts = Artifacts(
        layers=layers,
        sensitivities=sensitivities,
        plan=plan,
        evaluation=evaluation,
        finetuning=finetuning,
    )
    _check(run, artifacts)
    return dataclasses.replace(artifacts, plan=with_predictions(plan, evaluation))


def with_predictions(plan: Json, evaluation: Json) -> Json:
    """The plan, every allocation's predictions followed by those of joint predictors."""
    joint = evaluation.get("predictions", {})
    allocations = [
        {**a, "predictions": {**a.get("predictions", {}), **joint.get(a["name"], {})}}
        for a in plan["allocations"]
    ]
    return {**plan, "allocations": allocations}


def relative_metrics(sensitivities: Mapping[str, Sensitivity]) -> frozenset[str]:
    """Metrics whose losses are not in nats per example: only their order can be compared."""
    return frozenset(m for m, s in sensitivities.items() if s.unit != NATS)


def _existing(run: Path, name: str, step: str) -> Path:
    path = run / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `jmpq {step} {run}` first.")
    return path


def _read_json(run: Path, name: str, step: str) -> dict[str, Any]:
    path = _existing(run, name, step)
    again = f"run `jmpq {step} {run}` again."
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}): {again}") from error
    schema = f"jmpq/{path.stem}"
    found = (value.get("schema"), value.get("version")) if isinstance(value, dict) else None
    if found != (schema, 1):
        raise ValueError(
            f"{path} has schema and version {found}, expected {(schema, 1)}: {again}"
        )
    if lacking := [key for key in NEEDED[path.stem] if key not in value]:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: {again}")
    return value


def _check(run: Path, artifacts: Artifacts) -> None:
    layers, plan = artifacts.layers, artifacts.plan
    solve = f"run `jmpq solve {run}` again."
    if layers.get("weights_sha256") != plan.get("weights_sha256"):
        raise ValueError(
            f"{run / 'plan.json'} was made for other weights than {run / 'layers.json'}: "
            f"run `jmpq sensitivity {run}` and `jmpq solve {run}` again."
        )
    if plan.get("sensitivity_sha256") != file_sha256(run / "sensitivity.npz"):
        raise ValueError(
            f"{run / 'plan.json'} was made from another {run / 'sensitivity.npz'}: {solve}"
        )
    known = {layer["name"] for layer in layers["layers"]}
    if unknown := [name for name in plan["layers"] if name not in known]:
        raise ValueError(
            f"{run / 'plan.json'} has layers that {run / 'layers.json'} lacks "
            f"({', '.join(unknown[:3])}): {solve}"
        )
    for metric, sensitivity in artifacts.sensitivities.items():
        known = set(sensitivity.layers)
        if unknown := [name for name in plan["layers"] if name not in known]:
            raise ValueError(
                f"Metric {metric!r} of {run / 'sensitivity.npz'} lacks layers of the plan "
                f"({', '.join(unknown[:3])}): {solve}"
            )
    if artifacts.evaluation.get("plan_sha256") != file_sha256(run / "plan.json"):
        raise ValueError(
            f"{run / 'evaluation.json'} belongs to another plan than {run / 'plan.json'}: "
            f"run `jmpq evaluate {run}` again."
        )
    finetuning = artifacts.finetuning
    if finetuning and finetuning["weights_sha256"] != layers.get("weights_sha256"):
        raise ValueError(
            f"{run / 'finetuning.json'} is of other weights than {run / 'layers.json'}: run "
            f"`jmpq finetune {run}` again, or remove it."
        )
