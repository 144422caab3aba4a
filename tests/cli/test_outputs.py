"""Networks in half precision, and outputs other than one of classes, through all steps."""

import dataclasses
import json

import numpy as np
import pytest

from jmpq.data.load import load_dataset
from tests.cli.command import FEW, SMALL, works
from tests.cli.test_errors import NEWTON, refuses


def all_steps(run, name, metrics=("gauss_newton", "composed"), loss=()):
    works("layers", run, "--model", f"tests.cli.networks:{name}", "--data", "digits")
    works("sensitivity", run, *FEW, "--metrics", *metrics, *loss)
    works("solve", run, *SMALL)
    works("evaluate", run, "--examples", 60)
    works("report", run)
    return json.loads((run / "evaluation.json").read_text())


@pytest.mark.parametrize("name", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_goes_through_all_steps(tmp_path, name):
    record = all_steps(tmp_path / "run", name)
    found = [split["kl"] for each in record["measured"].values() for split in each.values()]
    assert found
    assert min(found) >= 0


def quarters(monkeypatch, change=lambda labels: labels):
    """Digits with the label of every quarter; the last one of odd digits does not count."""

    def labelled(*args, **options):
        data = load_dataset(*args, **options)

        def read(source):
            split = data.read(source)
            labels = np.repeat(split.labels, 4).reshape(-1, 2, 2)
            labels[split.labels % 2 == 1, 1, 1] = -1
            return dataclasses.replace(split, labels=change(labels))

        return dataclasses.replace(data, read=read)

    monkeypatch.setattr("jmpq.run.network.load_dataset", labelled)


@pytest.mark.slow
def test_positions_go_through_all_steps(tmp_path, monkeypatch):
    quarters(monkeypatch)
    record = all_steps(tmp_path / "run", "pixels")
    outcome = record["float"]["evaluation"]
    assert 0 < outcome["top1"] < 1
    assert outcome["kl"] == 0


def test_labels_of_positions_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    run = tmp_path / "run"
    works("layers", run, "--model", "tests.cli.networks:pixels", "--data", "digits")
    match = r"labels of .* have shape \[40\], expected \[40, 2, 2\] for an output of shape"
    refuses(run, ("sensitivity", run, *FEW, *NEWTON), match)
    quarters(monkeypatch, lambda labels: np.where(labels == -1, 255, labels))
    match = r"Label 255 of example \d+ at position 1, 1 .*np.where\(labels == 255, -1, labels\)"
    refuses(run, ("sensitivity", run, *FEW, *NEWTON), match)


def test_one_number_an_example_takes_a_loss_of_its_own(tmp_path):
    run = tmp_path / "run"
    works("layers", run, "--model", "tests.cli.networks:number", "--data", "digits")
    match = r"output has shape \[40\] .*one number an example.*squared_error"
    refuses(run, ("sensitivity", run, *FEW, *NEWTON), match)
    own = ("--loss", "squared_error")
    match = "Metric 'measured_kl' is a KL divergence of class probabilities.*work: composed"
    refuses(run, ("sensitivity", run, *FEW, "--metrics", "measured_kl", *own), match)


@pytest.mark.slow
def test_one_number_an_example_goes_through_all_steps(tmp_path):
    record = all_steps(tmp_path / "all", "number", loss=("--loss", "squared_error"))
    assert record["float"]["evaluation"]["kl"] is None
    assert record["float"]["evaluation"]["top1"] is None
