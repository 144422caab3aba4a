"""Experiments and notebooks run as they are, on small configurations."""

import json
import pathlib

import jupytext
import nbclient
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_resnet20_experiment_runs_on_a_small_configuration(tmp_path):
    import jax

    from experiments import resnet20_cifar10

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = resnet20_cifar10.run(resnet20_cifar10.SMOKE, tmp_path, None)
    assert json.loads(json.dumps(result, allow_nan=False))["experiment"] == "resnet20_cifar10"
    (run,) = result["runs"].values()
    rows = {row["name"]: row for row in run["allocations"]}
    for metric in resnet20_cifar10.SMOKE.metrics:
        exact, greedy = rows[f"exact/{metric}"], rows[f"greedy/{metric}"]
        assert exact["predicted_loss"] <= greedy["predicted_loss"] * (1 + 1e-9)
        assert {"calibration", "evaluation"} <= set(exact["measured"])


def test_curvature_benchmark_runs_without_peers(tmp_path, monkeypatch):
    import jax

    from experiments import bench_curvature
    from experiments.figure_curvature import curvature_table

    monkeypatch.setattr(bench_curvature, "PEERS", ("no_such_peer",))
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = bench_curvature.run(bench_curvature.SMOKE, tmp_path, None)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert result["absent"] == ["no_such_peer"]
    run = result["threads"]["1"]
    assert {side for sides in run["parts"].values() for side in sides} == {"jmpq"}
    assert "| MPQCO table | 1 |" in curvature_table(result)
    values = {
        part: sides["jmpq"]["values"]
        for part, sides in run["parts"].items()
        if part != "forward"
    }
    # A ReLU network: within a layer the Hessian is the Gauss-Newton matrix, by two ways.
    np.testing.assert_allclose(values["exact_hessian"], values["gauss_newton"], rtol=1e-4)
    one = values["hvp"]
    for other in ("hvp_forward_over_reverse", "hvp_reverse_over_forward"):
        for name, value in values[other].items():
            assert value == pytest.approx(one[name], rel=1e-3, abs=1e-5)


def test_logits_that_differ_stop_the_benchmark():
    from experiments.bench_curvature import check_parity

    check_parity({"jmpq": {"values": [[1.0, 2.0]]}, "torch": {"values": [[1.0, 2.00001]]}})
    with pytest.raises(ValueError, match=r"logits of the two sides differ by 0.01"):
        check_parity({"jmpq": {"values": [[1.0]]}, "torch": {"values": [[1.01]]}})


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda p: p.stem
)
def test_notebook_runs(path):
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert any(cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code")
