"""Labels that do not fit the network's output are refused in one sentence, by every entry."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.data.dataset import Normalization, whole_split
from jmpq.data.positions import IGNORED
from jmpq.deploy.finetune import FinetuneConfig, finetune
from jmpq.deploy.measure import Evaluator
from jmpq.formats import choice_grid
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.logits.measure import measure_superposed
from jmpq.sensitivity.metrics.measured_moves import MeasuredMoves
from jmpq.sensitivity.metrics.squared_error import SquaredError
from jmpq.sensitivity.metrics.taylor import FirstOrder
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.labels import check_labels, check_unnormalised
from jmpq.training.losses import cross_entropy, squared_error
from jmpq.training.train import train
from tests.cli.networks import Tiny

TEN = np.arange(10)
POSITIONS = np.array([[0, 1, IGNORED], [2, 0, 1]])


@pytest.mark.parametrize(
    ("labels", "output", "message"),
    [
        (TEN + 1, (10, 10), "Label 10 of example 9 .*has 10, 0 to 9, the labels have 10, 1 to"
         " 10; subtract one, labels - 1"),
        (TEN, (10, 3), "Label 9 of example 9 .*network has 3, 0 to 2, the labels have 10, 0 to"
         " 9; choose a network with as many classes"),
        (TEN, (10, 7), "Label 9 of example 9 .*network has 7.*as many classes"),
        (np.where(TEN == 4, 255, TEN), (10, 10), "Label 255 of example 4 .*leave these out"),
        (np.where(TEN == 6, -1, TEN), (10, 10), "Label -1 of example 6 .*leave these out"),
        (np.where(TEN == 6, -100, TEN), (10, 10), "Label -100 of example 6 .*leave these out"),
        (TEN[:4], (8, 10), "8 inputs and 4 labels.*one label for every example"),
        ([], (8, 10), "8 inputs and 0 labels.*one label for every example"),
        (TEN[:0], (0, 10), "0 inputs and 0 labels.*at least one example"),
        (3, (1, 10), "1 inputs and 1 labels"),
        (np.eye(10), (10, 10), r"shape \[10, 10\], expected \[10\].*one-hot over 10 classes, "
         r"the network has 10: pass labels.argmax\(-1\)"),
        (np.eye(10)[:4], (4, 3), r"one-hot over 10 classes, the network has 3: pass labels"),
        (np.full((4, 3), 1 / 3), (4, 3), r"not probabilities or logits: pass labels.argmax"),
        (TEN[:, None], (10, 10), r"shape \[10, 1\], expected \[10\].*pass labels\[:, 0\]"),
        (TEN.astype(np.float32), (10, 10), r"are float32, .*pass labels.astype\(int\)"),
        (TEN + 0.25 * (TEN == 3), (10, 10), "Label 3.25 of example 3 .*for a regression"),
        ([0.5, 1.0], (2, 10), "Label 0.5 of example 0 .*give whole numbers"),
        (TEN > 4, (10, 10), r"truth values.*labels.astype\(int\)"),
        ([[0], [1, 2]], (2, 10), "lists of different lengths.*one whole number"),
        (["cat", "dog"], (2, 10), "are list of <U3: give whole numbers"),
        ([{"a": 1}], (1, 10), "are list of object: give whole numbers"),
        (TEN, (10, 1), r"shape \[10, 1\].*two classes or more.*squared_error"),
        (TEN, (10,), r"shape \[10\].*one number an example"),
        (TEN[:2], (2, 3, 4), r"shape \[2\], expected \[2, 3\] for an output of shape"),
        (POSITIONS + 5 * (POSITIONS == 2), (2, 3, 4), "Label 7 of example 1 at position 0 "),
        (np.where(POSITIONS == 2, 255, POSITIONS), (2, 3, 4),
         r"Label 255 of example 1 at position 0 .*np.where\(labels == 255, -1, labels\)"),
        (np.array([[-1, -1, -1], [0, 1, 2]]), (2, 3, 4), "All positions of example 0 .*leave"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(labels, output, message):
    with pytest.raises(ValueError, match=message) as error:
        check_labels(labels, output, "the examples")
    assert "\n" not in str(error.value)
    assert len(re.findall(r"\.(?: |$)", str(error.value))) == 1


def test_what_is_right_comes_back_as_an_array():
    np.testing.assert_array_equal(check_labels([0, 2, 1], (3, 3), "x"), [0, 2, 1])
    np.testing.assert_array_equal(check_labels(POSITIONS, (2, 3, 3), "x"), POSITIONS)
    np.testing.assert_array_equal(check_labels(jnp.arange(3), (3, 3), "x"), [0, 1, 2])
    # Another loss knows its own targets: only their number is looked at.
    own = [[0.5, 300.0], [1.0, -2.0]]
    np.testing.assert_array_equal(check_labels(own, (2, 7), "x", classes=False), own)
    with pytest.raises(ValueError, match="3 inputs and 2 labels"):
        check_labels(own, (3, 7), "x", classes=False)


def _flat(params, x):
    return x.reshape(x.shape[0], -1) @ params["w"]


@pytest.fixture(scope="module")
def moves():
    """One dense layer, 4 inputs and 3 classes."""
    kernel = jax.random.normal(jax.random.key(0), (4, 3))
    network = Network.from_function(_flat, {"w": kernel}, jnp.zeros((1, 2, 2, 1)))
    weights = calibrate_weights(network, KernelSpec(clipping="minmax"), (2,))
    return MoveNetwork(
        network=network, quantizers=Quantizers(weights=weights, activations=None)
    )


INPUTS = np.random.default_rng(0).normal(size=(4, 2, 2, 1))
ONE_MORE = np.array([1, 2, 3, 1])


def test_analyses_refuse_labels_before_they_start(moves, tmp_path):
    partial = tmp_path / "partial"
    choices = choice_grid([2])
    batches = [(INPUTS, ONE_MORE - 1), (INPUTS, ONE_MORE)]
    with pytest.raises(ValueError, match="Label 3 of example 2 of the calibration examples"):
        analyse(moves, FirstOrder(), batches, choices, partial=partial)
    assert not partial.exists()
    with pytest.raises(ValueError, match="4 inputs and 2 labels"):
        analyse(moves, SquaredError(), [(INPUTS, ONE_MORE[:2])], choices)
    for metric in (SquaredError(), MeasuredMoves(kind="kl")):  # know no labels
        analyse(moves, metric, batches[1:], choices)
    listed = analyse(moves, FirstOrder(), [(INPUTS, [0, 1, 2, 0])], choices)
    array = analyse(moves, FirstOrder(), batches[:1], choices)
    np.testing.assert_array_equal(listed.losses, array.losses)


def test_logit_changes_are_not_measured_for_wrong_labels(moves):
    batches, choices = [(INPUTS, ONE_MORE)], choice_grid([2])
    measure_superposed(moves, batches, choices)
    with pytest.raises(ValueError, match="Label 3 of example 2"):
        measure_superposed(moves, batches, choices, loss=cross_entropy)
    with pytest.raises(ValueError, match="4 inputs and 3 labels"):
        measure_superposed(moves, [(INPUTS, ONE_MORE[:3])], choices)


def test_evaluations_refuse_labels_but_not_those_of_another_loss(moves):
    batches = [(INPUTS, ONE_MORE)]
    evaluator = Evaluator(moves.network, moves.quantizers, batches)
    with pytest.raises(ValueError, match="Label 3 of example 2"):
        evaluator.float_outcome()
    targets = [(INPUTS, np.ones((4, 3)))]
    found = Evaluator(moves.network, moves.quantizers, targets, loss=squared_error)
    assert np.isfinite(found.float_outcome().loss)


def test_training_and_fine_tuning_refuse_labels(moves):
    images = np.zeros((70, 8, 8, 1), np.uint8)
    rule = Normalization(scale=1.0, mean=(0.0,), std=(1.0,))
    split = whole_split("own", "train", images, np.full(70, 10), rule)
    with pytest.raises(ValueError, match="Label 10 of example 0 of the train split of own"):
        train(Tiny(), split)
    flat = whole_split("own", "train", np.zeros((70, 2, 2, 1), np.uint8), np.full(70, 3), rule)
    (allocation,) = [moves.allocation([0])]
    config = FinetuneConfig(distillation=0.5, correct="none", method="ste")
    with pytest.raises(ValueError, match="Label 3 of example 0 of the train split of own"):
        finetune(moves.network, moves.quantizers, allocation, flat, config)


def test_traced_losses_refuse_shapes_and_types():
    with pytest.raises(ValueError, match=r"float64\[3\].*whole numbers of shape \[\]"):
        jax.jit(cross_entropy)(jnp.zeros(3), jnp.zeros(3))


def test_a_network_that_ends_in_a_softmax_is_refused():
    z = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    for logits in (
        z,
        np.log(p),
        np.abs(z),
        np.where(p < p.max(), p, 2 * p),
        p[:, :1] / p[:, :1],
    ):
        check_unnormalised(logits, "these")
    match = r"outputs for these are probabilities.*4 classes.*leave the softmax out of the netw"
    with pytest.raises(ValueError, match=match):
        check_unnormalised(p, "these")
    with pytest.raises(ValueError, match="outputs for these are probabilities"):
        check_unnormalised(p.reshape(2, 3, 4), "these")


def test_probabilities_are_refused_where_they_are_measured():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    apply = lambda params, x: jax.nn.softmax(x @ params["w"])  # noqa: E731
    network = Network.from_function(apply, {"w": jnp.ones((3, 4)).at[0].set(2.0)}, x[:1])
    scales = calibrate_weights(network, KernelSpec(), (4,), [x])
    quantizers = Quantizers(weights=scales, activations=None)
    with pytest.raises(ValueError, match="for the examples are probabilities"):
        Evaluator(network, quantizers, [(x, np.zeros(6, int))]).float_outcome()
    Evaluator(network, quantizers, [(x, np.ones((6, 4)))], loss=squared_error).float_outcome()
