"""Bits that are added are computed alone, to the numbers of computing all at once."""

import itertools

import jax
import numpy as np
import pytest

from jmpq.data.stream import Stream
from jmpq.formats import choice_grid
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.quantizers.widths import restricted
from jmpq.sensitivity import batch_terms
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.by_width import only
from jmpq.sensitivity.metrics.hawq_eigenvalue import HawqEigenvalue
from jmpq.sensitivity.metrics.hawq_trace import HawqTrace
from jmpq.sensitivity.metrics.output_fisher import OutputFisher
from jmpq.sensitivity.metrics.squared_error import SquaredError
from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, FirstOrder, GaussNewton
from jmpq.sensitivity.moves import MoveNetwork
from tests import helpers

SLOW = pytest.mark.slow
FEW, ALL = ((2, 8), (8,)), ((2, 4, 8), (4, 8))
FIELDS = ("first", "second", "batch_first", "batch_second", "losses")


@pytest.fixture(scope="module")
def moves():
    network = helpers.residual_cnn(1)
    inputs, _ = helpers.images(1, 8)
    own = Quantizers(
        weights=calibrate_weights(network, KernelSpec(clipping="minmax"), ALL[0]),
        activations=calibrate_activations(
            network, InputSpec(clipping="minmax"), ALL[1], [inputs], key=jax.random.key(0)
        ),
    )
    return MoveNetwork(network=network, quantizers=own)


@pytest.fixture(scope="module")
def data():
    inputs, labels = helpers.images(2, 7)
    return [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])]


def few(moves):
    own = restricted(moves.quantizers, *FEW)
    return MoveNetwork(network=moves.network, quantizers=own)


@pytest.mark.parametrize(
    "metric",
    [
        GaussNewton(),
        EmpiricalFisher(),
        SquaredError(),
        pytest.param(GaussNewton(changes="difference"), marks=SLOW),
        pytest.param(GaussNewton(class_samples=2), marks=SLOW),
        pytest.param(FirstOrder(), marks=SLOW),
        pytest.param(OutputFisher(), marks=SLOW),
        pytest.param(HawqTrace(), marks=SLOW),
        pytest.param(HawqEigenvalue(), marks=SLOW),
    ],
    ids=lambda metric: metric.about.name + str(getattr(metric, "class_samples", "")),
)
def test_added_bits_give_the_numbers_of_all_at_once(moves, data, tmp_path, monkeypatch, metric):
    want = analyse(moves, metric, data, choice_grid(*ALL))
    kept = {"partial": tmp_path / "partial", "of": {"network": "this"}}
    before = analyse(few(moves), metric, data, choice_grid(*FEW), **kept)
    made = []

    def counted(network, widths):
        made.append([(width.kind, width.bits) for width in widths])
        return only(network, widths)

    monkeypatch.setattr("jmpq.sensitivity.by_width.only", counted)
    found = analyse(moves, metric, data, choice_grid(*ALL), **kept)
    assert made == [[("w", 4), ("a", 4)]]
    for field in FIELDS:
        scale = np.abs(getattr(want, field)).max() or 1.0
        np.testing.assert_allclose(
            getattr(found, field), getattr(want, field), rtol=1e-12, atol=1e-14 * scale
        )
    if want.sampling_sem is not None:
        np.testing.assert_allclose(found.sampling_sem, want.sampling_sem, rtol=1e-10)
    other = Stream((4, 3), lambda index: data[0])  # not analysed: the losses stay
    again = analyse(few(moves), metric, other, choice_grid(*FEW), **kept)
    np.testing.assert_array_equal(again.losses, before.losses)


def test_an_interruption_while_bits_are_added_leads_to_the_same_arrays(moves, data, tmp_path):
    def run(at, name):
        kept = {"partial": tmp_path / name, "of": {}}
        analyse(few(moves), GaussNewton(), data, choice_grid(*FEW), **kept)
        count = itertools.count()

        def interrupt(done, total):
            if next(count) == at:
                raise KeyboardInterrupt

        args = (moves, GaussNewton(), data, choice_grid(*ALL))
        if at is not None:
            with pytest.raises(KeyboardInterrupt):
                analyse(*args, **kept, progress=interrupt)
        return analyse(*args, **kept)

    want, found = run(None, "whole"), run(1, "cut")
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(found, field), getattr(want, field))


def test_other_scales_of_the_same_bits_are_other_moves(moves, data, tmp_path):
    kept = {"partial": tmp_path / "partial", "of": {}}
    analyse(few(moves), SquaredError(), data, choice_grid(*FEW), **kept)
    weights = calibrate_weights(moves.network, KernelSpec(clipping="mse"), (2, 8))
    other = Quantizers(weights=weights, activations=few(moves).quantizers.activations)
    other = MoveNetwork(network=moves.network, quantizers=other)
    found = analyse(other, SquaredError(), data, choice_grid(*FEW), **kept)
    want = analyse(other, SquaredError(), data, choice_grid(*FEW))
    np.testing.assert_allclose(found.second, want.second, rtol=1e-12)
    back = analyse(few(moves), SquaredError(), data, choice_grid(*FEW), **kept)
    first = analyse(few(moves), SquaredError(), data, choice_grid(*FEW))
    np.testing.assert_allclose(back.second, first.second, rtol=1e-12)


def test_changes_beyond_the_limit_are_not_kept(moves, data, tmp_path, monkeypatch):
    sizes = {}
    for limit in (2**30, 0):
        monkeypatch.setattr(batch_terms, "STORED_BYTES", limit)
        path = tmp_path / str(limit)
        sizes[limit] = analyse(moves, EmpiricalFisher(), data, choice_grid(*ALL), partial=path)
        assert (b'"changes"' in path.read_bytes()) == (limit > 0)
    np.testing.assert_array_equal(sizes[0].losses, sizes[2**30].losses)
