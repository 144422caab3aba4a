"""Eight devices, and two processes, find what one device finds."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.sensitivity.spread_out import METRICS

ROOT = pathlib.Path(__file__).parents[2]
# One of each way through the code; the others are checked by the slow test.
FEW = ("gauss_newton", "hawq_trace", "measured_loss")


def start(out, metrics, sizes, *processes, devices=1):
    """A process of its own with so many devices."""
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sensitivity.spread_out", out, ",".join(metrics), sizes]
        + [str(p) for p in processes],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*children):
    for child in children:
        text, _ = child.communicate(timeout=500)
        assert child.returncode == 0, text


def assert_same(found, expected, metrics):
    """Float32 up to rounding, relative to the largest entry of each table."""
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


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Terms on eight devices and on one, of `FEW` metrics."""
    out = tmp_path_factory.mktemp("eight") / "terms.npz"
    finish(start(out, FEW, "11", devices=8))
    return dict(np.load(out))


def test_eight_devices_find_what_one_finds(eight):
    assert eight["devices"] == 8
    assert_same(eight, eight, FEW)


def test_two_processes_find_what_one_finds(eight, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    children = [
        start(tmp_path / f"terms{i}.npz", FEW[::2], "11", address, 2, i) for i in range(2)
    ]
    finish(*children)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "terms0.npz",
        *(f"terms0.npz.{name}.spread.partial" for name in FEW[::2]),
    }
    found = dict(np.load(tmp_path / "terms0.npz"))
    assert found["devices"] == 2
    assert_same(found, eight, FEW[::2])


@pytest.mark.slow
def test_every_metric_on_eight_devices(tmp_path):
    out = tmp_path / "terms.npz"
    finish(start(out, METRICS, "16,11,2", devices=8))
    found = dict(np.load(out))
    assert_same(found, found, METRICS)
