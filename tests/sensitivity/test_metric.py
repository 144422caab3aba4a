"""The loop over batches: interruptions, weights of batches, errors; by a stand-in metric."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.data.batches import check_pairs
from jmpq.formats import choice_grid
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.metric import About, Terms
from jmpq.sensitivity.metrics.by_name import TITLES, MetricName, make_metric
from jmpq.sensitivity.metrics.hawq_eigenvalue import QBert
from jmpq.sensitivity.metrics.measured_moves import MeasuredMoves
from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, ExactHessian, GaussNewton
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy, smoothed_cross_entropy
from tests import helpers

CHOICES = choice_grid((2, 4), (8,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Means:
    """Terms that are plain means over examples: of x₀ and of x₀² on the diagonal."""

    power: int = 2
    whole: bool = False  # a matrix, not only its diagonal
    poison: int | None = None  # move whose term is NaN
    use_first: bool = True

    @property
    def about(self):
        return About(name="means", use_first=self.use_first, additive=False)

    def __call__(self, moves, inputs, targets, key):
        x = inputs[:, 0, 0, 0]
        factor = jnp.arange(1, len(moves.moves) + 1, dtype=x.dtype)
        if self.poison is not None:
            factor = factor.at[self.poison].set(jnp.nan)
        second = factor * (x**self.power).mean()
        second = second[:, None] * factor[None, :] if self.whole else second
        return Terms(factor * x.mean(), second)


@pytest.fixture(scope="module")
def moves():
    network = helpers.residual_cnn(1)
    inputs, _ = helpers.images(1)
    return MoveNetwork(
        network=network,
        quantizers=Quantizers(
            weights=calibrate_weights(network, KernelSpec(clipping="minmax"), (2, 4)),
            activations=calibrate_activations(
                network,
                InputSpec(clipping="minmax"),
                (8,),
                [inputs],
                key=jax.random.key(0),
            ),
        ),
    )


@pytest.fixture
def data():
    """Batches of 4, 4, 4 and 2 examples."""
    inputs, labels = helpers.images(2, 14)
    return [(inputs[i : i + 4], labels[i : i + 4]) for i in range(0, 14, 4)]


class Bar:
    """A progress bar that remembers its moves and interrupts at one of them."""

    def __init__(self, interrupt=None):
        self.done, self.interrupt = [], interrupt

    def __call__(self, done, total):
        self.done.append(done)
        if done == self.interrupt:
            raise KeyboardInterrupt


def arrays(found):
    return {k: v for k, v in vars(found).items() if isinstance(v, np.ndarray)}


# Compiled as a whole; in parts that the host puts together; on the host alone.
LOOPS = [GaussNewton(), ExactHessian(), QBert(), MeasuredMoves(pairs="all"), Means()]


@pytest.mark.parametrize("metric", LOOPS, ids=lambda metric: metric.about.name)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_interrupted_analysis_goes_on_to_the_same_result(moves, data, tmp_path, metric, at):
    partial = tmp_path / "partial"
    whole = analyse(moves, metric, data, CHOICES)
    with pytest.raises(KeyboardInterrupt):
        analyse(moves, metric, data, CHOICES, partial=partial, progress=Bar(at))
    seconds = helpers.batch_seconds(partial)
    assert len(seconds) == at
    rest = Bar()
    found = analyse(moves, metric, data, CHOICES, partial=partial, progress=rest)
    assert rest.done == list(range(at, 5))
    assert found.provenance["batch_seconds"][:at] == seconds  # not computed again
    assert arrays(found).keys() == arrays(whole).keys()
    for name, value in arrays(found).items():
        np.testing.assert_array_equal(value, arrays(whole)[name])
    np.testing.assert_array_equal(found.losses, whole.losses)
    np.testing.assert_array_equal(found.sem, whole.sem)
    assert [path.name for path in tmp_path.iterdir()] == ["partial"]


@pytest.mark.parametrize(
    "change",
    [
        {"metric": Means(power=4)},
        {"metric": GaussNewton()},
        {"seed": 1},
        {"choices": choice_grid((2, 4), (8, 32))},
        {"provenance": {"weights_sha256": "other"}},
        {"sizes": [4, 4, 3, 3]},
    ],
)
def test_partial_file_of_another_analysis_is_not_used(moves, data, tmp_path, change):
    options = {"metric": Means(), "choices": CHOICES} | change
    partial = tmp_path / "partial"
    analyse(moves, Means(), data, CHOICES, partial=partial)
    if sizes := options.pop("sizes", None):
        inputs, labels = (jnp.concatenate(x) for x in zip(*data, strict=True))
        ends = np.cumsum(sizes).tolist()
        cut = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        data = [(inputs[s], labels[s]) for s in cut]
    bar, metric, choices = Bar(), options.pop("metric"), options.pop("choices")
    analyse(moves, metric, data, choices, partial=partial, progress=bar, **options)
    assert bar.done == [0, 1, 2, 3, 4]


def test_options_are_told_apart_by_name_not_by_address(moves, data):
    """A function's address differs from process to process: nothing could be resumed."""
    found = analyse(moves, GaussNewton(), data[:1], CHOICES)
    assert " at 0x" not in repr(found.provenance)
    assert "cross_entropy" in repr(found.provenance)


def test_a_loss_may_be_partial_or_an_object_and_two_lambdas_are_two(moves, data, tmp_path):
    smoothed = functools.partial(smoothed_cross_entropy, smoothing=0.1)
    assert analyse(moves, GaussNewton(loss=smoothed), data[:1], CHOICES).losses.min() >= 0
    journal = {"partial": tmp_path / "journal", "of": {"network": 1}}
    once, twice = (
        analyse(moves, EmpiricalFisher(loss=loss), data[:1], CHOICES, **journal).losses
        for loss in (
            lambda z, t: cross_entropy(z, t),
            lambda z, t: 2 * cross_entropy(z, t),
        )
    )
    np.testing.assert_allclose(twice, 4 * once, rtol=1e-9)


def cut(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("spoil", "kept"), [(cut, 1), (lambda data: b"", 0), (lambda data: b"no journal", 0)]
)
def test_of_a_spoilt_partial_file_whole_batches_are_kept(moves, data, tmp_path, spoil, kept):
    partial = tmp_path / "partial"
    whole = analyse(moves, Means(), data, CHOICES, partial=partial)
    partial.write_bytes(spoil(partial.read_bytes()))
    again = Bar()
    found = analyse(moves, Means(), data, CHOICES, partial=partial, progress=again)
    assert again.done == list(range(kept, 5))
    np.testing.assert_array_equal(found.losses, whole.losses)


def test_unequal_batches_count_by_their_examples(moves, data):
    found = analyse(moves, Means(), data, CHOICES)
    x = np.concatenate([inputs for inputs, _ in data])[:, 0, 0, 0]
    factor = np.arange(1, 13)  # 4 layers, moves w2 w4 a8
    np.testing.assert_allclose(found.first, factor * x.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.second, factor * np.square(x).mean(), rtol=1e-12)
    both = np.array([[[3 * i + 1 + c, 3 * i + 3] for c in range(2)] for i in range(4)]).sum(2)
    want = both * (x.mean() + 0.5 * np.square(x).mean())
    np.testing.assert_allclose(found.losses, want, rtol=1e-12)


def test_a_matrix_is_added_up_over_the_moves_of_a_choice(moves, data):
    found = analyse(moves, Means(whole=True, use_first=False), data, CHOICES)
    x = np.concatenate([inputs for inputs, _ in data])[:, 0, 0, 0]
    both = np.array([[3 * i + 1 + c + 3 * i + 3 for c in range(2)] for i in range(4)])
    np.testing.assert_allclose(found.losses, 0.5 * both**2 * np.square(x).mean(), rtol=1e-12)


def test_standard_error_is_that_of_a_weighted_mean_of_batches(moves, data):
    found = analyse(moves, Means(), data, CHOICES)
    sizes = np.array([4, 4, 4, 2])
    each = []
    for inputs, _ in data:
        x = np.asarray(inputs)[:, 0, 0, 0]
        each.append((1 + 3) * (x.mean() + 0.5 * np.square(x).mean()))  # stem, W2A8
    mean = np.sum(sizes * each) / 14
    want = np.sqrt(4 / 3 * np.sum((sizes / 14) ** 2 * (np.array(each) - mean) ** 2))
    np.testing.assert_allclose(found.sem[0, 0], want, rtol=1e-12)
    equal = analyse(moves, Means(), data[:3], CHOICES)
    np.testing.assert_allclose(
        equal.sem[0, 0], np.std(each[:3], ddof=1) / np.sqrt(3), rtol=1e-12
    )
    assert np.isnan(analyse(moves, Means(), data[:1], CHOICES).sem).all()


def test_nan_is_refused_by_layer_and_leaves_no_file(moves, data, tmp_path):
    partial = tmp_path / "partial"
    metric = Means(poison=4)  # conv1's second weight move
    with pytest.raises(ValueError, match=r"'means' is NaN or infinite at layer 'conv1' \(w4\)"):
        analyse(moves, metric, data, CHOICES, partial=partial)
    assert list(tmp_path.iterdir()) == []


def test_nan_inputs_are_named_before_any_layer(moves, data):
    spoilt = [(inputs * jnp.nan, labels) for inputs, labels in data]
    with pytest.raises(
        ValueError, match=r"calibration examples are NaN or infinite. Check the"
    ):
        analyse(moves, Means(), spoilt, CHOICES)


def test_what_is_no_list_of_pairs_is_refused(moves, data):
    inputs, labels = data[0]
    for wrong in ((inputs, labels), (inputs[:2], labels[:2]), inputs, [inputs]):
        with pytest.raises(ValueError, match=r"pass a list of \(inputs, labels\)"):
            check_pairs(wrong)
    with pytest.raises(ValueError, match="does not take the calibration examples, of shape"):
        analyse(moves, Means(), [(inputs[..., :1], labels)], CHOICES)


def test_nothing_to_analyse_is_refused(moves, data):
    with pytest.raises(ValueError, match="Nothing to analyse: 0 batches, 12 moves"):
        analyse(moves, Means(), [], CHOICES)
    weights = calibrate_weights(moves.network, KernelSpec(), ())
    none = MoveNetwork(
        network=moves.network, quantizers=Quantizers(weights=weights, activations=None)
    )
    with pytest.raises(ValueError, match=r"4 batches, 0 moves. Give calibration examples"):
        analyse(none, Means(), data, choice_grid((32,)))


def test_every_metric_goes_by_its_name():
    assert set(TITLES) == set(typing.get_args(MetricName))
    names = [name for name in typing.get_args(MetricName) if name != "composed"]
    assert [make_metric(name).about.name for name in names] == names
    with pytest.raises(ValueError, match="'composed' is made of logit changes"):
        make_metric("composed")
