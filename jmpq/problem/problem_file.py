"""A problem as one npz file, so that it can be solved anywhere later."""

import json
import pathlib
import zipfile
from typing import Any

import numpy as np

from jmpq.artifact import CONTENT, changed_names, content_hashes
from jmpq.files import atomic_file
from jmpq.formats import Choice
from jmpq.problem.problem import Problem

SCHEMA, VERSION = "jmpq/problem", 2


def save_problem(path: pathlib.Path, problem: Problem) -> None:
    """Write one npz file, whole or not at all."""
    fields = {
        "layers": problem.layers,
        "choices": [choice.label for choice in problem.choices],
        "costs": list(problem.costs),
        "budgets": problem.budgets,
        "constants": problem.constants,
        "asked": problem.asked,
        "float_costs": problem.float_costs,
    }
    arrays: dict[str, Any] = {
        "losses": problem.losses,
        "allowed": problem.allowed,
        "groups": problem.groups,
        **{f"cost_{k}": table for k, table in enumerate(problem.costs.values())},
    }
    if problem.interactions is not None:
        arrays["interactions"] = problem.interactions
    header = {
        "schema": SCHEMA,
        "version": VERSION,
        **fields,
        CONTENT: content_hashes(json.loads(json.dumps(fields)), arrays),
    }
    with atomic_file(path) as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)


def load_problem(path: pathlib.Path) -> Problem:
    """Read what `save_problem` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no problem of this version, or was changed.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        header = json.loads(str(arrays.pop("header")))
        got = header.pop("schema"), header.pop("version")
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no problem file: write it with save_problem.") from error
    if got != (SCHEMA, VERSION):
        raise ValueError(
            f"{path} holds {got[0]} version {got[1]}; this jmpq reads {SCHEMA} version "
            f"{VERSION}. Write it again with save_problem."
        )
    written = header.pop(CONTENT, None)
    if changed := changed_names(written, content_hashes(header, arrays)):
        raise ValueError(
            f"{path} was changed after it was written ({', '.join(changed[:3])}): write it "
            "again with save_problem."
        )
    return Problem(
        layers=tuple(header["layers"]),
        choices=tuple(Choice.parse(label) for label in header["choices"]),
        losses=arrays["losses"],
        costs={name: arrays[f"cost_{k}"] for k, name in enumerate(header["costs"])},
        budgets=header["budgets"],
        constants=header["constants"],
        allowed=arrays["allowed"],
        groups=arrays["groups"],
        asked=header["asked"],
        float_costs=header["float_costs"],
        interactions=arrays.get("interactions"),
    )
