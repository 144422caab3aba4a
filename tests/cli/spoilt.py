"""A run folder with every artifact, and every way to spoil one, case by case.

The numbers are made up (`tests.report.synthetic_run`), so that nothing is compiled; a command
that does not refuse a spoilt artifact ends in an error about the network, which has no weights.
"""

import copy
import dataclasses
import functools
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import safetensors.numpy

from jmpq.artifact import PLANS
from jmpq.files import file_sha256
from jmpq.run.artifacts import Finetuning
from jmpq.run.folder import RunFolder
from jmpq.sensitivity.logits.superposed import Superposed
from tests.report import synthetic_run

LAYERS, EXAMPLES, CLASSES = 3, 6, 4
TIGHT = f"{PLANS}/tight"
OPTIONAL = ("superposed.npz", "evaluation.json", "finetuning.json", "finetuned.safetensors")
# Commands that read an artifact; `train` and `layers` read none, `demo` calls the others.
MEASURES = ("race", "refine", "floor", "evaluate", "finetune")
READERS = {
    "layers.json": ("sensitivity", "solve", *MEASURES, "report"),
    "sensitivity.npz": ("solve", *MEASURES, "report"),
    "superposed.npz": ("solve",),
    "plan.json": ("solve", *MEASURES, "report"),
    "evaluation.json": ("report",),
    "finetuning.json": ("report",),
    "finetuned.safetensors": ("report",),
}


@dataclasses.dataclass(frozen=True)
class Spoilt:
    """One way to spoil one file of a run folder.

    Attributes:
        file: Path of the file in the run folder.
        what: Field or array that is spoilt; empty for the file as a whole.
        kind: How it is spoilt.
        spoil: Does it to a path.
    """

    file: str
    what: str
    kind: str
    spoil: Callable[[pathlib.Path], object]

    def __str__(self) -> str:
        return f"{self.file} {self.what}: {self.kind}"

    @property
    def plan(self) -> str | None:
        """Name of the plan that the file belongs to."""
        return "tight" if self.file.startswith(PLANS) else None

    @property
    def readers(self) -> tuple[str, ...]:
        return READERS[pathlib.PurePath(self.file).name]


def write_whole(folder: pathlib.Path, *, seed: int = 0, data: str = "cifar10") -> pathlib.Path:
    """A run folder with every artifact; another seed stands for other examples."""
    found = synthetic_run.sensitivities(LAYERS, seed=seed)
    origin = {"data": data, "calibration": {"sha256": str(seed)}, "quantizers_sha256": "q"}
    found = {
        name: dataclasses.replace(table, provenance={**table.provenance, **origin})
        for name, table in found.items()
    }
    made = synthetic_run.plan(found, randoms=2, sweep=1)
    few = re.compile(r"(exact|greedy)/.*|uniform/W4A.|random/0|joint/0")
    made["allocations"] = [a for a in made["allocations"] if few.fullmatch(a["name"])]
    synthetic_run.write_run(folder, found, count=LAYERS, made=made)
    layers = synthetic_run.layer_table(LAYERS)
    network = dataclasses.replace(layers.network, data=data)
    dataclasses.replace(layers, network=network).write(folder / "layers.json")
    table = next(iter(found.values()))
    rng = np.random.default_rng(seed)
    Superposed(
        layers=table.layers,
        choices=table.choices,
        moves=table.moves,
        logits=rng.normal(size=(EXAMPLES, CLASSES)).astype(np.float32),
        changes=rng.normal(size=(EXAMPLES, len(table.moves), CLASSES)).astype(np.float32),
        targets=rng.integers(0, CLASSES, EXAMPLES),
        provenance=dict(table.provenance),
    ).save(folder / "superposed.npz")
    _finetune(folder, seed)
    (folder / TIGHT).mkdir(parents=True)
    for name in ("plan.json", "evaluation.json"):
        shutil.copy(folder / name, folder / TIGHT)
    (folder / "front.csv").write_text("size_bytes,loss\n1,2\n")
    return folder


def _finetune(folder: pathlib.Path, seed: int) -> None:
    """What fine-tuning leaves."""
    weights = folder / "finetuned.safetensors"
    weights.write_bytes(safetensors.numpy.save({"w": np.full(3, seed, np.float32)}))
    first = RunFolder(folder).planned(None)
    outcome = json.loads((folder / "evaluation.json").read_text())["float"]["evaluation"]
    Finetuning(
        weights_sha256=synthetic_run.WEIGHTS_SHA256, code_sha256=synthetic_run.CODE_SHA256,
        quantizers_sha256="q", finetuned_sha256=file_sha256(weights), name=first.name,
        allocation=first.allocation, costs=first.costs, config={"method": "lsq"}, seed=seed,
        devices=1, device="cpu", versions={}, splits={}, loss="cross_entropy", steps=1,
        curve=[{"step": 1, "loss": 0.5}], seconds=1.5,
        outcomes=dict.fromkeys(("float", "post_training", "finetuned"), outcome),
    ).write(folder / "finetuning.json")  # fmt: skip


def read_all(folder: pathlib.Path, plan: str | None) -> None:
    """Read all artifacts, in the order of the steps, as commands do at their heads."""
    run = RunFolder(folder, plan=plan)
    _ = run.layers, run.sensitivities, run.superposed, run.plan
    _ = run.recommendation, run.finetuning


def cases(folder: pathlib.Path, others: dict[str, pathlib.Path]) -> Iterator[Spoilt]:
    """Every case on a folder; `others` are run folders by what they are."""
    for name in (*READERS, f"{TIGHT}/plan.json", f"{TIGHT}/evaluation.json"):
        path = folder / name
        yield from _file_cases(name)
        for what, other in others.items():
            if (other / name).read_bytes() != path.read_bytes():
                swap = functools.partial(shutil.copy, other / name)
                yield Spoilt(name, "", f"that of a run {what}", swap)
        if path.suffix == ".json":
            yield from json_cases(path, name)
        elif path.suffix == ".npz":
            yield from npz_cases(path, name)


def _file_cases(name: str) -> Iterator[Spoilt]:
    """The file as a whole."""

    def change(data: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], object]:
        return lambda path: path.write_bytes(data(path.read_bytes()))

    yield Spoilt(name, "", "removed", pathlib.Path.unlink)
    yield Spoilt(name, "", "empty", change(lambda data: b""))
    yield Spoilt(name, "", "cut", change(lambda data: data[: len(data) // 2]))
    yield Spoilt(name, "", "text", change(lambda data: b"text\n"))
    yield Spoilt(name, "", "bytes", change(lambda data: b"\xff\xfe" + data[2:]))


def json_cases(path: pathlib.Path, name: str) -> Iterator[Spoilt]:
    """Every field of a JSON artifact removed, retyped, reshaped, NaN, another value."""
    record = json.loads(path.read_text())
    for place, kind, change in _field_cases(record):
        what = "/".join(map(str, place))
        yield Spoilt(name, what, kind, functools.partial(_edit_json, change))
    yield Spoilt(name, "", "written anew", functools.partial(_edit_json, lambda value: None))
    for other in ({"colour": 3}, {"version": 2}, {"schema": "jmpq/other"}, {"version": None}):
        what, change = next(iter(other)), functools.partial(dict.update, **other)
        yield Spoilt(name, what, "other", functools.partial(_edit_json, change))


def npz_cases(path: pathlib.Path, name: str) -> Iterator[Spoilt]:
    """Every array of an npz artifact, and every field of its header, spoilt."""
    with np.load(path) as stored:
        arrays = dict(stored)
    for what, array in arrays.items():
        size, flat = max(array.size, 1), array.ravel()
        changes = {"removed": None, "retyped": np.array(["text"] * size)}
        if what != "header":
            changes["reshaped"] = np.append(flat, flat[:1])
            changes["flattened"] = flat[None]
            changes["other type"] = array.astype(np.int8)
            changes["number"] = _first_changed(array)
            if array.dtype.kind == "f":
                changes["NaN"] = np.full_like(array, np.nan)
        for kind, value in changes.items():
            yield Spoilt(name, what, kind, functools.partial(_edit_npz, {what: value}))
    header = json.loads(str(arrays["header"]))
    for place, kind, change in _field_cases(header):
        changed = copy.deepcopy(header)
        change(changed)
        edit = functools.partial(_edit_npz, {"header": np.array(json.dumps(changed))})
        yield Spoilt(name, f"header/{'/'.join(map(str, place))}", kind, edit)
    yield Spoilt(name, "", "written anew", functools.partial(_edit_npz, {}))


def _first_changed(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = changed.flat[0] + 1
    return changed


def _field_cases(record: dict) -> Iterator[tuple[tuple, str, Callable[[dict], object]]]:
    """Place, kind and change of every field of a record."""
    for place in _places(record):
        value = functools.reduce(lambda node, key: node[key], place, record)
        for kind, other in (("removed", None), *_spoilt(value)):
            yield place, kind, functools.partial(_set, place, other, kind == "removed")


def _places(value: object, place: tuple = ()) -> Iterator[tuple]:
    """Paths of the fields: every key of an object, the first element of a list."""
    if isinstance(value, dict):
        keys = list(value)
        free = place and place[-1] in ("measured", "allocation", "costs", "predictions")
        for key in keys[:1] if free else keys:
            yield (*place, key)
            yield from _places(value[key], (*place, key))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*place, 0))


def _spoilt(value: object) -> Iterator[tuple[str, object]]:
    yield "retyped", 7 if isinstance(value, str | list | dict | None) else "seven"
    yield "retyped", [value]
    if isinstance(value, list):
        yield "reshaped", [*value, value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield "NaN", float("nan")
        yield "number", -value - 1
        yield "number", value * (1 + 1e-9) if isinstance(value, float) and value else value + 1
    if isinstance(value, str):
        yield "text", f"{value}?"


def _set(place: tuple, value: object, remove: bool, record: dict) -> None:
    node = functools.reduce(lambda node, key: node[key], place[:-1], record)
    if remove:
        del node[place[-1]]
    else:
        node[place[-1]] = value


def _edit_json(change: Callable[[dict], object], path: pathlib.Path) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def _edit_npz(changes: dict[str, np.ndarray | None], path: pathlib.Path) -> None:
    with np.load(path) as stored:
        arrays = dict(stored) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
