"""The step: a table in the run folder, a budget on it, and the plan's networks measured."""

import dataclasses

import numpy as np
import pytest

from jmpq import run
from jmpq.formats import UNQUANTIZED, Choice
from jmpq.latency.record import LatencyCheck, LatencyRecord
from jmpq.latency.table import LatencyTable
from jmpq.report.report import write_report
from jmpq.run.folder import LATENCY_TABLE
from tests.cli.command import TINY, jmpq, works

W8A8 = Choice(8, 8)
QUICK = ("--rounds", "2", "--held-out", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny network with sensitivities."""
    path = tmp_path_factory.mktemp("latency") / "run"
    works("layers", path, *TINY)
    bits = ("--w-bits", "4", "8", "32", "--a-bits", "8", "32")
    few = ("--metrics", "squared_error", "--examples", "16", "--batch-size", "16")
    works("sensitivity", path, *bits, *few)
    return path


def solved(folder, *args):
    return works("solve", folder, "--replace", "--first-last-bits", "0", *args)


def test_a_hardware_model_gives_a_table_and_a_budget(folder):
    result = jmpq("solve", folder, "--budget", "latency_s=0.5x")
    assert result.code == 1
    assert "latency.csv: run `jmpq latency" in result.err
    out = works("latency", folder, "--runtime", "model:bit_serial").out
    assert "Latency by bit_serial: BISMO" in out
    layers = run.RunFolder(folder).layers
    table = LatencyTable.read(folder / "latency.csv")
    macs = sum(layer.macs for layer in layers.layers)
    seconds = table.array(layers.names, (W8A8, UNQUANTIZED)).sum(axis=0)
    np.testing.assert_allclose(seconds, macs * np.array([64, 256]) / 3.25e12, rtol=1e-12)

    solved(folder, "--budget", "latency_s=0.2x", "size_bytes=90%")
    plan = run.RunFolder(folder).plan
    best = next(a for a in plan.allocations if a.role == "solution")
    assert plan.budgets["latency_s"].limit == pytest.approx(0.2 * seconds[1])
    assert best.costs["latency_s"] <= plan.budgets["latency_s"].limit
    uniform = plan.named("uniform/W8A8").costs["latency_s"]
    assert uniform == pytest.approx(seconds[0], rel=1e-12)
    # another device: the plan counts by the first table
    works("latency", folder, "--runtime", "model:roofline", "--batch-size", "4")
    with pytest.raises(ValueError, match=r"plan.json was made from another .*latency.csv"):
        _ = run.RunFolder(folder).plan
    (folder / "latency.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"counts latency by .*run `jmpq latency"):
        _ = run.RunFolder(folder).plan


def test_a_table_of_any_tool_serves(folder):
    layers = run.RunFolder(folder).layers
    rows = [f"{name},{c},{s}" for name in layers.names for c, s in (("W8A8", 1), ("W32", 3))]
    (folder / "latency.csv").write_text("\n".join(["layer,choice,seconds", *rows]))
    result = jmpq("solve", folder, "--replace", "--budget", "latency_s=0.5x")
    assert "at W4A8 is not in the table of measurements" in result.err
    allow = ("--rule", "allow .*=W8A8,W32A32")
    solved(folder, "--budget", "latency_s=0.5x", *allow)
    plan = run.RunFolder(folder).plan
    assert plan.budgets["latency_s"].limit == 1.5 * len(layers.names)
    assert run.RunFolder(folder).latency is None  # it is of another table
    (folder / "latency.csv").write_text("layer,choice,seconds\nnowhere,W8A8,1\n")
    with pytest.raises(ValueError, match="The table of latencies has layer 'nowhere'"):
        _ = run.RunFolder(folder).costs


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(
        ValueError, match="choose onnxruntime or openvino, not 'model:roofline'"
    ):
        run.Latency(runtime="model:roofline", check=True)
    with pytest.raises(ValueError, match="plan='a' names the plan of check or around"):
        run.Latency(plan="a")
    with pytest.raises(ValueError, match="leave out one of check and around='b'"):
        run.Latency(check=True, around="b")
    with pytest.raises(ValueError, match="rounds=0: give at least 1"):
        run.Latency(rounds=0)


def test_whole_networks_are_measured_fitted_and_checked(folder):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    out = works("latency", folder, *QUICK).out
    assert "Mean error on 3 held-out networks" in out
    assert "uniform W8A8" in out
    opened = run.RunFolder(folder)
    record = opened.latency
    assert isinstance(record, LatencyRecord)
    roles = [network.role for network in record.networks]
    assert roles.count("uniform") == len(record.kernels) == 4  # W32, W8, W8A8, W32A8
    assert roles.count("held_out") == 3
    assert all(network.cpu_s > 0 for network in record.networks)
    assert record.held_out_error is not None
    table = opened.latency_table
    both = table.array(opened.layers.names, (Choice(4, 8), W8A8))
    np.testing.assert_array_equal(both[:, 0], both[:, 1])  # one kernel

    solved(folder, "--budget", "latency_s=100%", "--solvers", "exact", "--random", "1")
    out = works("latency", folder, "--check", "--rounds", "2").out
    assert "exact/squared_error" in out
    assert "float" in out
    check = run.RunFolder(folder).latency_check
    assert isinstance(check, LatencyCheck)
    found = check.allocations["uniform/W8A8"]
    planned = run.RunFolder(folder).plan.named("uniform/W8A8")
    assert found.cost_s == planned.costs["latency_s"]
    assert found.predicted_s == pytest.approx(found.cost_s, rel=1e-9)  # no float neighbours
    assert check.allocations["float"].cost_s == table.unquantized
    page = write_report(folder).read_text()
    assert "Predicted against measured latency" in page
    assert "latency (" in page  # the costs of the table of allocations

    result = jmpq("latency", folder, "--check", "--batch-size", "2")
    assert result.code == 1
    assert "the check asks for onnxruntime" in result.err
    assert "cpu time, batch 2, 1 thread: give the same options" in result.err

    # The table around the float network: exact there, at what was measured of it.
    measured = check.allocations["uniform/W32"].cpu_s
    out = works("latency", folder, "--around", "uniform/W32").out
    assert "around uniform/W32, as measured: solve again" in out
    anew = run.RunFolder(folder)
    seconds = anew.latency_table.array(anew.layers.names, (UNQUANTIZED,))
    assert anew.latency_table.fixed + seconds.sum() == pytest.approx(measured)
    assert anew.latency is not None
    solved(folder, "--budget", "latency_s=100%", "--solvers", "exact", "--random", "1")
    kept = opened.file("latency_check.json").rename(folder / "kept.json")
    dataclasses.replace(check, weights_sha256="0" * 64).write(folder / "latency_check.json")
    out = works("latency", folder, "--around", "uniform/W32").out
    assert "as predicted" in out  # what was measured is of another network
    anew = run.RunFolder(folder)
    seconds = anew.latency_table.array(anew.layers.names, (UNQUANTIZED,))
    assert anew.latency_table.fixed + seconds.sum() == pytest.approx(table.unquantized)
    kept.rename(opened.file("latency_check.json"))

    # A plan made with another table is stale; how much this one differs depends on the clock.
    other = dataclasses.replace(table, fixed=table.fixed + 1.0)
    other.write(anew.file(LATENCY_TABLE))
    with pytest.raises(ValueError, match="was made from another"):
        _ = run.RunFolder(folder).latency_check
    result = jmpq("latency", folder, "--networks", "3")
    assert "3 networks cannot tell" in result.err
    out = " ".join(works("latency", folder, "--rounds", "1", "--held-out", "0").out.split())
    assert "No network was held out, so that the error of the table is unknown" in out
    assert "takes two rounds or more" in out
    assert "nan" not in out


def test_a_missing_runtime_says_which_extra(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    result = jmpq("latency", folder, "--runtime", "openvino")
    assert "pip install 'jmpq[openvino]'" in result.err
