"""Every step on arrays that a function of the user's returns."""

import json
import re

import numpy as np
import pytest

from jmpq.data.dataset import Dataset
from jmpq.data.digits import digits
from tests.cli import own_data
from tests.cli.command import FEW, opened, works
from tests.cli.test_errors import NEWTON, refuses

TINY = ("--model", "tests.cli.networks:tiny", "--data")
HOME = "tests.cli.own_data"


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A solved run; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "own"
    works("layers", run, *TINY, f"{HOME}:arrays")
    said = works("sensitivity", run, *FEW, *NEWTON).out
    float_line = (
        r"Float top-1 \d+\.\d\d %, loss 2\.\d+ nats on 40 calibration examples; inputs from"
    )
    assert re.search(float_line + r" 0 to 1\.\n", said)
    assert ": labels or the scale of the inputs are probably wrong.\n" in said
    works("solve", run, "--comparison", "none", "--first-last-bits", 0)
    return run


def test_steps_run_on_arrays_of_ones_own(own_run):
    said = works("evaluate", own_run, "--examples", 60).out
    assert "on the heldout split of tests.cli.own_data:arrays (its most frequent class" in said
    record = json.loads((own_run / "evaluation.json").read_text())
    assert record["splits"]["evaluation"]["dataset"] == f"{HOME}:arrays"
    network, data = opened(own_run)
    heldout = digits().heldout
    chosen = np.zeros(len(heldout), bool)
    chosen[np.random.default_rng(0).permutation(len(heldout))[:40]] = True
    rest = np.flatnonzero(~chosen)[:60]
    logits = np.asarray(network.logits(heldout.inputs[rest].astype(np.float32) / 16))
    top1 = (logits.argmax(1) == heldout.labels[rest]).mean()
    assert record["float"]["evaluation"]["top1"] == pytest.approx(top1)
    assert data.heldout.inputs.dtype == np.float32


@pytest.mark.slow
def test_training_and_files_take_arrays_of_ones_own(own_run, tmp_path):
    works("finetune", own_run, "--epochs", 1, "--training-examples", 64, "--examples", 60)
    works("export", own_run, "--format", "onnx", "--check", 60)
    works("train", tmp_path, "--data", f"{HOME}:arrays", "--epochs", 1)


def test_data_that_changed_are_noticed(own_run, monkeypatch):
    monkeypatch.setattr(own_data, "SHIFT", 0.25)
    match = "calibration examples are not those of the sensitivities: the data set has changed"
    refuses(own_run, ("evaluate", own_run), match)


def test_training_examples_that_are_not_given_are_asked_for(tmp_path):
    works("layers", tmp_path, *TINY, f"{HOME}:heldout_only")
    match = r"The data set has no training examples: pass train=\(inputs, labels\)"
    refuses(tmp_path, ("sensitivity", tmp_path, *FEW, "--calibration-from", "train"), match)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("none", "Cannot get a data set from .*'none'.*package.module:function"),
        (
            "pair",
            r"returned tuple; expected a jmpq.Dataset, .*Dataset.from_arrays\(inputs, lab",
        ),
        ("broken", "failed with KeyError: 'lost'.*called with no arguments"),
        ("fewer_labels", "597 inputs, 594 labels.*expected one of each for every example"),
        ("words", "labels of the heldout examples .* are <U21 .*: give an array of floats or"),
        ("counted_from_one", "10 outputs.* 11 classes. Its labels begin at 1: .*labels - 1"),
        ("flat", r"does not take the inputs of data set .*:flat', of shape \(1, 64\)"),
    ],
)
def test_layers_refuses_what_is_no_data_set(tmp_path, name, match):
    refuses(tmp_path, ("layers", tmp_path / "run", *TINY, f"{HOME}:{name}"), match)


def test_options_of_built_in_data_are_refused(tmp_path):
    args = ("layers", tmp_path / "run", *TINY, f"{HOME}:arrays")
    refuses(tmp_path, (*args, "--data-dir", "x"), "--data-dir is for built-in data sets")
    refuses(tmp_path, (*args, "--preprocessing", "unit"), "--preprocessing is for built-in")
    refuses(tmp_path, (*args, "--tokenizer", "x"), "--tokenizer is for built-in data sets")


@pytest.mark.parametrize(
    ("inputs", "labels", "match"),
    [
        ([1e300, 0.5], [0, 1], r"inputs of the .* have 1e\+300, which float32 does not hold"),
        (
            [0.5, np.inf],
            [0, 2**32 + 1],
            r"labels .* have 4294967297, which int32",
        ),
        ([-5e9, 1.0], np.array([2**31, 1], "u4"), r"labels .* have 2147483648, which int32"),
    ],
)
def test_numbers_that_would_wrap_or_overflow_are_refused(inputs, labels, match):
    with pytest.raises(ValueError, match=match):
        Dataset.from_arrays(np.array(inputs)[:, None], np.asarray(labels))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "one_hot",
            r"labels of the heldout split of .* are one-hot .*pass labels.argmax\(-1\)",
        ),
        ("from_one", "Label 10 of example .*subtract one, labels - 1"),
        ("undefined", "values in a batch of the heldout split .* are NaN or infinite"),
    ],
)
def test_examples_are_looked_at_as_those_of_built_in_data(tmp_path, name, match):
    works("layers", tmp_path, *TINY, f"{HOME}:{name}")
    refuses(tmp_path, ("sensitivity", tmp_path, *FEW, *NEWTON), match)


def test_hash_is_of_the_arrays_and_of_the_name():
    inputs, labels = own_data.halves()
    one = Dataset.from_arrays(inputs, labels)
    same = Dataset.from_arrays(inputs.astype(np.float32), labels.astype(np.int32))
    assert one.heldout.sha256 == same.heldout.sha256
    others = [
        Dataset.from_arrays(inputs + 1, labels),
        Dataset.from_arrays(inputs, labels[::-1]),
        one.named("mine:data"),
    ]
    assert len({data.heldout.sha256 for data in (one, *others)}) == 4
    assert one.named("mine:data").heldout.dataset == "mine:data"
    tree = Dataset.from_arrays({"a": inputs, "b": labels}, labels / 2)
    assert tree.classes == ()
    assert tree.heldout.take(np.array([4])).inputs["b"].tolist() == [labels[4]]
