"""Which code made a result: all of it, not only the code of the last resume."""

import json
import types
from typing import Any, cast

import numpy as np
import pytest

from experiments.common import provenance
from experiments.common.provenance import STAMP, UNKNOWN, made_by, weights_of
from jmpq.study import source

MODULE = "experiments.common.water_filling"


@pytest.fixture
def code(monkeypatch):
    """A way to be other code."""

    def become(number, *, dirty=False):
        words = {"rev-parse": f"commit{number}", "status": " M file.py" if dirty else ""}
        monkeypatch.setattr(provenance, "_git", lambda command, *rest: words[command])
        monkeypatch.setattr(source, "source_sha256", lambda module: f"{module} {number}")

    return become


def test_a_result_made_at_once_names_its_code():
    made = made_by(MODULE)
    assert set(made) == {"commit", "dirty", "source_sha256"}
    assert made["source_sha256"] == source.source_sha256(MODULE)


def test_uncommitted_changes_are_told(code):
    code(1)
    assert made_by(MODULE)["dirty"] is False
    code(1, dirty=True)
    assert made_by(MODULE)["dirty"] is True


def test_a_resumed_result_names_every_code_that_wrote_parts(code, tmp_path):
    folder = tmp_path / "parts"
    code(1)
    assert made_by(MODULE, folder)["earlier"] == []
    assert made_by(MODULE, folder)["earlier"] == []  # the same code goes on
    code(2, dirty=True)
    assert [x["commit"] for x in made_by(MODULE, folder)["earlier"]] == ["commit1"]
    code(3)
    made = made_by(MODULE, folder)
    assert made["commit"] == "commit3"
    assert [(x["commit"], x["dirty"]) for x in made["earlier"]] == [
        ("commit1", False),
        ("commit2", True),
    ]
    assert len(json.loads((folder / STAMP).read_text())) == 3


def test_parts_that_nobody_stamped_are_of_unknown_code(tmp_path):
    (tmp_path / "rows.journal").touch()
    assert made_by(MODULE, tmp_path)["earlier"] == [UNKNOWN]


def test_a_result_that_goes_on_from_itself_names_its_earlier_code(code):
    code(1)
    old = made_by(MODULE)
    code(2)
    between = made_by(MODULE, old=old)
    code(3)
    made = made_by(MODULE, old=between)
    assert [x["commit"] for x in made["earlier"]] == ["commit1", "commit2"]


def test_the_hash_of_weights_is_of_their_values():
    one, same, other = (
        weights_of(cast(Any, types.SimpleNamespace(params={"dense": {"kernel": kernel}})))
        for kernel in (np.ones((2, 3)), np.ones((2, 3)), 2 * np.ones((2, 3)))
    )
    assert set(one) == {"weights_sha256"}
    assert one == same != other
