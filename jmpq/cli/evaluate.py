"""`jmpq evaluate`: what the allocations of a plan really cost."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jmpq.cli.run_folder import EVALUATION, PLAN, versions
from jmpq.cli.scale import Scale

if TYPE_CHECKING:
    from jmpq.deploy.measure import Evaluator
    from jmpq.problem import PlannedAllocation

Role = Literal["solution", "baseline", "sweep", "random", "single"]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Write RUN/evaluation.json: measured loss (that of the sensitivities), KL to the float
    network and top-1 of every allocation of the plan, on the calibration and on the evaluation
    examples; beside them the increase that superposed.npz predicts, where it is there.

    Interrupted, it goes on from the last finished allocation when called again.
    """  # noqa: D205

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run, with layers.json, sensitivity.npz and plan.json."""
    roles: tuple[Role, ...] = ("solution", "baseline", "sweep")
    """Allocations measured on the evaluation examples."""
    calibration_roles: tuple[Role, ...] = ("solution", "baseline", "sweep", "random", "single")
    """Allocations measured on the calibration examples, where prediction is compared."""
    examples: int | None = None
    """Evaluation examples, the first so many; all by default."""
    batch_size: int = 256
    """Examples per batch; one compilation serves all batches and allocations."""
    correct: Literal["none", "bias", "batch_norm"] = "none"
    """Correct every layer's output of every allocation on calibration examples: channel by
    channel the mean (bias), or mean and spread, as estimating the statistics of batch
    normalisation again does (batch_norm)."""
    correct_examples: int = 256
    """Calibration examples for it, the first so many; they go through the network at once."""
    devices: int | None = None
    """Devices over which the examples of a batch are spread. A CPU appears as that many: one
    for each core is fastest. One by default."""

    def __call__(self) -> None:
        mesh = Scale(devices=self.devices).mesh()

        import jax
        import numpy as np

        from jmpq.cli.joint import joint_predictions
        from jmpq.cli.planned import read_planned
        from jmpq.files import check_writable, file_sha256, write_json

        if self.examples is not None and self.examples < 1:
            raise ValueError(f"examples={self.examples}: give at least 1, or none for all.")
        for option in ("batch_size", "correct_examples"):
            if (value := getattr(self, option)) < 1:
                raise ValueError(f"{option}={value}: give at least 1.")
        planned = read_planned(self.run)
        plan, calibration, evaluation = planned.plan, planned.calibration, planned.evaluation
        check_writable(self.run / EVALUATION)
        predictions = joint_predictions(self.run, planned.origin, plan.allocations)
        if self.examples is not None:
            evaluation = evaluation.take(np.arange(min(self.examples, len(evaluation))))
        count = min(self.correct_examples, len(calibration))
        corrected = calibration.take(np.arange(count)) if self.correct != "none" else None
        splits = {"calibration": calibration, "evaluation": evaluation}
        plan_sha256 = file_sha256(self.run / PLAN)
        measured: dict[str, dict[str, Any]] = {a.name: {} for a in plan.allocations}
        float_outcome, timing = {}, {}
        for name, split in splits.items():
            roles = self.roles if name == "evaluation" else self.calibration_roles
            wanted = [a for a in plan.allocations if a.role in roles]
            evaluator = planned.evaluator(
                split, self.batch_size, correct=self.correct, corrected=corrected, mesh=mesh
            )
            partial = self.run / f".{EVALUATION}.{name}.partial"
            identity = (
                f"{plan_sha256} {split.sha256} {planned.quantizers.sha256} {self.correct}"
            )
            if corrected is not None:
                identity += f" {corrected.sha256}"
            found, timing[name] = self._measure(evaluator, wanted, name, partial, identity)
            for allocation, outcome in zip(wanted, found, strict=True):
                measured[allocation.name][name] = outcome
            float_outcome[name] = evaluator.float_outcome().to_json()
        write_json(
            self.run / EVALUATION,
            {
                "schema": "jmpq/evaluation",
                "version": 1,
                "plan_sha256": plan_sha256,
                "versions": versions("jax", "jaxlib", "flax"),
                "loss": "cross_entropy" if planned.loss == "kl" else planned.loss,
                "correct": self.correct,
                "correct_examples": 0 if corrected is None else len(corrected),
                "device": jax.devices()[0].device_kind,
                "splits": {name: split.record() for name, split in splits.items()},
                "float": float_outcome,
                "timing": timing,
                "predictions": predictions,
                "measured": {name: found for name, found in measured.items() if found},
            },
        )
        for name in splits:
            (self.run / f".{EVALUATION}.{name}.partial").unlink(missing_ok=True)
        top1 = 100 * float_outcome["evaluation"]["top1"]
        print(f"Float top-1 {top1:.2f} % on {len(evaluation)} evaluation examples.")
        print(f"Wrote {self.run / EVALUATION}")

    def _measure(
        self,
        evaluator: "Evaluator",
        wanted: Sequence["PlannedAllocation"],
        split: str,
        partial: pathlib.Path,
        identity: str,
    ) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
        """Outcomes of allocations, and seconds per allocation without compilation.

        Equal allocations are measured once, those of an interrupted run not again.
        """
        from jmpq.cli.progress import bar
        from jmpq.deploy.measure import Outcome
        from jmpq.files import append_line, finished_lines

        known = dict(finished_lines(partial, identity))  # by label
        every = dict.fromkeys(a.allocation for a in wanted)
        todo = [allocation for allocation in every if allocation.label not in known]
        ends: list[float] = []
        with bar(f"Measuring on {split:11s}", "allocations") as progress:
            progress(0, len(todo))

            def keep(index: int, outcome: Outcome) -> None:
                known[todo[index].label] = outcome.to_json()
                append_line(partial, [todo[index].label, known[todo[index].label]])
                progress(index + 1, len(todo))
                ends.append(time.perf_counter())

            evaluator(todo, done=keep)
        chunk = evaluator.candidates_per_call  # the first one compiles
        seconds = None
        if len(ends) > chunk:
            seconds = (ends[-1] - ends[chunk - 1]) / (len(ends) - chunk)
        return [known[a.allocation.label] for a in wanted], {"seconds_per_allocation": seconds}
