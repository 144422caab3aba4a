"""What a study compares, as data: a dataclass, or a TOML file of a few lines.

Every list is an axis, and the study is their product. What is one value for all runs stands in
tables named as the options of the steps.
"""

import dataclasses
import os
import pathlib
import re
import tomllib
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jmpq.artifact import check_json
from jmpq.formats import FLOAT_BITS, choice_grid
from jmpq.kinds import check_kinds
from jmpq.quantizers.spec import Rounding
from jmpq.run.options import (
    CorrectName,
    Evaluate,
    Finetune,
    Layers,
    Refine,
    Sensitivity,
    Solve,
    Train,
)
from jmpq.run.ranges import counts
from jmpq.sensitivity.metrics.by_name import MetricName
from jmpq.text import did_you_mean

Baseline = Literal["uniform", "reversed", "random"]
SEARCH = "search"  # solver of metric composed: the search on composed logits
_BITS = re.compile(r"W(\d+(?:,\d+)*)(?: ?A(\d+(?:,\d+)*))?")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudiedNetwork:
    """A network of a study.

    Attributes:
        layers: Network, weights and data.
        train: Training of the weights; None if they are given.
    """

    layers: Layers
    train: Train | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of runs; every attribute that is a tuple is an axis of it.

    Attributes:
        networks: Networks by the name that the table gives them.
        draws: Seeds of the draws of calibration examples.
        examples: Numbers of calibration examples.
        bits: Candidates, as ``W2,3,4,8`` or ``W2,4,8 A4,8``.
        rounding: Rounding of weights to codes.
        metrics: Metrics that choose.
        solvers: Solvers, by the names that `Solve` takes; ``search`` of metric composed alone.
        budgets: Budgets as `Solve` takes them, several joined by spaces.
        baselines: Allocations beside them: ``uniform``, the dearest that the budget allows;
            ``reversed``, the order of the first metric turned round; ``random``.
        random: Random allocations at every budget.
        refine: Allocations that a refinement by measured KL may measure; 0 for none.
        correct: Corrections of the layers' outputs after quantization.
        finetune: Epochs of fine-tuning; 0 for none.
        sensitivity: Options of the sensitivities that are no axis.
        solve: Options of the solutions.
        refinement: Options of the refinement.
        evaluate: Options of the measurement.
        finetuning: Options of fine-tuning.
        slurm: Resources of a task, as submitit's ``update_parameters`` takes them.
    """

    networks: Mapping[str, StudiedNetwork]
    draws: tuple[int, ...] = (0,)
    examples: tuple[int, ...] = (256,)
    bits: tuple[str, ...] = ("W2,3,4,6,8",)
    rounding: tuple[Rounding, ...] = ("nearest",)
    metrics: tuple[MetricName, ...] = ("gauss_newton",)
    solvers: tuple[str, ...] = ("exact",)
    budgets: tuple[str, ...] = ("size_bytes=W4",)
    baselines: tuple[Baseline, ...] = ("uniform", "reversed", "random")
    random: int = 5
    refine: tuple[int, ...] = (0,)
    correct: tuple[CorrectName, ...] = ("none",)
    finetune: tuple[int, ...] = (0,)
    sensitivity: Sensitivity = Sensitivity()
    solve: Solve = Solve()
    refinement: Refine = Refine()
    evaluate: Evaluate = Evaluate()
    finetuning: Finetune = Finetune()
    slurm: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.networks:
            raise ValueError("A study has at least one network: add a table [networks.NAME].")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, tuple):
                continue
            if not value and field.name != "baselines":
                raise ValueError(f"{field.name} is empty: give at least one, or leave it out.")
            if twice := [x for x in dict.fromkeys(value) if value.count(x) > 1]:
                raise ValueError(f"{field.name} has {twice[0]!r} twice: name each once.")
        counts(self, "random", least=0)
        self._check_options()
        for text in self.bits:
            choice_grid(*parse_bits(text))
        for name, axis in (("refine", self.refine), ("finetune", self.finetune)):
            if (least := min(axis)) < 0:
                raise ValueError(f"{name} has {least}: give counts from 0, which is none.")
        for budget in self.budgets:
            solvers = tuple(s for s in self.solvers if s != SEARCH) or ("exact",)
            Solve(budget=tuple(budget.split()), solvers=solvers)  # checks both

    def _check_options(self) -> None:
        """Refuse options of a step that an axis sets, or that a study has no use for."""
        for table, axes in _SET.items():
            options = getattr(self, table)
            for name, axis in axes.items():
                if getattr(options, name) != getattr(type(options)(), name):
                    instead = f"write {axis} = [...] at the top" if axis else "leave it out"
                    raise ValueError(f"{name} of {table} is not read by a study: {instead}.")
        if self.sensitivity.weights.rounding != Sensitivity().weights.rounding:
            raise ValueError(
                "rounding of sensitivity, weights is not read by a study: write rounding = "
                "[...] at the top."
            )
        named = self.sensitivity.w_formats or self.sensitivity.a_formats
        if named and len(self.bits) > 1:
            raise ValueError(
                f"The candidates of sensitivity are formats ({', '.join(named)}), in whose "
                "place no bits are read: give one entry of bits."
            )
        for name, network in self.networks.items():
            if network.train is not None and network.layers.weights is not None:
                raise ValueError(
                    f"networks.{name} has weights and train: leave out one of them."
                )


# Options of steps that a study sets by an axis, or (None) by what it found before.
_SET: Mapping[str, Mapping[str, str | None]] = {
    "sensitivity": {
        "examples": "examples",
        "seed": "draws",
        "metrics": "metrics",
        "w_bits": "bits",
        "a_bits": "bits",
    },
    "solve": {"budget": "budgets", "metrics": "metrics", "solvers": "solvers", "name": None},
    "evaluate": {"correct": "correct", "plan": None},
    "refinement": {"max_evaluations": "refine", "allocation": None, "plan": None},
    "finetuning": {"epochs": "finetune", "allocation": None, "plan": None},
}


def parse_bits(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Candidate bits of weights and of activations.

    >>> parse_bits("W2,4,8 A4,8"), parse_bits("W3,4")
    (((2, 4, 8), (4, 8)), ((3, 4), (32,)))

    Raises:
        ValueError: If it is not such a text.
    """
    if (found := _BITS.fullmatch(text)) is None:
        raise ValueError(
            f"{text!r} does not name candidates: expected bits of weights, and of activations "
            "where they are quantized, as 'W2,4,8' or 'W2,4,8 A4,8'."
        )
    parts = [part.split(",") if part else [] for part in found.groups()]
    w, a = (tuple(map(int, part)) for part in parts)
    return w, a or (FLOAT_BITS,)


@check_kinds
def read_study(path: str | os.PathLike[str]) -> Study:
    """A study from a TOML file.

    Environment variables and ``~`` in paths are expanded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML, has an unknown name, or a value that does not fit; it
            names the entry.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} not found: give a TOML file that describes a study.")
    try:
        record = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not TOML: {error}.") from error
    try:
        return study_of(record)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def study_of(record: Mapping[str, Any]) -> Study:
    """A study from plain values, as a TOML file has them.

    Raises:
        ValueError: If a name is unknown or a value does not fit; it names the entry.
    """
    own = dict(record)
    networks = own.pop("networks", {})
    check_json(dict[str, dict], networks, "networks")
    made = {name: _network(name, dict(entry)) for name, entry in networks.items()}
    return _options(Study, own | {"networks": made}, "the study")


def _network(name: str, entry: dict[str, Any]) -> StudiedNetwork:
    train = entry.pop("train", None)
    layers = _options(Layers, entry, f"networks.{name}")
    if train is None:
        return StudiedNetwork(layers=layers)
    check_json(dict[str, Any], train, f"train of networks.{name}")
    given = {"model": layers.model, "data": layers.data, "data_dir": layers.data_dir}
    options = _options(Train, given | train, f"networks.{name}.train")
    return StudiedNetwork(layers=layers, train=options)


def _options(kind: type[T], record: Mapping[str, Any], what: str) -> T:
    """A dataclass from plain values; lists become tuples, tables dataclasses, text paths."""
    hints = get_type_hints(kind)
    values = {}
    for name, value in record.items():
        if name not in hints:
            raise ValueError(
                f"{what} has no entry {name!r}.{did_you_mean(name, hints)} It has "
                f"{', '.join(hints)}."
            )
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            check_json(dict[str, Any], value, f"{name} of {what}")
            values[name] = _options(hint, value, f"{what}, {name}")
            continue
        if pathlib.Path in get_args(hint) and isinstance(value, str):
            value = pathlib.Path(os.path.expandvars(value)).expanduser()
        if name != "networks":
            check_json(hint, value, f"{name} of {what}")
        values[name] = tuple(value) if isinstance(value, list) and _is_tuple(hint) else value
    return kind(**values)


def _is_tuple(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(map(_is_tuple, get_args(hint)))
    return get_origin(hint) is tuple


def options_json(options: Any) -> dict[str, Any]:
    """Options as JSON values, for the identity of what is made with them."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, pathlib.Path):
            return str(value)
        return [plain(x) for x in value] if isinstance(value, tuple) else value

    return plain(options)


def options_from_json(kind: type[T], record: Mapping[str, Any]) -> T:
    """Inverse of `options_json`."""
    return _options(kind, {k: v for k, v in record.items() if v is not None}, kind.__name__)


AXES = ("network", "examples", "draw", "bits", "rounding", "metric", "solver", "budget",
        "refine", "correct", "finetune")  # fmt: skip
