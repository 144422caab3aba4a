"""The artifacts of a run folder that this stage defines, each with its reader and writer.

The plan is `jmpq.problem.Plan`, a metric's table `jmpq.sensitivity.table.Sensitivity`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from jmpq.allocation import Allocation
from jmpq.artifact import ArtifactKind, check_json, fields_of
from jmpq.network.layers import Layer, TieKind, layers_from_json, layers_to_json
from jmpq.quantizers.spec import KernelSpec, read_spec
from jmpq.run.planning.recommendation import Recommendation
from jmpq.sensitivity.table import KIND as SENSITIVITY
from jmpq.sensitivity.table import Sensitivity, load_arrays, load_sensitivities

Json = Mapping[str, Any]

LAYERS = ArtifactKind("layers", 3, "layers")
EVALUATION = ArtifactKind("evaluation", 4, "evaluate")
FINETUNING = ArtifactKind("finetuning", 3, "finetune")
EXPORT = ArtifactKind("export", 2, "export")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Where a network and its data come from.

    Attributes:
        model: Name of a built-in network (`jmpq.zoo.architectures`), or
            ``package.module:function``, a function without arguments that returns a
            `jmpq.Network` (with the argument ``output`` where `output` is given).
        weights: File with the weights of a built-in network.
        data: Name of the data set, or ``package.module:function``, a function without
            arguments that returns a `jmpq.Dataset`.
        data_dir: Local folder of the data set; None for its usual source.
        preprocessing: Name of the rule that brings images of any size to the network's input;
            None for the rule of the built-in network's published weights.
        fold: Whether batch normalisation is folded into the kernels of a built-in network.
        capless: Whether caps of activations are taken off (ReLU6 becomes ReLU).
        equalize: Whether the ranges of channels are equalised across layers.
        kv_cache: Whether keys and values are rows of the layer table.
        product_bits: Bits of both operands of products of activations; None for float.
        tokenizer: File of the tokenizer of a network that takes sentences or text.
        text_length: Tokens of a window of text; None for other data.
        output: Name of the array that is analysed, where the network returns several.
        image_size: Height and width that a network of one's own takes, for images of any size;
            None for those of the preprocessing.
        image_channels: Channels that it takes, 1 or 3; None as `image_size`.
    """

    model: str
    weights: str | None
    data: str
    data_dir: str | None
    preprocessing: str | None = None
    fold: bool = False
    capless: bool = False
    equalize: bool = False
    kv_cache: bool = False
    product_bits: int | None = None
    tokenizer: str | None = None
    output: str | None = None
    text_length: int | None = None
    image_size: int | None = None
    image_channels: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTable:
    """The quantizable layers of a network, and where it comes from: ``layers.json``.

    Attributes:
        network: Source of network and data.
        weights_sha256: Hash of the weights, after all changes to the network.
        code_sha256: Hash of what the network computes, after all changes to it.
        versions: Versions of the packages that the hash of the code depends on.
        layers: The layers, in the order of execution.
        other_parameters: Parameters outside the layers, which stay unquantized.
        unused: Paths of the parameters that do not reach the output, which are among them.
        ties: Groups of layer names that may be tied, by kind of tie.
        data_note: Remark on the data set.
        equalized: Pairs of layers whose ranges were equalised.
    """

    network: NetworkSpec
    weights_sha256: str
    code_sha256: str
    versions: dict[str, str]
    layers: tuple[Layer, ...]
    other_parameters: int
    ties: dict[str, list[list[str]]]
    data_note: str = ""
    equalized: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what the network computes, for the names of stores."""
        given = dataclasses.asdict(self.network)
        where = ("weights", "data", "data_dir", "tokenizer", "text_length", "image_size",
                 "image_channels")  # fmt: skip
        changes = {key: value for key, value in given.items() if key not in where}
        hashes = {"weights_sha256": self.weights_sha256, "code_sha256": self.code_sha256}
        return {**hashes, **changes}

    @property
    def origin(self) -> dict[str, Any]:
        """What all artifacts of a run have to be made from."""
        return {
            "weights_sha256": self.weights_sha256,
            "code_sha256": self.code_sha256,
            "data": self.network.data,
            "preprocessing": self.network.preprocessing,
        }

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
        LAYERS.write_json(path, record)


def _layer_table(record: dict[str, Any]) -> dict[str, Any]:
    for number, row in enumerate(record["layers"]):
        fields_of(Layer, row, f"layer {number}")
    names = [row["name"] for row in record["layers"]]
    if not names or len(set(names)) < len(names):
        raise ValueError("the layers have no names of their own")
    tied = {name for groups in record["ties"].values() for group in groups for name in group}
    if kinds := sorted(set(get_args(TieKind)) ^ set(record["ties"])):
        raise ValueError(f"ties of kind {', '.join(kinds)} are missing or unknown")
    if unknown := sorted(tied - set(names)):
        raise ValueError(f"ties name layers that are not there: {', '.join(unknown)}")
    return {
        "network": NetworkSpec(**fields_of(NetworkSpec, record["network"], "network")),
        "layers": layers_from_json(record["layers"]),
        "equalized": tuple(tuple(pair) for pair in record.get("equalized", ())),
        "unused": tuple(record.get("unused", ())),
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
        tables = load_sensitivities(path)
        try:
            _check_provenance(tables)
        except (KeyError, TypeError, ValueError) as error:
            raise SENSITIVITY.unusable(path, error) from error
        return cls(path=path, tables=tables)


def _check_provenance(tables: Mapping[str, Sensitivity]) -> None:
    """Raise where tables are not of one network, or do not say what they were made from."""
    if not tables:
        raise ValueError("it has no metric")
    one, *others = (table.provenance for table in tables.values())
    for key, kind in (
        ("weights_sha256", str),
        ("loss", str),
        ("quantizers", dict[str, dict[str, Any]]),
        ("calibration", dict[str, Any]),
    ):
        check_json(kind, one[key], f"provenance {key}")
        if any(other[key] != one[key] for other in others):
            raise ValueError(f"its metrics differ in {key}")
    read_spec(KernelSpec, one["quantizers"]["weights"])
    layers, choices = next((t.layers, t.choices) for t in tables.values())
    if any((t.layers, t.choices) != (layers, choices) for t in tables.values()):
        raise ValueError("its metrics differ in layers or choices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measured outcomes of the allocations of a plan: ``evaluation.json``.

    Attributes:
        plan_sha256: Hash of the plan.
        versions: Versions of the packages that the outcomes depend on.
        loss: Name of the loss that was measured.
        correct: Correction of the layers' outputs.
        correct_examples: Calibration examples that the correction looked at.
        device: Kind of device.
        splits: Name, size, seed and hash of the examples, by split.
        float: Outcome of the float network, by split.
        timing: Seconds per allocation, by split.
        measured: Outcome by name of the allocation and split, as `jmpq.deploy.measure.Outcome`
            is written.
        reference: Allocation that the others are compared with, which is the recommended one;
            None where it was not measured.
        differences: Paired differences of every other allocation on the evaluation examples,
            with standard errors, as `jmpq.deploy.measure.difference_of` writes them.
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
    reference: str | None
    differences: dict[str, dict[str, Any]]
    recommendation: Recommendation | None = dataclasses.field(default=None, compare=False)

    @classmethod
    def read(cls, path: pathlib.Path) -> "Evaluation":
        """Read ``evaluation.json``.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not an evaluation of this version.
        """
        return _read(
            cls, EVALUATION, path, lambda record: _evaluation(record) | {"recommendation": None}
        )

    def write(self, path: pathlib.Path) -> None:
        EVALUATION.write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in _shallow(self).items() if k != "recommendation"}


# Keys of an outcome as it is written, and whether a network that is destroyed has None there.
OUTCOME = {
    "examples": False,
    **dict.fromkeys(("loss", "loss_sem", "increase", "increase_sem", "kl", "kl_sem"), True),
    **dict.fromkeys(("top1", "top1_sem", "top5", "top5_sem", "agreement"), True),
}

DIFFERENCE = ("kl", "kl_sem", "increase", "increase_sem")


def _evaluation(record: dict[str, Any]) -> dict[str, Any]:
    splits = set(record["splits"])
    if splits != set(record["float"]) or splits != {"calibration", "evaluation"}:
        raise ValueError("it is not of the splits calibration and evaluation")
    for name, outcomes in (*record["measured"].items(), ("float", record["float"])):
        for split, outcome in outcomes.items():
            if split not in splits:
                raise ValueError(f"{name!r} is measured on an unknown split {split!r}")
            _check_outcome(outcome, f"the outcome of {name!r} on {split}")
    compared = {
        name for name, outcomes in record["measured"].items() if "evaluation" in outcomes
    }
    if record["reference"] is not None and record["reference"] not in compared:
        raise ValueError(f"reference {record['reference']!r} was not measured")
    expected = set() if record["reference"] is None else compared - {record["reference"]}
    if wrong := sorted(expected ^ set(record["differences"])):
        raise ValueError(f"differences lack, or have unknown, {', '.join(wrong)}")
    for name, difference in record["differences"].items():
        what = f"the difference of {name!r}"
        if wrong := sorted(set(DIFFERENCE) ^ set(difference)):
            raise ValueError(f"{what} lacks, or has unknown, {', '.join(wrong)}")
        for key in DIFFERENCE:
            check_json(float | None, difference[key], f"{key} of {what}")
    return {}


def _check_outcome(outcome: dict[str, Any], what: str) -> None:
    """Raise `ValueError` where an outcome is not as `Outcome.to_json` writes it."""
    if wrong := sorted(set(OUTCOME) ^ set(outcome)):
        raise ValueError(f"{what} lacks, or has unknown, {', '.join(wrong)}")
    for key, optional in OUTCOME.items():
        check_json(float | None if optional else int, outcome[key], f"{key} of {what}")
    for key in ("top1", "top5", "agreement"):
        if outcome[key] is not None and not 0 <= outcome[key] <= 1:
            raise ValueError(f"{key} of {what} is {outcome[key]}, expected 0 to 1")
    if outcome["examples"] < 1:
        raise ValueError(f"{what} is of {outcome['examples']} examples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What training under an allocation changed: ``finetuning.json``.

    Attributes:
        weights_sha256: Hash of the float weights.
        code_sha256: Hash of what the network computes.
        quantizers_sha256: Hash of the calibrated quantizers.
        finetuned_sha256: Hash of ``finetuned.safetensors``.
        name: Name of the allocation in the plan.
        allocation: The allocation.
        costs: Costs of the allocation, by name.
        config: Options of the training.
        seed: Seed of the training.
        devices: Number of devices.
        device: Kind of device.
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
    code_sha256: str
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
            _finetuning,
        )

    def write(self, path: pathlib.Path) -> None:
        FINETUNING.write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        return _shallow(self) | {"allocation": self.allocation.to_json()}


def _finetuning(record: dict[str, Any]) -> dict[str, Any]:
    for name, outcome in record["outcomes"].items():
        _check_outcome(outcome, f"the outcome {name!r}")
    if lacking := {"float", "post_training", "finetuned"} - set(record["outcomes"]):
        raise ValueError(f"it lacks the outcome {', '.join(sorted(lacking))}")
    for number, point in enumerate(record["curve"]):
        check_json(dict[str, float], point, f"point {number} of the curve")
        if set(point) != {"step", "loss"}:
            raise ValueError(f"point {number} of the curve is not a step with its loss")
    return {"allocation": Allocation.from_json(record["allocation"])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """One file for another program.

    Attributes:
        format: Name of the format, as `jmpq.run.options.Export` has it.
        file: Path below the folder of the plan.
        file_sha256: Hash of the file.
        allocation: The allocation.
        name: Name of the allocation in the plan; or ``float``; or ``finetuned``.
        size_bytes: Bytes that the cost of this name counts.
        payload_bytes: Bytes of codes, scales, zero points and unquantized parameters in the
            file, as they are stored; 0 where it holds none.
        file_bytes: Bytes of the whole file.
        widened: Stored bits, by layer, of codes that are stored at more than their own bits.
        widened_bytes: Bytes added by wider storage.
        reason: Reason for wider storage.
        left_out: Settings that the format cannot express, one sentence each.
        placement: Tensors at which activations are quantized
            (`jmpq.quantizers.spec.InputSpec`).
        checks: Results of running the file, by runtime; empty without a check.
    """

    format: str
    file: str
    file_sha256: str
    allocation: Allocation
    name: str
    size_bytes: int
    payload_bytes: int
    file_bytes: int
    widened: dict[str, int]
    widened_bytes: int
    reason: str
    left_out: list[str]
    placement: str
    checks: "dict[str, Checked]"

    def to_json(self) -> dict[str, Any]:
        checks = {runtime: _shallow(found) for runtime, found in self.checks.items()}
        return _shallow(self) | {"allocation": self.allocation.to_json(), "checks": checks}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """An exported file in one runtime.

    Attributes:
        version: Version of the runtime.
        options: Options of its session that this processor needs for exact results.
        agreement: Fields of `jmpq.export.check.Agreement`.
        cpu_ms: Processor time of a call, milliseconds, by size of the batch: of this artifact
            (``exported``) and of the ``float`` one in the same format.
    """

    version: str
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    agreement: dict[str, float | None]
    cpu_ms: dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exports:
    """Every file that was written for another program: ``export.json``.

    Attributes:
        weights_sha256: Hash of the float weights.
        device: Kind of device that timed them.
        versions: Versions of the packages that wrote the last one.
        files: The files, by format and name of the allocation.
    """

    weights_sha256: str
    device: str
    versions: dict[str, str]
    files: dict[str, Export]

    @classmethod
    def read(cls, path: pathlib.Path) -> "Exports":
        """Read ``export.json``.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not a record of this version.
        """
        return _read(cls, EXPORT, path, _exports)

    def write(self, path: pathlib.Path) -> None:
        EXPORT.write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        files = {name: export.to_json() for name, export in self.files.items()}
        return _shallow(self) | {"files": files}


def _exports(record: dict[str, Any]) -> dict[str, Any]:
    files = {}
    for name, own in record["files"].items():
        typed: dict[str, Any] = {"allocation": Allocation.from_json(own["allocation"])}
        typed["checks"] = {
            runtime: Checked(**fields_of(Checked, found, f"export {name!r} in {runtime}"))
            for runtime, found in own["checks"].items()
        }
        files[name] = Export(**fields_of(Export, own, f"export {name!r}") | typed)
    return {"files": files}


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
