"""The measured outcome against the network written out by hand, in NumPy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jmpq.allocation import Allocation
from jmpq.data.batches import Batch
from jmpq.deploy import measure as measured
from jmpq.deploy.measure import Evaluator, Outcome, among, greatest
from jmpq.formats import Choice
from jmpq.journal import Journal
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.training.losses import squared_error
from tests import helpers

W_BITS, A_BITS = (2, 3, 8), (3, 8)
EXAMPLES = 11
MIXED = ((2, 8, 3, 32), (8, 3, 32, 8))


@pytest.fixture(scope="module")
def network():
    return helpers.residual_cnn(3)


@pytest.fixture(scope="module")
def quantizers(network):
    inputs, _ = helpers.images(5, EXAMPLES)
    weights = KernelSpec(clipping="minmax")
    activations = InputSpec(clipping="minmax")
    return Quantizers(
        weights=calibrate_weights(network, weights, W_BITS),
        activations=calibrate_activations(
            network, activations, A_BITS, [inputs], key=jax.random.key(0)
        ),
    )


def data(size, dtype=np.float64, garbage=0.0):
    """Batches of one size; the last is padded with `garbage` of weight zero."""
    inputs, labels = (np.asarray(x) for x in helpers.images(5, EXAMPLES))
    for start in range(0, EXAMPLES, size):
        x, y = inputs[start : start + size], labels[start : start + size]
        missing = size - len(x)
        yield Batch(
            np.concatenate([x, np.full((missing, 5, 5, 2), garbage)]).astype(dtype),
            np.concatenate([y, np.zeros(missing, int)]).astype(np.int32),
            np.concatenate([np.ones(len(x)), np.zeros(missing)]).astype(np.float32),
        )


def measure(network, quantizers, w_bits, a_bits, size=EXAMPLES, garbage=0.0, **options):
    evaluator = Evaluator(network, quantizers, lambda: data(size, garbage=garbage), **options)
    return evaluator(helpers.allocations(network, (w_bits, a_bits)))


def logits_by_hand(network, quantizers, w_bits, a_bits):
    """Quantize with the calibrated scales, layer by layer, and add the input's changes."""
    inputs, labels = helpers.images(5, EXAMPLES)
    kernels, shifts = [], [jnp.zeros(())] * 4
    for i, kernel in enumerate(np.asarray(k) for k in network.kernels()):
        if w_bits[i] != 32:
            scale = np.asarray(quantizers.weights.scale[i])[W_BITS.index(w_bits[i])]
            top = 2 ** (w_bits[i] - 1) - 1
            kernel = scale * np.clip(np.round(kernel / scale), -top, top)  # last axis: output
        kernels.append(jnp.asarray(kernel))
    for i in range(4):  # later inputs depend on earlier changes
        x = np.asarray(helpers.manual_logits(network, kernels, shifts, inputs)[1][i])
        if a_bits[i] != 32:
            at = A_BITS.index(a_bits[i])
            scale = float(quantizers.activations.scale[i][at, 0])
            zero = float(quantizers.activations.zero_point[i][at, 0])
            codes = np.clip(np.round(x / scale) + zero, 0, 2 ** a_bits[i] - 1)
            shifts = [*shifts[:i], jnp.asarray(scale * (codes - zero) - x), *shifts[i + 1 :]]
    logits, _ = helpers.manual_logits(network, kernels, shifts, inputs)
    return np.asarray(logits), np.asarray(labels)


def sem(values):
    return np.sqrt(np.sum((values - values.mean()) ** 2) / (len(values) - 1) / len(values))


@pytest.mark.parametrize("bits", [MIXED, ((2,) * 4, (3,) * 4), ((3,) * 4, (32,) * 4)])
def test_outcome_is_that_of_the_network_by_hand(network, quantizers, bits):
    q, labels = logits_by_hand(network, quantizers, *bits)
    z, _ = logits_by_hand(network, quantizers, (32,) * 4, (32,) * 4)
    log_q, log_p = scipy.special.log_softmax(q, axis=1), scipy.special.log_softmax(z, axis=1)
    rows = np.arange(EXAMPLES)
    loss, before = -log_q[rows, labels], -log_p[rows, labels]
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
    correct = (q.argmax(1) == labels).astype(float)
    (got,) = measure(network, quantizers, [bits[0]], [bits[1]])
    assert got.examples == EXAMPLES
    pairs = {
        "loss": loss.mean(),
        "loss_sem": sem(loss),
        "increase": loss.mean() - before.mean(),
        "increase_sem": sem(loss - before),
        "kl": kl.mean(),
        "kl_sem": sem(kl),
        "top1": correct.mean(),
        "top1_sem": sem(correct),
        "top5": 1.0,  # there are three classes
        "top5_sem": 0.0,
        "agreement": (q.argmax(1) == z.argmax(1)).mean(),
    }
    for name, want in pairs.items():
        np.testing.assert_allclose(
            getattr(got, name), want, rtol=1e-9, atol=1e-13, err_msg=name
        )


def test_label_among_the_greatest_logits_is_that_of_a_stable_sort():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (200, 8)).astype(float)  # many are equal
    logits[:3] = np.nan
    labels = rng.integers(0, 8, 200)
    order = np.argsort(-logits, axis=1, kind="stable")
    for count in (1, 5):
        want = (order[:, :count] == labels[:, None]).any(axis=1)
        want[:3] = False
        got = among(jnp.asarray(logits), jnp.asarray(labels), count)
        np.testing.assert_array_equal(got, want)
    assert not among(jnp.full((1, 3), jnp.nan), jnp.array([0]), 5).any()


def test_greatest_logit_is_that_of_argmax_where_logits_are_finite():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (3, 50, 8)).astype(float)  # many are equal
    want = logits.argmax(axis=-1)
    logits[0, :5, 2] = np.nan
    want[0, :5] = 8  # no class
    np.testing.assert_array_equal(greatest(jnp.asarray(logits)), want)


def test_float_outcome_loses_nothing(network, quantizers):
    z, labels = logits_by_hand(network, quantizers, (32,) * 4, (32,) * 4)
    loss = -scipy.special.log_softmax(z, axis=1)[np.arange(EXAMPLES), labels]
    got = Evaluator(network, quantizers, lambda: data(4)).float_outcome()
    np.testing.assert_allclose((got.loss, got.loss_sem), (loss.mean(), sem(loss)), rtol=1e-10)
    assert (got.increase, got.increase_sem, got.kl, got.agreement) == (0, 0, 0, 1)
    assert got.top1 == (z.argmax(1) == labels).mean()
    (unquantized,) = measure(network, quantizers, [[32] * 4], [[32] * 4])
    np.testing.assert_allclose(unquantized.loss, got.loss, rtol=1e-12)
    np.testing.assert_allclose((unquantized.increase, unquantized.kl), 0, atol=1e-12)


@pytest.mark.parametrize(("size", "garbage"), [(4, 0.0), (4, 1e3), (64, np.nan), (1, 0.0)])
def test_batch_size_and_padding_do_not_matter(network, quantizers, size, garbage):
    (want,) = measure(network, quantizers, [MIXED[0]], [MIXED[1]])
    (got,) = measure(network, quantizers, [MIXED[0]], [MIXED[1]], size, garbage)
    assert got.examples == want.examples
    for name, value in want.to_json().items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=1e-9, atol=1e-13)


def random_bits(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice([*W_BITS, 32], (count, 4)), rng.choice([*A_BITS, 32], (count, 4))


def drawn(network, count, seed=0):
    return helpers.allocations(network, random_bits(count, seed))


@pytest.mark.parametrize("chunk", [1, 3, 5, 20])
def test_allocations_per_call_do_not_matter(network, quantizers, chunk):
    bits = random_bits(5)
    want = measure(network, quantizers, *bits, candidates_per_call=2)
    calls = []
    evaluator = Evaluator(network, quantizers, lambda: data(6), candidates_per_call=chunk)
    got = evaluator(
        drawn(network, 5), done=lambda index, outcome: calls.append((index, outcome))
    )
    assert calls == list(enumerate(got))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(
            list(one.to_json().values()), list(other.to_json().values()), rtol=1e-9, atol=1e-13
        )


def test_fifty_allocations_compile_once(network, quantizers):
    traces = []

    def loss(logits, label):
        traces.append(None)
        return jax.nn.logsumexp(logits) - logits[label]

    evaluator = Evaluator(network, quantizers, lambda: data(4), loss=loss)
    evaluator.float_outcome()
    evaluator(drawn(network, 1))
    before = len(traces)
    outcomes = evaluator(drawn(network, 50, seed=1))
    other = Evaluator(network, quantizers, lambda: data(4), loss=loss)  # as for another split
    other(drawn(network, 2))
    assert len(traces) == before
    assert len({outcome.loss for outcome in outcomes}) > 40


def test_bits_that_were_not_calibrated_are_refused_by_layer(network, quantizers):
    evaluator = Evaluator(network, quantizers, lambda: data(4))
    with pytest.raises(ValueError, match="'conv1': weight bits 5 were not calibrated"):
        evaluator(helpers.allocations(network, ([[2, 5, 2, 2]], [[8] * 4])))
    with pytest.raises(ValueError, match="'head': activation bits 2 were not calibrated"):
        evaluator(helpers.allocations(network, ([[2] * 4] * 2, [[8] * 4, [8, 8, 8, 2]])))
    with pytest.raises(ValueError, match="names layer 'body', which is not among stem, conv1"):
        evaluator([Allocation({"body": Choice(2)})])


def test_no_allocations_are_no_work(network, quantizers):
    def nothing():
        raise AssertionError("read data")

    assert Evaluator(network, quantizers, nothing)([]) == []


def test_a_destroyed_network_is_none_in_json(network, quantizers):
    huge = jax.tree.map(lambda x: x * 1e200, network.params)
    destroyed = dataclasses.replace(network, params=huge)
    evaluator = Evaluator(destroyed, quantizers, lambda: data(4), reference=network)
    (got,) = evaluator([Allocation({})])
    record = json.loads(json.dumps(got.to_json(), allow_nan=False))
    assert record["loss"] is None
    assert record["increase"] is None
    assert record["examples"] == EXAMPLES


def test_one_example_has_no_standard_error(network, quantizers):
    one = [Batch(*(np.asarray(x)[:1] for x in next(data(1))))]
    (got,) = Evaluator(network, quantizers, lambda: iter(one))(drawn(network, 1))
    assert got.examples == 1
    assert np.isnan(got.loss_sem)
    assert got.to_json()["loss_sem"] is None


def test_arrays_are_measured_as_batches_are(network, quantizers):
    inputs, labels = helpers.images(5, EXAMPLES)
    pairs = [(inputs[:6], labels[:6]), (inputs[6:], labels[6:])]
    (got,) = Evaluator(network, quantizers, pairs)(drawn(network, 1))
    (want,) = Evaluator(network, quantizers, lambda: data(4))(drawn(network, 1))
    assert got.examples == want.examples == EXAMPLES
    assert got.kl == pytest.approx(want.kl, rel=1e-9)
    assert (got.top1, got.agreement) == (want.top1, want.agreement)


def test_what_is_no_batch_of_examples_is_refused_in_one_line(network, quantizers):
    inputs, labels = helpers.images(5, EXAMPLES)

    def refused(batches, match, **options):
        with pytest.raises(ValueError, match=match) as error:
            Evaluator(network, quantizers, batches, **options)(drawn(network, 1))
        assert "\n" not in str(error.value)

    refused([], "no examples to measure on")
    refused([(inputs, None)], "labels of the examples are NoneType")
    refused(
        [(inputs[..., :1], labels)], r"does not take the examples, of shape \(11, 5, 5, 1\)"
    )
    infinite = dataclasses.replace(
        network, params=jax.tree.map(lambda x: x * 1e200, network.params)
    )
    refused([(inputs, labels)], "logits are NaN or infinite for 11 of 11", reference=infinite)
    (listed,) = Evaluator(network, quantizers, [(inputs, labels.tolist())])(drawn(network, 1))
    (array,) = Evaluator(network, quantizers, [(inputs, labels)])(drawn(network, 1))
    assert listed == array


def test_layers_that_an_allocation_does_not_name_stay_unquantized(network, quantizers):
    named = Allocation({"head": Choice(3, 8), "stem": Choice(2)})
    every = ((2, 32, 32, 3), (32, 32, 32, 8))
    (got,) = Evaluator(network, quantizers, lambda: data(EXAMPLES))([named])
    (want,) = measure(network, quantizers, [every[0]], [every[1]])
    assert got == want


def test_a_call_runs_the_allocations_it_is_asked_for_and_no_others(network, quantizers):
    seen = []

    def loss(z, label):
        jax.debug.callback(lambda _: seen.append(1), z)
        return (z[label] - 1.0) ** 2

    evaluator = Evaluator(network, quantizers, lambda: data(6), loss=loss)
    evaluator.reference()
    jax.effects_barrier()
    seen.clear()
    evaluator(drawn(network, 3))
    jax.effects_barrier()
    assert len(seen) == 3 * 12  # two batches of six rows, padding included


def test_float_logits_are_kept_and_give_the_same_outcomes(
    network, quantizers, tmp_path, monkeypatch
):
    def kept():
        return Evaluator(
            network,
            quantizers,
            lambda: data(6),
            candidates_per_call=2,
            journal=Journal(tmp_path / "store", "of"),
        )

    want = kept()(drawn(network, 2))
    monkeypatch.setattr(measured, "_float_logits", None)
    assert kept()(drawn(network, 2)) == want
    float_loss = kept().float_outcome().loss
    np.testing.assert_allclose(float_loss, want[0].loss - want[0].increase, rtol=1e-12)


def test_float_logits_beyond_the_limit_are_not_kept(network, quantizers, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "REFERENCE_BYTES", 6 * 3 * 8)  # one of two batches
    journal = Journal(tmp_path / "store", "of")
    Evaluator(network, quantizers, lambda: data(6), journal=journal).reference()
    assert Journal(tmp_path / "store", "of").keys == ["float logits 6 0"]


@pytest.mark.parametrize("count", [1, 3, 9])
def test_fewer_or_more_labels_than_inputs_are_refused_in_one_line(network, quantizers, count):
    ((x, labels),) = [(b.inputs, b.labels) for b in data(6)][:1]
    labels = np.resize(labels, count)
    with pytest.raises(ValueError, match=rf"There are 6 inputs and {count} labels in the ex"):
        Evaluator(network, quantizers, [(x, labels)]).float_outcome()


def test_a_loss_that_is_none_of_one_example_is_refused(network, quantizers):
    def by_class(logits, label):
        return logits

    with pytest.raises(
        ValueError, match=r"Loss 'by_class' returned float\d+\[\d+\]; expected one"
    ):
        Evaluator(network, quantizers, lambda: data(4), loss=by_class).float_outcome()
    match = r"Loss 'squared_error' failed .*target has shape \[\] and its output \[\d+\]"
    with pytest.raises(ValueError, match=match):
        Evaluator(network, quantizers, lambda: data(4), loss=squared_error).float_outcome()


def test_an_outcome_without_classes_prints_none():
    outcome = Outcome(
        examples=3, loss=1.0, loss_sem=0.1, increase=0.2, increase_sem=0.1,
        kl=np.nan, kl_sem=np.nan, top1=np.nan, top1_sem=np.nan, top5=np.nan, top5_sem=np.nan,
        agreement=np.nan,
    )  # fmt: skip
    assert "nan" not in repr(outcome)
    assert "loss 1 ± 0.1, increase 0.2 ± 0.1 nats" in repr(outcome)
