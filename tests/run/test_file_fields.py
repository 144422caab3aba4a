"""The page of fields describes every field of every file in a run folder, and no other."""

import dataclasses
import json
import re
from typing import get_args

import jax
import numpy as np
import pytest
from safetensors import safe_open

from jmpq import run
from jmpq.deploy.measure import Outcome
from jmpq.export.check import Agreement
from jmpq.latency.record import LatencyCheck, LatencyRecord, TimedAllocation, TimedNetwork
from jmpq.network.layers import Layer
from jmpq.problem.instances import instance
from jmpq.problem.plan import Plan, PlannedAllocation, PlannedBudget
from jmpq.run.artifacts import (
    DIFFERENCE,
    OUTCOME,
    Checked,
    Evaluation,
    Export,
    Exports,
    Finetuning,
    LayerTable,
    NetworkSpec,
)
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.sensitivity.table import Sensitivity
from tests import pages

PAGE = (pages.ROOT / "docs" / "reference" / "file_fields.md").read_text()
HEADER = ("schema", "version", "content_sha256")


def described(file):
    """Fields of the section of a file on the page, with their types."""
    (section,) = re.findall(
        rf"^## [^\n]*`{re.escape(file)}`[^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S
    )
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| \S[^|]* \|$", section, re.M)
    assert len(rows) == len(dict(rows)) == section.count("\n| `"), f"{file}: a row is spoilt"
    return dict(rows)


def pattern(field, kind):
    """What the paths of a field match: any key for a name in capitals, all below an object."""
    words = (
        ".+" if re.fullmatch("[A-Z]{2,}", part) else re.escape(part)
        for part in re.split(r"([A-Z]{2,})", field)
    )
    return re.compile("".join(words) + (r"([.\[].*)?" if kind == "object" else ""))


def paths(value, at=""):
    """Path of every field below a JSON value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from paths(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from paths(inner, f"{at}[]")
    else:
        yield at


def check(file, found):
    """Every path that a file has is described, and every field without capitals is there."""
    fields = described(file)
    patterns = [pattern(*field) for field in fields.items()]
    found = sorted({path for path in found if path.split(".")[0] not in HEADER})
    unknown = [p for p in found if not any(x.fullmatch(p) for x in patterns)]
    assert not unknown, (
        f"{file} has fields that docs/reference/file_fields.md does not describe"
    )
    return {
        field
        for field, matches in zip(fields, patterns, strict=True)
        if not any(matches.fullmatch(p) for p in found)
    }


def names(kind, before=""):
    return {f"{before}{field.name}" for field in dataclasses.fields(kind)}


TABLES = {
    "layers.json": (
        names(LayerTable) - {"network", "layers"},
        names(NetworkSpec, "network."),
        names(Layer, "layers[]."),
    ),
    "plan.json": (
        names(Plan) - {"budgets", "allocations"},
        names(PlannedBudget, "budgets.COST."),
        names(PlannedAllocation, "allocations[]."),
    ),
    "evaluation.json": (
        names(Evaluation)
        - {"recommendation", "splits", "timing", "float", "measured", "differences"},
        {f"{at}.SPLIT.{key}" for at in ("float", "measured.NAME") for key in OUTCOME},
        {f"differences.NAME.{key}" for key in DIFFERENCE},
    ),
    "finetuning.json": (names(Finetuning) - {"curve", "outcomes"},),
    "export.json": (
        names(Exports) - {"files"},
        names(Export, "files.FILE.") - {"files.FILE.checks"},
        names(Checked, "files.FILE.checks.RUNTIME.") - {"files.FILE.checks.RUNTIME.agreement"},
        names(Agreement, "files.FILE.checks.RUNTIME.agreement."),
    ),
    "latency.json": (
        names(LatencyRecord),
        names(TimedNetwork, "networks[]."),
    ),
    "latency_check.json": (
        names(LatencyCheck) - {"allocations"},
        names(TimedAllocation, "allocations.NAME."),
    ),
    "superposed.npz": (names(Superposed) - {"changes"},),
    "sensitivity.npz": (
        {
            f"{'' if array else 'metrics.'}METRIC{'/' if array else '.'}{field.name}"
            for field in dataclasses.fields(Sensitivity)
            for array in ([True] if "Float[" in str(field.type) else [False])
        },
    ),
}
# Fields that no class declares: dictionaries, and arrays of other names.
OTHERS = {
    "evaluation.json": r"(splits|timing)\.SPLIT\..*",
    "finetuning.json": r"curve\[\]\..*|outcomes\.STAGE",
    "superposed.npz": "changes_by_move",
    "sensitivity.npz": r"quantizers/.*|metrics\.METRIC\.sampling_sem",
}


@pytest.mark.parametrize("file", TABLES)
def test_fields_of_the_classes_behind_a_file_are_described(file):
    own = {f for f in described(file) if not re.fullmatch(OTHERS.get(file, "-"), f)}
    assert own == set().union(*TABLES[file])


def test_an_outcome_is_written_by_the_fields_of_its_class():
    assert set(OUTCOME) == names(Outcome)


def test_fields_of_a_problem_file_are_described():
    text = instance.__doc__ or ""
    rows = set(re.findall(r"^``(\w+)``  ", text, re.M))
    assert rows == instance._FIELDS | {"schema", "version", "content_sha256"}


def test_every_kind_of_artifact_has_a_section():
    steps = {"layers.json", "plan.json", "evaluation.json", "export.json", "superposed.npz"}
    assert steps <= {name for name in TABLES if described(name)}
    assert set(get_args(run.Export.__dataclass_fields__["format"].type)) >= {"packed"}


def test_a_field_that_is_not_described_is_found():
    with pytest.raises(AssertionError, match=r"plan.json has fields"):
        check("plan.json", ["allocations[].novelty"])
    assert not pattern("costs", "list").fullmatch("costs.bops")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every step that writes artifacts, on a network of three layers."""
    here = tmp_path_factory.mktemp("runs") / "all"
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        run.layers(here, run.Layers(model="tests.cli.networks:tiny", data="digits"))
        few = {"w_bits": (2, 8), "a_bits": (8,), "examples": 24, "batch_size": 24}
        run.sensitivity(here, run.Sensitivity(metrics=("gauss_newton", "composed"), **few))
        run.solve(here, run.Solve(budget=("size_bytes=50%",), metrics=("gauss_newton",)))
        run.latency(here, run.Latency(runtime="model:roofline"))
        run.evaluate(here, run.Evaluate(examples=50))
        run.finetune(here, run.Finetune(epochs=1, training_examples=64, examples=50))
        run.export(here, run.Export(check=50, repeats=2))
    return here


@pytest.mark.slow
@pytest.mark.parametrize("file", [name for name in TABLES if name.endswith(".json")])
def test_every_field_of_a_written_json_file_is_described(file, folder):
    if file == "latency_check.json":  # needs a runtime of the extras
        return
    missing = check(file, paths(json.loads((folder / file).read_text())))
    optional = "networks" if file == "latency.json" else "-"
    assert not {field for field in missing if not field.startswith(optional)}


@pytest.mark.slow
@pytest.mark.parametrize("file", ["sensitivity.npz", "superposed.npz"])
def test_every_array_of_a_written_archive_is_described(file, folder):
    with np.load(folder / file) as stored:
        header = json.loads(str(stored["header"]))
        arrays = [name for name in stored.files if name != "header"]
    missing = check(file, [*arrays, *paths(header)])
    assert missing <= {"METRIC/sampling_sem", "quantizers/KIND/codes/TENSOR"}


@pytest.mark.slow
@pytest.mark.parametrize("file", ["finetuned.safetensors", "exported/NAME.safetensors"])
def test_every_tensor_of_a_written_file_is_described(file, folder):
    (path,) = folder.glob(file.replace("NAME", "*"))
    with safe_open(path, "np") as stored:
        header = json.loads(stored.metadata()["jmpq"])
        tensors = list(stored.keys())
    assert set(header) == {"schema", "version", "architecture", "metadata"}
    missing = check(file, [*tensors, *header["metadata"]])
    assert not {field for field in missing if "/" not in field}
