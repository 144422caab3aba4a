"""Devices, processes, memory and streams of a step: the same result."""

import json
import re
import shutil
import socket
import weakref

import numpy as np
import pytest

from jmpq.data import batches as batches_module
from jmpq.sensitivity import batch_memory
from jmpq.sensitivity.table import load_sensitivities
from tests.cli.command import EVERY, FEW, contents, finish, process, works

METRICS = ("--metrics", "gauss_newton", "squared_error")


@pytest.fixture
def folder(tiny_run, tmp_path):
    """A run whose sensitivities are still to be found."""
    shutil.copy(tiny_run / "layers.json", tmp_path)
    return tmp_path


def assert_same(path, other):
    """Float32 up to rounding, relative to the largest entry of each table."""
    found, expected = load_sensitivities(path), load_sensitivities(other)
    assert list(found) == list(expected)
    for name, sensitivity in found.items():
        for field in ("first", "second", "losses"):
            got, want = getattr(sensitivity, field), getattr(expected[name], field)
            np.testing.assert_allclose(
                got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max(), err_msg=f"{name} {field}"
            )


@pytest.mark.slow
def test_examples_are_spread_over_as_many_devices_as_asked_for(tiny_run, folder):
    result = finish(process("sensitivity", folder, *FEW, *METRICS, "--devices", 2))
    assert result.code == 0, result.err
    assert "40 examples of the heldout split in 3 batches on 2 devices." in result.out
    assert re.search(
        r"gauss_newton: about \S+ MB on each device, 8 examples at a time", result.out
    )
    assert_same(folder / "sensitivity.npz", tiny_run / "sensitivity.npz")


def test_outcomes_on_two_devices_are_those_of_one(run):
    expected = json.loads((run / "evaluation.json").read_text())
    result = finish(process("evaluate", run, *EVERY, "--examples", 100, "--devices", 2))
    assert result.code == 0, result.err
    found = json.loads((run / "evaluation.json").read_text())
    assert found["timing"].keys() == expected["timing"].keys()
    assert found["measured"].keys() == expected["measured"].keys()
    for name, splits in expected["measured"].items():
        for split, outcome in splits.items():
            assert found["measured"][name][split] == pytest.approx(outcome, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_two_processes_of_two_devices_write_one_result(tiny_run, folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    where = ("--distributed", "--coordinator", address, "--processes", 2, "--devices", 2)
    children = [
        process("sensitivity", folder, *FEW, *METRICS, *where, "--process-index", i)
        for i in range(2)
    ]
    first, second = map(finish, children)
    assert (first.code, second.code) == (0, 0), (first.err, second.err)
    assert "in 3 batches on 4 devices." in first.out
    assert second.out == ""
    assert set(contents(folder)) == {"layers.json", "sensitivity.npz"}
    assert_same(folder / "sensitivity.npz", tiny_run / "sensitivity.npz")


def test_processes_without_a_cluster_are_told_so(folder):
    before = contents(folder)
    result = finish(process("sensitivity", folder, *FEW, "--distributed"))
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("jmpq: No cluster was found")
    assert "Give coordinator, number of processes and index" in result.err
    assert contents(folder) == before


def test_memory_is_told_and_its_limit_cuts_batches(tiny_run, folder, monkeypatch):
    """As if the process had nothing before, and took what is planned."""
    monkeypatch.setattr(batch_memory, "resident_bytes", lambda: 0)
    monkeypatch.setattr(batch_memory, "bytes_per_planned", lambda programs: 1.0)
    args = ("sensitivity", folder, *FEW, *METRICS)
    said = r"gauss_newton: about (\S+) MB on each device, (\d+) examples? at a time"
    whole = re.search(said, works(*args).out)
    limit = float(whole[1]) / 2
    bounded = said + r"; the process takes up to about (\S+) MB"
    cut = re.search(bounded, works(*args, "--memory", f"{limit}MB").out)
    assert int(whole[2]) == 16
    assert 1 <= int(cut[2]) < 16
    assert float(cut[3]) <= 1.005 * limit  # printed to three digits
    assert_same(folder / "sensitivity.npz", tiny_run / "sensitivity.npz")


def test_sampled_classes_tell_their_standard_error(tiny_run, folder):
    args = ("sensitivity", folder, *FEW, *METRICS)
    said = r"gauss_newton: standard error by sampled classes (\S+) % of the losses"
    result = works(*args, "--class-samples", 4)
    found = load_sensitivities(folder / "sensitivity.npz")["gauss_newton"]
    exact = load_sensitivities(tiny_run / "sensitivity.npz")["gauss_newton"]
    share = np.linalg.norm(found.sampling_sem) / np.linalg.norm(found.losses)
    assert float(re.search(said, result.out)[1]) == pytest.approx(100 * share, rel=0.05)
    assert np.all(np.abs(found.losses - exact.losses) < 5 * found.sampling_sem)
    assert not np.array_equal(found.losses, exact.losses)
    assert "standard error by sampled classes unknown" in works(*args, "--class-samples", 1).out
    assert "sampled classes" not in works(*args).out


def test_batches_are_not_in_memory_together(folder, monkeypatch):
    made, most = [], 0
    make = batches_module.make_batch

    def counted(*args):
        nonlocal most
        batch = make(*args)
        made.append(weakref.ref(batch.inputs))
        most = max(most, sum(inputs() is not None for inputs in made))
        return batch

    monkeypatch.setattr(batches_module, "make_batch", counted)
    few = (*FEW[:-1], 2)  # twenty batches
    works("sensitivity", folder, *few, "--metrics", "squared_error", "--loss", "kl")
    assert len(made) >= 60  # for the quantizers, the logits and the metric
    # Those in use and made ahead; how many a busy device has not let go yet differs.
    assert 1 <= most <= 10
