import shutil

import pytest

from tests.cli.command import EVERY, FEW, SMALL, TINY, works


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """Every step on a network that was trained for one epoch; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    works("train", run, "--epochs", 1)
    works("layers", run, "--model", "digits_resnet", "--data", "digits")
    minmax = ("--weights.clipping", "minmax", "--activations.clipping", "minmax")
    works("sensitivity", run, *FEW, *minmax, "--metrics", "gauss_newton")
    works("solve", run, *SMALL)
    works("evaluate", run, *EVERY, "--examples", 100)
    works("report", run)
    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Every step but the report on a network of three layers; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    works("layers", run, *TINY)
    works("sensitivity", run, *FEW, "--metrics", "gauss_newton", "squared_error")
    works("solve", run, *SMALL)
    works("evaluate", run, *EVERY, "--examples", 100)
    return run


@pytest.fixture
def run(tiny_run, tmp_path):
    """A finished run to spoil."""
    return shutil.copytree(tiny_run, tmp_path / "run")
