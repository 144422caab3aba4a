"""Networks in half precision, and outputs other than one of classes, through all steps."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation, bit_arrays
from jmpq.data.load import load_dataset
from jmpq.data.splits import calibration_split
from jmpq.formats import Choice
from jmpq.quantizers.scales import Quantizers
from jmpq.run import RunFolder
from jmpq.sensitivity.logits.increases import increases
from jmpq.sensitivity.table import load_arrays, load_sensitivities
from tests.cli.command import FEW, SMALL, opened, works
from tests.cli.test_errors import NEWTON, refuses
from tests.helpers import fast_logits


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


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run of `pixels` with the loss kl, and its network, scales, inputs and labels."""
    run = tmp_path_factory.mktemp("masked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quarters(patch)
        works("layers", run, "--model", "tests.cli.networks:pixels", "--data", "digits")
        metrics = ("--metrics", "measured_loss", "measured_kl", "gauss_newton", "composed")
        works("sensitivity", run, *FEW, *metrics, "--loss", "kl")
        works("solve", run, "--budget", "size_bytes=W4A8", "--first-last-bits", 0)
        works("evaluate", run, "--calibration-roles", "solution")
        works("refine", run, "--max-evaluations", 4)
        network, dataset = opened(run)
        split = calibration_split(dataset, examples=40, seed=0)[0]
    labels = split.labels[np.arange(40)]
    inputs = split.normalization(split.inputs[np.arange(40)])
    quantizers = Quantizers.from_arrays(load_arrays(run / "sensitivity.npz"))
    return run, network, quantizers, np.asarray(inputs), labels


def by_hand(network, quantizers, inputs, labels, allocation):
    """Mean KL divergence of an example, over its quarters with a label; and over all four."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        names = [layer.name for layer in network.layers]
        w_bits, a_bits = bit_arrays(names, [allocation])[0]
        bits = map(jnp.array, (w_bits, a_bits))
        q = fast_logits(network, quantizers, *bits, jnp.asarray(inputs))
        z = network.logits(jnp.asarray(inputs))
    z, q = (np.asarray(x, np.float64) for x in (z, q))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (z, q))
    each = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    counted = [x[own != -1].mean() for x, own in zip(each, labels, strict=True)]
    return float(np.mean(counted)), float(each.mean())


def test_divergences_are_means_over_the_positions_that_count(masked):
    """Where a position counts is known from labels, which the loss kl does not take."""
    run, *subject = masked
    tables = load_sensitivities(run / "sensitivity.npz")
    moves, both = tables["measured_kl"].moves, []
    for m, (layer, kind, bits) in enumerate(moves):
        if bits > 4:  # too small a divergence for float32
            continue
        alone = Allocation({layer: Choice(*((bits, 32) if kind == "w" else (32, bits)))})
        both.append(by_hand(*subject, alone))
        want = both[-1][0]
        for name in ("measured_kl", "measured_loss"):
            got = 0.5 * tables[name].second[m, m]
            assert got == pytest.approx(want, rel=1e-3)
        own = RunFolder(run).superposed
        q = (own.logits + own.changes[:, m])[None]
        by_changes = increases("kl", "kl", q, own.logits, own.targets)
        assert by_changes.mean() == pytest.approx(want, rel=1e-3)
    counted, all_four = np.transpose(both)
    assert np.abs(all_four / counted - 1).max() > 0.01  # it matters
    plan, record = RunFolder(run).plan, json.loads((run / "evaluation.json").read_text())
    for planned in plan.allocations:
        want, _ = by_hand(*subject, planned.allocation)
        if planned.name.startswith("refined/"):
            assert planned.objective_value == pytest.approx(want, rel=1e-3)
        elif planned.role == "solution":
            got = record["measured"][planned.name]["calibration"]["kl"]
            assert got == pytest.approx(want, rel=1e-3)


def test_labels_of_positions_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    run = tmp_path / "run"
    works("layers", run, "--model", "tests.cli.networks:pixels", "--data", "digits")
    match = r"labels of .* have shape \[40\], expected \[40, 2, 2\] for an output of shape"
    refuses(run, ("sensitivity", run, *FEW, *NEWTON), match)
    quarters(monkeypatch, lambda labels: np.where(labels == -1, 255, labels))
    match = r"Label 255 of example \d+ at position 1, 1 .*np.where\(labels == 255, -1, labels\)"
    refuses(run, ("sensitivity", run, *FEW, *NEWTON), match)


def test_a_softmax_at_the_end_is_refused(tmp_path):
    run = tmp_path / "run"
    works("layers", run, "--model", "tests.cli.networks:probabilities", "--data", "digits")
    match = "outputs for the calibration examples are probabilities.*leave the softmax out"
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
