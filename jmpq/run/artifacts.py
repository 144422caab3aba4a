"""The artifacts of a run folder that this stage defines, each with its reader and writer.

The plan is `jmpq.problem.Plan`, a metric's table `jmpq.sensitivity.table.Sensitivity`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jmpq.allocation import Allocation
from jmpq.artifact import ArtifactKind, fields_of
from jmpq.files import write_json
from jmpq.network.layers import Layer, layers_from_json, layers_to_json
from jmpq.quantizers.spec import KernelSpec
from jmpq.run.recommendation import Recommendation
from jmpq.sensitivity.table import Sensitivity, load_arrays, load_sensitivities

Json = Mapping[str, Any]

LAYERS = ArtifactKind("layers", 2, "layers")
EVALUATION = ArtifactKind("evaluation", 2, "evaluate")
FINETUNING = ArtifactKind("finetuning", 2, "finetune")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Where a network and its data come from.

    Attributes:
        model: Name of a built-in network (`jmpq.zoo.architectures`), or
            ``package.module:function``, a function without arguments that returns a
            `jmpq.Network`.
        weights: File with the weights of a built-in network.
        data: Name of the data set.
        data_dir: Local folder of the data set; None for its usual source.
        preprocessing: Name of the rule that brings images of any size to the network's input;
            None for the rule of the built-in network's published weights.
        fold: Whether batch normalisation is folded into the kernels of a built-in network.
        capless: Whether caps of activations are taken off (ReLU6 becomes ReLU).
        equalize: Whether the ranges of channels are equalised across layers.
        product_bits: Bits of both operands of products of activations; None for float.
        tokenizer: File of the tokenizer of a network that takes sentences.
    """

    model: str
    weights: str | None
    data: str
    data_dir: str | None
    preprocessing: str | None = None
    fold: bool = False
    capless: bool = False
    equalize: bool = False
    product_bits: int | None = None
    tokenizer: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTable:
    """The quantizable layers of a network, and where it comes from: ``layers.json``.

    Attributes:
        network: Where network and data come from.
        weights_sha256: Hash of the weights, after all changes to the network.
        layers: The layers, in the order of execution.
        other_parameters: Parameters outside the layers, which stay unquantized.
        ties: Groups of layer names that may be tied, by kind of tie.
        data_note: Remark on the data set.
        equalized: Pairs of layers whose ranges were equalised.
    """

    network: NetworkSpec
    weights_sha256: str
    layers: tuple[Layer, ...]
    other_parameters: int
    ties: dict[str, list[list[str]]]
    data_note: str = ""
    equalized: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @classmethod
    def read(cls, path: pathlib.Path) -> "LayerTable":
        """Read ``layers.json``.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not a layer table of this version.
        """
        return _read(cls, LAYERS, path, _layer_table)

    def write(self, path: pathlib.Path) -> None:
        record = _shallow(self) | {
            "network": dataclasses.asdict(self.network),
            "layers": layers_to_json(self.layers),
        }
        write_json(path, LAYERS.header | record)


def _layer_table(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "network": NetworkSpec(**fields_of(NetworkSpec, record["network"], "network")),
        "layers": layers_from_json(record["layers"]),
        "equalized": tuple(tuple(pair) for pair in record.get("equalized", ())),
    }


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sensitivities:
    """Sensitivities by metric and the quantizers they are of: ``sensitivity.npz``.

    Attributes:
        path: The file, in which the quantizers' arrays stay until they are asked for.
        tables: Sensitivities by metric, of one network, quantizers and examples.
    """

    path: pathlib.Path
    tables: dict[str, Sensitivity]

    @property
    def provenance(self) -> Json:
        """Hashes, options and versions that all tables share."""
        return next(iter(self.tables.values())).provenance

    @property
    def loss(self) -> str:
        """Name of the loss whose increase was predicted."""
        return self.provenance["loss"]

    @property
    def kernels(self) -> KernelSpec:
        """How weights were put on a grid."""
        return KernelSpec(**self.provenance["quantizers"]["weights"])

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the file: `Quantizers.from_arrays` takes its own."""
        return load_arrays(self.path)

    @classmethod
    def read(cls, path: pathlib.Path) -> "Sensitivities":
        """Read ``sensitivity.npz``.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not a sensitivity file of this version.
        """
        return cls(path=path, tables=load_sensitivities(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measured outcomes of the allocations of a plan: ``evaluation.json``.

    Attributes:
        plan_sha256: Hash of the plan.
        versions: Versions of the packages that the outcomes depend on.
        loss: Name of the loss that was measured.
        correct: Correction of the layers' outputs.
        correct_examples: Calibration examples that the correction looked at.
        device: ArtifactKind of device.
        splits: Name, size, seed and hash of the examples, by split.
        float: Outcome of the float network, by split.
        timing: Seconds per allocation, by split.
        measured: Outcome by name of the allocation and split, as `jmpq.deploy.measure.Outcome`
            is written.
        recommendation: Allocation to use; it follows from the plan and is not written.
    """

    plan_sha256: str
    versions: dict[str, str]
    loss: str
    correct: str
    correct_examples: int
    device: str
    splits: dict[str, dict[str, Any]]
    float: dict[str, dict[str, Any]]
    timing: dict[str, dict[str, Any]]
    measured: dict[str, dict[str, dict[str, Any]]]
    recommendation: Recommendation | None = dataclasses.field(default=None, compare=False)

    @classmethod
    def read(cls, path: pathlib.Path) -> "Evaluation":
        """Read ``evaluation.json``.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not an evaluation of this version.
        """
        return _read(cls, EVALUATION, path, lambda record: {"recommendation": None})

    def write(self, path: pathlib.Path) -> None:
        write_json(path, EVALUATION.header | self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in _shallow(self).items() if k != "recommendation"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What training under an allocation changed: ``finetuning.json``.

    Attributes:
        weights_sha256: Hash of the float weights.
        quantizers_sha256: Hash of the calibrated quantizers.
        finetuned_sha256: Hash of ``finetuned.safetensors``.
        name: Name of the allocation in the plan.
        allocation: The allocation.
        costs: Its costs.
        config: Options of the training.
        seed: Seed of the training.
        devices: Number of devices.
        device: ArtifactKind of device.
        versions: Versions of the packages that the outcomes depend on.
        splits: Name, size, seed and hash of the examples, by purpose.
        loss: Name of the loss of the outcomes.
        steps: Number of steps.
        curve: Mean training losses of equal runs of steps; `step` is the last of each.
        outcomes: Outcome of every stage on the evaluation examples: ``float``,
            ``post_training``, ``finetuned`` and others.
        seconds: Seconds of the training.
    """

    weights_sha256: str
    quantizers_sha256: str
    finetuned_sha256: str
    name: str
    allocation: Allocation
    costs: dict[str, float]
    config: dict[str, Any]
    seed: int
    devices: int
    device: str
    versions: dict[str, str]
    splits: dict[str, Any]
    loss: str
    steps: int
    curve: list[dict[str, Any]]
    outcomes: dict[str, dict[str, Any]]
    seconds: float

    @classmethod
    def read(cls, path: pathlib.Path) -> "Finetuning":
        """Read ``finetuning.json``.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not a record of this version.
        """
        return _read(
            cls,
            FINETUNING,
            path,
            lambda record: {"allocation": Allocation.from_json(record["allocation"])},
        )

    def write(self, path: pathlib.Path) -> None:
        write_json(path, FINETUNING.header | self.to_json())

    def to_json(self) -> dict[str, Any]:
        return _shallow(self) | {"allocation": self.allocation.to_json()}


def _shallow(artifact: Any) -> dict[str, Any]:
    """Fields by name, values as they are."""
    return {field.name: getattr(artifact, field.name) for field in dataclasses.fields(artifact)}


def _read(
    cls: Any,
    kind: ArtifactKind,
    path: pathlib.Path,
    typed: Any = lambda record: {},
) -> Any:
    """An artifact from its JSON file; `typed` makes the fields that are not plain JSON."""
    record = kind.read_json(path)
    try:
        return cls(**(fields_of(cls, record, "the file") | typed(record)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise kind.unusable(path, error) from error
