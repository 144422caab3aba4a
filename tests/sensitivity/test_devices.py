"""Eight devices, and two processes, find what one device finds, and share its work."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import helpers
from tests.sensitivity.spread_out import METRICS

ROOT = pathlib.Path(__file__).parents[2]
# One of each way through the code; the others are checked by the slow tests.
FEW = ("gauss_newton", "measured_loss")


def start(out, metrics, sizes, *processes, devices=1):
    """A process of its own with so many devices."""
    # Compiled as users compile: the classes of equal logits depend on the last digit.
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sensitivity.spread_out", out, ",".join(metrics), sizes]
        + [str(p) for p in processes],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(folder, metrics, sizes, *dies):
    """Two processes of one device each, that compute together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(folder / f"terms{i}.npz", metrics, sizes, address, 2, i, *dies) for i in range(2)
    ]


def finish(*children, killed=False):
    for child in children:
        text, _ = child.communicate(timeout=500)
        assert (child.returncode != 0) == killed, text


def assert_same(found, expected, metrics):
    """Float32 up to rounding, relative to the largest entry of each table."""
    for name in ("changes", "outcomes/none", "outcomes/batch_norm"):
        got, want = found[f"spread/{name}"], expected[f"one/{name}"]
        np.testing.assert_allclose(
            got, want, rtol=1e-5, atol=1e-5 * np.abs(want[..., 1:]).max()
        )
    for name in metrics:
        for field in ("first", "second", "losses"):
            got, want = found[f"spread/{name}/{field}"], expected[f"one/{name}/{field}"]
            np.testing.assert_allclose(
                got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max(), err_msg=f"{name} {field}"
            )
            assert (
                field == "first"
                or np.abs(want).max() > 0
                or name in ("first_order", "path_attribution")
            )


def assert_shared(found, metrics):
    """Each of eight devices does an eighth of the operations, and little that all do."""
    for name in metrics:
        one, spread = (found[f"{kind}/{name}/flops"] for kind in ("one", "spread"))
        assert 7 < one / spread < 8.1, name


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Terms on eight devices and on one, of `FEW` metrics."""
    out = tmp_path_factory.mktemp("eight") / "terms.npz"
    finish(start(out, FEW, "1024,11", devices=8))
    return dict(np.load(out))


def test_eight_devices_find_what_one_finds(eight):
    assert eight["devices"] == 8
    assert_same(eight, eight, FEW)


def test_eight_devices_share_the_work(eight):
    assert_shared(eight, FEW)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(eight, tmp_path):
    finish(*start_two(tmp_path, FEW[:1], "1024,11"))
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "terms0.npz",
        *(f"terms0.npz.{name}.spread.partial" for name in FEW[:1]),
    }
    found = dict(np.load(tmp_path / "terms0.npz"))
    assert found["devices"] == 2
    assert_same(found, eight, FEW[:1])


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Terms of every metric on eight devices and on one."""
    out = tmp_path_factory.mktemp("every") / "terms.npz"
    finish(start(out, METRICS, "1024,11,2", devices=8))
    return dict(np.load(out))


@pytest.mark.slow
def test_every_metric_on_eight_devices(every):
    assert_same(every, every, METRICS)


@pytest.mark.slow
def test_every_metric_shares_the_work(every):
    alone = "hawq_trace_piecewise"  # exact traces: every device takes every example
    assert_shared(every, [name for name in METRICS if name != alone])


@pytest.mark.slow
def test_every_metric_in_two_processes(every, tmp_path):
    finish(*start_two(tmp_path, METRICS, "1024,11,2"))
    assert_same(dict(np.load(tmp_path / "terms0.npz")), every, METRICS)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["gauss_newton", "hawq_eigenvalue", "measured_pairs_kl"])
def test_two_processes_killed_in_the_middle_go_on_to_the_same_result(tmp_path, metric):
    (whole := tmp_path / "whole").mkdir()
    finish(*start_two(whole, [metric], "16,11,2"))
    children = start_two(tmp_path, [metric], "16,11,2", 2)
    finish(*children, killed=True)
    assert children[0].returncode == -signal.SIGKILL  # the other may notice that and give up
    assert not (tmp_path / "terms0.npz").exists()
    partial = tmp_path / f"terms0.npz.{metric}.spread.partial"
    seconds = helpers.batch_seconds(partial)  # none where killed in a search before them
    finish(*start_two(tmp_path, [metric], "16,11,2"))
    found, expected = (dict(np.load(path / "terms0.npz")) for path in (tmp_path, whole))
    for field in ("first", "second", "losses"):
        key = f"spread/{metric}/{field}"
        np.testing.assert_array_equal(found[key], expected[key])
    np.testing.assert_array_equal(found[f"spread/{metric}/seconds"][: len(seconds)], seconds)
    assert len(seconds) == (0 if metric == "hawq_eigenvalue" else 2)
