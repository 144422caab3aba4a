"""Experiments and notebooks run as they are, on small configurations."""

import json
import pathlib

import jupytext
import nbclient
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


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda p: p.stem
)
def test_notebook_runs(path):
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert any(cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code")
