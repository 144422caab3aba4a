"""What was measured, and the model that was fitted to it: ``latency.json``. No JAX."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jmpq.allocation import Allocation
from jmpq.artifact import ArtifactKind, fields_of
from jmpq.formats import Choice
from jmpq.latency.design import Terms
from jmpq.latency.fit import LatencyModel

LATENCY = ArtifactKind("latency", 1, "latency")
CHECK = ArtifactKind("latency_check", 2, "latency", ("--check",))
Role = Literal["uniform", "designed", "held_out"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedNetwork:
    """One network that was measured.

    Attributes:
        role: ``uniform`` and ``designed`` ones are fitted, ``held_out`` ones predicted.
        kernels: Kernel of every layer, by its position in the record's list of kernels.
        cpu_s: Processor time of a call, least of the rounds.
        wall_s: Time of a call on the clock, least of the rounds.
        predicted_s: Time that the fitted model predicts.
    """

    role: Role
    kernels: list[int]
    cpu_s: float
    wall_s: float
    predicted_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyRecord:
    """Where ``latency.csv`` comes from.

    Attributes:
        table_sha256: Hash of ``latency.csv``.
        weights_sha256: Hash of the float weights.
        quantizers_sha256: Hash of the quantizers of the exported networks; empty of a
            hardware model, as is all that follows `layers`.
        runtime: Program with its version, or hardware model with its source.
        clock: Clock of the fit: ``cpu`` or ``wall``.
        batch_size: Examples of a call.
        threads: Threads of the runtime.
        rounds: Times that every network was opened and timed.
        seed: Seed of the design.
        host: The machine.
        versions: Versions of packages.
        layers: Names of the layers.
        kernels: Labels of the kernels, the unquantized one first.
        edges: Pairs of layers, by position, of which the second reads the first's output.
        networks: Measured networks.
        unquantized_s: Seconds of the unquantized network by the model.
        gains_s: Seconds of every kernel above the unquantized one, by layer.
        borders_s: Seconds of a border between an integer and a float kernel, by edge.
        fit_error: Mean relative error of the fitted networks.
        held_out_error: Mean relative error of the held-out networks.
        table_error: The same by the sum over layers of ``latency.csv``, which is never below
            the model.
        repeatability: Mean relative difference of two measurements of one network.
    """

    table_sha256: str
    weights_sha256: str
    runtime: str
    clock: Literal["cpu", "wall"]
    batch_size: int
    threads: int
    rounds: int
    seed: int
    host: dict[str, Any]
    versions: dict[str, str]
    layers: list[str]
    quantizers_sha256: str = ""
    kernels: list[str] = dataclasses.field(default_factory=list)
    edges: list[list[int]] = dataclasses.field(default_factory=list)
    networks: list[TimedNetwork] = dataclasses.field(default_factory=list)
    unquantized_s: float | None = None
    gains_s: list[list[float]] = dataclasses.field(default_factory=list)
    borders_s: list[float] = dataclasses.field(default_factory=list)
    fit_error: float | None = None
    held_out_error: float | None = None
    table_error: float | None = None
    repeatability: float | None = None

    @property
    def model(self) -> LatencyModel | None:
        """The fitted model; None of a hardware model."""
        if self.unquantized_s is None:
            return None
        terms = Terms(
            layers=tuple(self.layers),
            kernels=tuple(map(Choice.parse, self.kernels)),
            edges=np.array(self.edges, dtype=np.int64).reshape(-1, 2),
        )
        return LatencyModel(
            terms=terms,
            unquantized=self.unquantized_s,
            gains=np.array(self.gains_s, dtype=np.float64),
            borders=np.array(self.borders_s, dtype=np.float64),
        )

    @classmethod
    def read(cls, path: pathlib.Path) -> "LatencyRecord":
        """Read ``latency.json``.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not a record of this version.
        """
        record = LATENCY.read_json(path)
        try:
            fields = fields_of(cls, record, "the file")
            fields["networks"] = [
                TimedNetwork(**fields_of(TimedNetwork, row, f"network {number}"))
                for number, row in enumerate(record.get("networks", ()))
            ]
            made = cls(**fields)
            _ = made.model
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LATENCY.unusable(path, error) from error
        return made

    def write(self, path: pathlib.Path) -> None:
        """Write ``latency.json``."""
        LATENCY.write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedAllocation:
    """An allocation of the plan, predicted and measured.

    Attributes:
        allocation: The allocation.
        cost_s: Cost ``latency_s`` of the plan; None without a table.
        predicted_s: Time by the fitted model, borders as they are; None without one.
        cpu_s: Processor time of a call, least of the rounds.
        wall_s: Time of a call on the clock, least of the rounds.
    """

    allocation: Allocation
    cost_s: float | None
    predicted_s: float | None
    cpu_s: float
    wall_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyCheck:
    """Whole networks of a plan, predicted beside measured: ``latency_check.json``.

    Attributes:
        plan_sha256: Hash of the plan.
        table_sha256: Hash of the table of latencies that the plan counts by, if there is one.
        weights_sha256: Hash of the float weights.
        quantizers_sha256: Hash of the quantizers of the exported networks.
        runtime: Program with its version.
        clock: Clock of the table: ``cpu`` or ``wall``.
        batch_size: Examples of a call.
        threads: Threads of the runtime.
        rounds: Times that every network was opened and timed.
        host: The machine.
        versions: Versions of packages.
        allocations: Measured allocations, by name; ``float`` is the unquantized network.
        repeatability: Mean relative difference of two measurements of one network.
    """

    plan_sha256: str
    table_sha256: str | None
    weights_sha256: str
    quantizers_sha256: str
    runtime: str
    clock: Literal["cpu", "wall"]
    batch_size: int
    threads: int
    rounds: int
    host: dict[str, Any]
    versions: dict[str, str]
    allocations: Mapping[str, TimedAllocation]
    repeatability: float | None = None

    @classmethod
    def read(cls, path: pathlib.Path) -> "LatencyCheck":
        """Read ``latency_check.json``.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not a record of this version.
        """
        record = CHECK.read_json(path)
        try:
            fields = fields_of(cls, record, "the file")
            fields["allocations"] = {
                name: _timed(row, f"allocation {name!r}")
                for name, row in record["allocations"].items()
            }
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CHECK.unusable(path, error) from error

    def write(self, path: pathlib.Path) -> None:
        """Write ``latency_check.json``."""
        CHECK.write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        rows = {
            name: {
                **{f.name: getattr(row, f.name) for f in dataclasses.fields(row)},
                "allocation": row.allocation.to_json(),
            }
            for name, row in self.allocations.items()
        }
        return fields | {"allocations": rows}


def _timed(row: Any, what: str) -> TimedAllocation:
    fields: dict[str, Any] = fields_of(TimedAllocation, row, what)
    fields["allocation"] = Allocation.from_json(row["allocation"])
    return TimedAllocation(**fields)
