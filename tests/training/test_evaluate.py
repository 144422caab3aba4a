import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.data.dataset import Normalization, whole_split
from jmpq.training.evaluate import evaluate, evaluate_logits, logits


def split(examples=11, classes=3):
    rng = np.random.default_rng(0)
    return whole_split(
        "toy",
        "heldout",
        rng.integers(0, 256, (examples, 2, 2, 1), dtype=np.uint8),
        np.arange(examples) % classes,
        Normalization(scale=255.0, mean=(0.5,), std=(0.25,)),
    )


def linear(params, inputs):
    return inputs.reshape(len(inputs), -1) @ params


PARAMS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)


@pytest.mark.parametrize("batch_size", [3, 4, 11, 100])
def test_means_and_standard_errors_equal_dense_ones_whatever_the_batch(batch_size):
    data = split()
    x = ((data.inputs / 255.0 - 0.5) / 0.25).reshape(11, 4)
    z = x @ np.asarray(PARAMS, np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    losses = -np.log(p[np.arange(11), data.labels])
    right = z.argmax(1) == data.labels
    got = evaluate(linear, PARAMS, data, batch_size=batch_size)
    assert got.examples == 11
    want = [losses.mean(), losses.std(ddof=1) / 11**0.5, right.mean()]
    np.testing.assert_allclose([got.loss, got.loss_sem, got.top1], want, rtol=1e-5)
    assert got.top1_sem == pytest.approx((right.mean() * (1 - right.mean()) / 10) ** 0.5)
    np.testing.assert_allclose(
        logits(linear, PARAMS, data, batch_size=batch_size), z, rtol=1e-4, atol=1e-5
    )
    assert got.record()["loss"] == got.loss


def test_one_compilation_serves_all_batches_and_parameters():
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(linear, n=1)
    for scale in range(3):
        evaluate(counted, PARAMS * jnp.float32(scale), split(), batch_size=4)


def test_single_example_has_no_standard_error():
    assert np.isnan(evaluate(linear, PARAMS, split(1)).loss_sem)


def test_logits_that_are_not_finite_are_counted():
    z = np.zeros((4, 3), np.float32)
    z[1, 0], z[2, 2] = np.nan, np.inf
    with pytest.raises(ValueError, match="logits of 2 of 4 examples are NaN or infinite"):
        evaluate_logits(z, np.zeros(4, np.int32))


def test_more_classes_than_logits():
    with pytest.raises(
        ValueError, match=r"Label 4 of example 4 .*the network has 3, 0 to 2, the labels have 5"
    ):
        evaluate(linear, PARAMS, split(classes=5))


def test_apply_that_does_not_return_a_row_per_input():
    with pytest.raises(ValueError, match=r"returned shape \(12,\) for 4 inputs"):
        logits(lambda p, x: linear(p, x).ravel(), PARAMS, split(), batch_size=4)


def test_examples_count_alike_however_many_of_their_positions_count():
    z = np.random.default_rng(2).normal(size=(2, 3, 4))
    labels = np.array([[0, -1, -1], [3, 1, 2]])
    nats = -z + np.log(np.exp(z).sum(-1, keepdims=True))
    first, second = nats[0, 0, 0], np.mean([nats[1, t, c] for t, c in enumerate(labels[1])])
    got = evaluate_logits(z, labels)
    assert got.loss == pytest.approx((first + second) / 2, rel=1e-12)
    assert got.loss_sem == pytest.approx(abs(first - second) / 2, rel=1e-9)
    best = z.argmax(-1) == labels
    assert got.top1 == pytest.approx((best[0, 0] + best[1].mean()) / 2)
