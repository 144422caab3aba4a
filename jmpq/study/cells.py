"""Cells: the steps of `jmpq.run` that a study consists of, each done once for its content.

A cell's key is a hash of its step, its options, the keys of the cells that it is made from, the
hashes of files that it reads, the versions of the packages, and the source of the step
(`source_sha256`). What the key says decides the result, so equal cells of two studies are one,
and a cell whose code has changed is another. A cell is a run folder of its own: it begins with
links to what it is made from and is finished when ``cell.json`` is there.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from jmpq.allocation import Allocation
from jmpq.artifact import ArtifactKind
from jmpq.files import file_sha256, json_sha256, versions
from jmpq.run import folder as files
from jmpq.run import options as o
from jmpq.run.progress import QUIET, Reporter
from jmpq.study.grid import StudiedNetwork, options_from_json, options_json
from jmpq.study.source import source_sha256

Step = Literal["network", "sensitivity", "solve", "refine", "measure", "finetune"]
CELL = ArtifactKind("cell", 1, "study")
OUTCOMES = ArtifactKind("outcomes", 1, "study")
CELLS, RECORD, OUTCOMES_FILE = "cells", "cell.json", "outcomes.npz"
_MODULES: dict[Step, tuple[str, ...]] = {
    "network": ("jmpq.run.steps.train", "jmpq.run.steps.layers"),
    **{
        step: (f"jmpq.run.steps.{step}",)
        for step in ("sensitivity", "solve", "refine", "measure", "finetune")
    },
}
_LINKED = (files.WEIGHTS, files.TOKENIZER, files.LAYERS, files.SENSITIVITY, files.SUPERPOSED,
           files.PLAN)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One step of a run with everything that decides its result.

    Attributes:
        step: The step.
        options: Options of the cell, JSON values.
        parents: Cells that it is made from, in the order in which their files are taken.
        inputs: Hashes of the files that it reads besides.
    """

    step: Step
    options: Mapping[str, Any]
    parents: tuple["Cell", ...] = ()
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the result."""
        return {
            "step": self.step,
            "options": dict(self.options),
            "parents": [parent.key for parent in self.parents],
            "inputs": dict(self.inputs),
            "source_sha256": source_sha256(*_MODULES[self.step]),
            "versions": versions("jax", "jaxlib", "flax", "optax", "scipy", "highspy"),
        }

    @functools.cached_property
    def key(self) -> str:
        return json_sha256(self.identity)[:16]

    def folder(self, root: pathlib.Path) -> pathlib.Path:
        """The run folder of the cell in the folder of studies."""
        return root / CELLS / f"{self.step}-{self.key}"

    def record(self, root: pathlib.Path) -> dict[str, Any] | None:
        """What ``cell.json`` says, or None where the cell is still to be done."""
        path = self.folder(root) / RECORD
        try:
            return CELL.read_json(path) if path.is_file() else None
        except ValueError:  # spoilt: made again
            return None


def network_cell(network: StudiedNetwork) -> Cell:
    """The cell of a network: its weights, if they are to be trained, and its layer table."""
    weights, inputs = network.layers.weights, {}
    inputs |= code_of(model=network.layers.model, data=network.layers.data)
    made = ":" in network.layers.model and network.train is None
    if made or (weights is not None and (weights.is_dir() or weights.suffix == ".json")):
        inputs |= dict(_as_made(network.layers))  # several files, or whichever are read
    elif weights is not None and weights.is_file():
        inputs["weights"] = file_sha256(weights)
    train = None if network.train is None else options_json(network.train)
    options = {"layers": options_json(network.layers), "train": train}
    return Cell("network", options, (), inputs)


def code_of(**names: str) -> dict[str, str]:
    """Hashes of the files of the modules in which functions of the user's own are.

    Args:
        names: Names of functions, as ``package.module:function``; other names are left out.
    """
    from jmpq.run.network import module_sha256

    found = {what: module_sha256(name) for what, name in names.items()}
    return {what: digest for what, digest in found.items() if digest is not None}


def _as_made(options: o.Layers) -> Mapping[str, str]:
    """Hashes of a network that is made of several files, or by a function of the user's."""
    from jmpq.run.steps.layers import layers

    with tempfile.TemporaryDirectory() as folder:
        table = layers(pathlib.Path(folder), options)
    return {"weights": table.weights_sha256, "code": table.code_sha256}


def done(cell: Cell, root: pathlib.Path, reporter: Reporter = QUIET) -> dict[str, Any]:
    """Do a cell unless it is done; the record of it.

    A solution that does not exist (budgets that conflict, a solver that a metric has no terms
    for) is a result too: its record has a ``note``.

    Raises:
        ValueError, OSError, RuntimeError: As its step does.
    """
    if (known := cell.record(root)) is not None:
        return known
    folder = cell.folder(root)
    began = time.perf_counter(), time.process_time()
    for parent in cell.parents:
        _take(parent.folder(root), folder)
    records = [parent.record(root) for parent in cell.parents]
    note = next((record["note"] for record in records if record and record["note"]), "")
    try:
        if not note:  # else what it is made from does not exist
            _STEPS[cell.step](folder, cell.options, reporter)
    except ValueError as error:
        if cell.step != "solve":
            raise
        note = str(error)
    fields = {
        "identity": cell.identity,
        "note": note,
        "wall_s": time.perf_counter() - began[0],
        "cpu_s": time.process_time() - began[1],
    }
    CELL.write_json(folder / RECORD, fields)
    return fields


def _take(parent: pathlib.Path, folder: pathlib.Path) -> None:
    """Link the artifacts of a run folder, and copy the journal of its quantizers.

    Artifacts are replaced and never written into, so that a link is safe; journals grow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _LINKED:
        if (source := parent / name).is_file() and not (folder / name).exists():
            try:
                os.link(source, folder / name)
            except OSError:  # a file system without links
                shutil.copyfile(source, folder / name)
    for source in parent.glob(f"{files.STORE}/quantizers-*"):
        target = folder / files.STORE / source.name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            partial = target.with_suffix(".partial")
            shutil.copyfile(source, partial)
            partial.replace(target)


def _network(folder: pathlib.Path, options: Mapping[str, Any], reporter: Reporter) -> None:
    from jmpq.run.steps.layers import layers
    from jmpq.run.steps.train import train

    if options["train"] is not None:
        train(folder, options_from_json(o.Train, options["train"]), reporter=reporter)
    layers(folder, options_from_json(o.Layers, options["layers"]), reporter=reporter)


def _sensitivity(folder: pathlib.Path, options: Mapping[str, Any], reporter: Reporter) -> None:
    from jmpq.run.steps.sensitivity import sensitivity

    (folder / files.SENSITIVITY).unlink(missing_ok=True)  # the parent's metric is not this one
    sensitivity(folder, options_from_json(o.Sensitivity, options), reporter=reporter)


def _solve(folder: pathlib.Path, options: Mapping[str, Any], reporter: Reporter) -> None:
    from jmpq.run.steps.solve import solve

    comparison = options_from_json(o.Comparison, options["comparison"])
    solving = options_from_json(o.Solve, options["solve"])
    (folder / files.PLAN).unlink(missing_ok=True)  # of a cell that was interrupted
    solve(folder, solving, comparison=comparison, reporter=reporter)


def _refine(folder: pathlib.Path, options: Mapping[str, Any], reporter: Reporter) -> None:
    from jmpq.run.steps.refine import refine

    refine(folder, options_from_json(o.Refine, options), reporter=reporter)


def _measure(folder: pathlib.Path, options: Mapping[str, Any], reporter: Reporter) -> None:
    from jmpq.run.steps.measure import SCORES, measure

    # What was measured for another table of the same study is known there.
    shared = folder.parent / f"outcomes-{options['store']}"
    _take(folder, shared)
    allocations = [Allocation.from_json(record) for record in options["allocations"]]
    evaluate = options_from_json(o.Evaluate, options["evaluate"])
    found = measure(shared, allocations, evaluate, reporter=reporter)
    scores = {name: found.scores[:, i].astype(np.float32) for i, name in enumerate(SCORES)}
    OUTCOMES.write_npz(
        folder / OUTCOMES_FILE,
        {
            "outcomes": [outcome.to_json() for outcome in found.outcomes],
            "float": found.float_outcome.to_json(),
            "examples_sha256": found.examples_sha256,
            "device": found.device,
        },
        {"indices": found.indices, **scores},
    )


def _finetune(folder: pathlib.Path, options: Mapping[str, Any], reporter: Reporter) -> None:
    from jmpq.run.steps.finetune import finetune

    finetune(folder, options_from_json(o.Finetune, options), reporter=reporter)


_STEPS: dict[Step, Callable[[pathlib.Path, Mapping[str, Any], Reporter], None]] = {
    "network": _network,
    "sensitivity": _sensitivity,
    "solve": _solve,
    "refine": _refine,
    "measure": _measure,
    "finetune": _finetune,
}
