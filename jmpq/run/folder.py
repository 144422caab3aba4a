"""The run folder: which artifact lies where, and which must have been made from which.

``layers.json`` knows weights and code. ``sensitivity.npz`` was made from those, ``plan.json``
from that sensitivity file, ``evaluation.json`` from that plan. An artifact is read together
with all that it was made from; where one does not belong, or was changed after it was written,
the error names the step to run again. A step reads what it needs at its head, so that nothing
is computed from a mixture.

A plan with a name, and what is made from it, lie in ``plans/NAME`` under the same file names.
What was measured or computed lies in ``store``, in journals named by all that it depends on:
artifacts are views of it, and nothing in it is ever written over.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from jmpq.artifact import PLANS, ArtifactKind
from jmpq.files import check_writable, file_sha256, json_sha256
from jmpq.latency import record as records
from jmpq.latency.record import LatencyCheck, LatencyRecord
from jmpq.latency.table import LatencyTable
from jmpq.problem import COSTS, Cost, Overhead
from jmpq.problem import plan as plans
from jmpq.problem.plan import Plan, PlannedAllocation, read_plan, write_plan
from jmpq.problem.plan_check import check_plan
from jmpq.run import artifacts
from jmpq.run.artifacts import Evaluation, Exports, Finetuning, LayerTable, Sensitivities
from jmpq.run.planning.recommendation import Recommendation, recommend
from jmpq.sensitivity import table as tables
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.text import plural, printed, some

WEIGHTS, TOKENIZER = "weights.safetensors", "tokenizer.json"
LAYERS, SENSITIVITY, SUPERPOSED = "layers.json", "sensitivity.npz", "superposed.npz"
LATENCY_TABLE, LATENCY, LATENCY_CHECK = "latency.csv", "latency.json", "latency_check.json"
PLAN, FRONT, EVALUATION = "plan.json", "front.csv", "evaluation.json"
FINETUNED, FINETUNING = "finetuned.safetensors", "finetuning.json"
EXPORTED, EXPORT = "exported", "export.json"
INSTANCES = "instances"
OF_PLAN = (
    PLAN,
    FRONT,
    EVALUATION,
    LATENCY_CHECK,
    FINETUNED,
    FINETUNING,
    EXPORTED,
    EXPORT,
    INSTANCES,
)  # one of each for every plan
STORE = "store"
# What logit changes and sensitivities have in common if they were measured together.
MEASURED_TOGETHER = (
    *("weights_sha256", "code_sha256", "data", "preprocessing"),
    *("quantizers_sha256", "calibration", "loss"),
)
T = TypeVar("T")


class RunFolder:
    """A run folder and its artifacts, each read once, with all that it was made from.

    Args:
        path: The folder; it need not be there.
        plan: Name of the plan; None for the one without a name, ``plan.json``.

    Raises:
        FileNotFoundError: From a property, if an artifact is missing; it names the step that
            writes it.
        ValueError: From a property, if an artifact cannot be used, or was made from another
            one than lies there; it names the step to run again. At once, if the plan's name
            cannot be the name of a folder.
    """

    def __init__(self, path: str | os.PathLike[str], *, plan: str | None = None) -> None:
        self.path = pathlib.Path(path)
        if plan is not None and not re.fullmatch(r"\w[\w.-]*", plan):
            raise ValueError(
                f"{plan!r} cannot name a plan: expected letters, digits, '_', '-' and '.', as "
                "in 'tight'."
            )
        self.plan_folder = self.path if plan is None else self.path / PLANS / plan
        self._sha256: dict[str, str] = {}  # of the files that were read

    def __repr__(self) -> str:
        every = (LAYERS, SENSITIVITY, SUPERPOSED, *OF_PLAN)
        there = [name for name in every if self.file(name).exists()]
        plans = sorted(path.parent.name for path in self.path.glob(f"{PLANS}/*/{PLAN}"))
        kept = [path.stat().st_size for path in self.path.glob(f"{STORE}/*.journal")]
        return printed(
            f"RunFolder {self.path}"
            + ("" if self.plan_folder == self.path else f", plan {self.plan_folder.name}"),
            f"has {', '.join(there) or 'no artifact yet: `jmpq layers` makes the first'}",
            f"plans with a name: {some(plans)}" if plans else "",
            f"store: {plural(len(kept), 'journal')}, {sum(kept) / 1e6:.3g} MB",
        )

    def file(self, name: str) -> pathlib.Path:
        """Path of an artifact."""
        return (self.plan_folder if name in OF_PLAN else self.path) / name

    def store(self, kind: str, of: Any) -> pathlib.Path:
        """File of the journal of one kind of results, by all that they depend on."""
        return self.path / STORE / f"{kind}-{json_sha256(of)[:12]}.journal"

    @functools.cached_property
    def layers(self) -> LayerTable:
        """The layer table."""
        return self._read(LAYERS, LayerTable.read)

    @functools.cached_property
    def sensitivities(self) -> Sensitivities:
        """Sensitivities of the layers."""
        layers = self.layers
        made = self._read(SENSITIVITY, Sensitivities.read)
        for key, value in layers.origin.items():
            if made.provenance.get(key) != value:
                what = key.removesuffix("_sha256")
                raise self._stale(SENSITIVITY, LAYERS, what, tables.KIND)
        return made

    @functools.cached_property
    def latency_table(self) -> LatencyTable | None:
        """Seconds of every layer under every choice, if there is a table: `jmpq latency`
        writes one, and so may any other tool.
        """  # noqa: D205
        if not self.file(LATENCY_TABLE).is_file():
            return None
        made = self._read(LATENCY_TABLE, LatencyTable.read)
        made.check_layers(self.layers.names)
        return made

    @functools.cached_property
    def latency(self) -> LatencyRecord | None:
        """Where the table of latencies comes from, if `jmpq latency` wrote it."""
        if not self.file(LATENCY).is_file():
            return None
        table = self.file(LATENCY_TABLE)
        made = self._read(LATENCY, LatencyRecord.read)
        if not table.is_file() or made.table_sha256 != file_sha256(table):
            return None  # the table is another tool's
        if made.weights_sha256 != self.layers.weights_sha256:
            raise self._stale(LATENCY, LAYERS, "weights", records.LATENCY)
        return made

    @property
    def latency_sha256(self) -> str | None:
        """Hash of the table of latencies, if there is one."""
        return None if self.latency_table is None else self.sha256(LATENCY_TABLE)

    @property
    def costs(self) -> Mapping[str, Cost]:
        """The costs of an allocation; latency among them where there is a table of it."""
        table = self.latency_table
        return COSTS if table is None else {**COSTS, "latency_s": table.cost}

    def costs_of(self, plan: Plan) -> Mapping[str, Cost]:
        """The costs that a plan counts."""
        return COSTS if plan.latency_sha256 is None else self.costs

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan that was made from the sensitivities."""
        _ = self.layers, self.sensitivities  # what it is checked against, and their errors
        return self._read(PLAN, lambda path: read_plan(path, self._check_plan))

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """What was measured of the plan."""
        plan = self.plan
        made = self._read(EVALUATION, Evaluation.read)
        if made.plan_sha256 != self.sha256(PLAN):
            raise self._stale(EVALUATION, PLAN, "contents", artifacts.EVALUATION)
        return dataclasses.replace(made, recommendation=recommend(plan, made))

    @property
    def is_evaluated(self) -> bool:
        """Whether there is an evaluation."""
        return self.file(EVALUATION).is_file()

    @functools.cached_property
    def recommendation(self) -> Recommendation | None:
        """The allocation to use, by measurement if the plan was evaluated; None without one."""
        if self.is_evaluated:
            return self.evaluation.recommendation
        return recommend(self.plan)

    @functools.cached_property
    def latency_check(self) -> LatencyCheck | None:
        """Measured latency of the plan's allocations, if it was measured."""
        if not self.file(LATENCY_CHECK).is_file():
            return None
        _ = self.plan
        made = self._read(LATENCY_CHECK, LatencyCheck.read)
        if made.plan_sha256 != self.sha256(PLAN):
            raise self._stale(LATENCY_CHECK, PLAN, "contents", records.CHECK)
        return made

    @functools.cached_property
    def finetuning(self) -> Finetuning | None:
        """The fine-tuning of the network, if there was one."""
        if not self.file(FINETUNING).is_file():
            return None
        made = self._read(FINETUNING, Finetuning.read)
        for key in ("weights_sha256", "code_sha256"):
            if getattr(made, key) != self.layers.origin[key]:
                what = key.removesuffix("_sha256")
                raise self._stale(FINETUNING, LAYERS, what, artifacts.FINETUNING)
        weights = self.file(FINETUNED)
        if weights.is_file() and file_sha256(weights) != made.finetuned_sha256:
            raise self._stale(FINETUNING, FINETUNED, "contents", artifacts.FINETUNING)
        return made

    @functools.cached_property
    def exports(self) -> Exports | None:
        """The files that were written for other programs, if there are any."""
        if not self.file(EXPORT).is_file():
            return None
        made = self._read(EXPORT, Exports.read)
        if made.weights_sha256 != self.layers.weights_sha256:
            raise self._stale(EXPORT, LAYERS, "weights", artifacts.EXPORT)
        return made

    @functools.cached_property
    def superposed(self) -> Superposed | None:
        """The logit changes that metric ``composed`` left, if it was measured."""
        if not (path := self.path / SUPERPOSED).is_file():
            return None
        made, beside = Superposed.load(path), self.sensitivities
        for key in MEASURED_TOGETHER:
            if made.provenance.get(key) != beside.provenance.get(key):
                raise ValueError(
                    f"{path} was not measured with {self.path / SENSITIVITY} ({key} differs): "
                    f"run `jmpq sensitivity {self.path}` with metric composed again, or delete "
                    "the file."
                )
        return made

    def sha256(self, name: str) -> str:
        """Hash of an artifact's file, as it was when it was read."""
        return self._sha256.get(name) or file_sha256(self.file(name))

    def check_writable(self, name: str) -> None:
        """Raise now what writing an artifact would raise after hours of work."""
        check_writable(self.file(name))

    def journal(self, work: str) -> pathlib.Path:
        """File of the journal of one kind of work."""
        return self.path / f".{work}.journal"

    def planned(self, name: str | None, *, with_budgets: bool = False) -> PlannedAllocation:
        """An allocation of the plan by its name, or its first solution.

        Args:
            name: Name; None for the first solution.
            with_budgets: Whether that solution has to have budgets.

        Raises:
            ValueError: If there is none of that name, or no solution.
        """
        if name is not None:
            return self.plan.named(name)
        for allocation in self.plan.allocations:
            if allocation.role == "solution" and (allocation.budgets or not with_budgets):
                return allocation
        raise ValueError(
            f"{self.file(PLAN)} has no solution to start from: "
            f"{plans.KIND.command(self.file(PLAN))}, or name one with --allocation."
        )

    def add_to_plan(self, new: PlannedAllocation) -> None:
        """Write the plan with one more allocation, in the place of one of the same name.

        Raises:
            ValueError: If the file is not the one that was read.
        """
        kept = [a for a in self.plan.allocations if a.name != new.name]
        plan = dataclasses.replace(self.plan, allocations=(*kept, new))
        if file_sha256(self.file(PLAN)) != self.sha256(PLAN):
            raise ValueError(
                f"{self.file(PLAN)} was changed while this step worked, so that {new.name} "
                "was not added: run the step again; what it measured is kept."
            )
        write_plan(self.file(PLAN), plan)

    def _read(self, name: str, read: Callable[[pathlib.Path], T]) -> T:
        """Read an artifact, and remember the hash of its file.

        Raises:
            ValueError: If another process wrote it meanwhile.
        """
        path = self.file(name)
        before = file_sha256(path) if path.is_file() else ""
        made = read(path)
        if file_sha256(path) != before:
            raise ValueError(
                f"{path} was written by another process while it was read: run this step again."
            )
        self._sha256[name] = before
        return made

    def _check_plan(self, plan: Plan) -> None:
        """Raise `ValueError` where a plan does not belong to the artifacts beside it."""
        layers, sensitivities = self.layers, self.sensitivities
        if plan.weights_sha256 != layers.weights_sha256:
            raise self._stale(PLAN, LAYERS, "weights", plans.KIND)
        if plan.sensitivity_sha256 != self.sha256(SENSITIVITY):
            raise self._stale(PLAN, SENSITIVITY, "contents", plans.KIND)
        if plan.latency_sha256 is not None and self.latency_table is None:
            raise FileNotFoundError(
                f"{self.file(PLAN)} counts latency by {self.file(LATENCY_TABLE)}, which is not "
                f"there: run `jmpq latency {self.path}`, or solve again."
            )
        if plan.latency_sha256 not in (None, self.latency_sha256):
            raise self._stale(PLAN, LATENCY_TABLE, "contents", plans.KIND)
        self._check_layers(plan, layers.names, LAYERS)
        for table in sensitivities.tables.values():
            self._check_layers(plan, table.layers, SENSITIVITY)
        try:
            check_plan(
                plan,
                layers.layers,
                Overhead.of(layers.layers, sensitivities.kernels),
                {
                    name: [dataclasses.replace(table, use_first=x) for x in (False, True)]
                    for name, table in sensitivities.tables.items()
                },
                unquantized_parameters=layers.other_parameters,
                costs=self.costs_of(plan),
            )
        except ValueError as error:
            raise plans.KIND.edited(self.file(PLAN), error) from error

    def _stale(self, name: str, source: str, what: str, kind: ArtifactKind) -> ValueError:
        return ValueError(
            f"{self.file(name)} was made from another {self.file(source)} ({what} differ): "
            f"{kind.command(self.file(name))} again, and the steps after it."
        )

    def _check_layers(self, plan: Plan, known: Iterable[str], source: str) -> None:
        if unknown := [name for name in plan.layers if name not in set(known)]:
            raise ValueError(
                f"{self.file(PLAN)} has layers that {self.path / source} lacks "
                f"({', '.join(unknown[:3])}): {plans.KIND.command(self.file(PLAN))} again."
            )
