"""Corrected outputs against linen's own batch statistics, and by their means."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.data.batches import Batch
from jmpq.deploy.correction import corrected_logits, find_corrections, output_moments
from jmpq.deploy.measure import Evaluator
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.fake_quant import quantize_kernel, quantized_output
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.training.losses import cross_entropy
from tests import helpers
from tests.helpers import fast_logits

W_BITS, A_BITS = jnp.array([2, 3, 2, 4]), jnp.array([32, 4, 4, 32])
FLOAT = jnp.full(4, 32)


@pytest.fixture(scope="module")
def inputs():
    return helpers.images(5, 12)[0]


@pytest.fixture(scope="module")
def network():
    return helpers.residual_cnn(3)


@pytest.fixture(scope="module")
def quantizers(network, inputs):
    spec = InputSpec(clipping="minmax")
    return Quantizers(
        weights=calibrate_weights(network, KernelSpec(), (2, 3, 4)),
        activations=calibrate_activations(network, spec, [4], [inputs], key=jax.random.key(0)),
    )


def corrections(network, quantizers, inputs, kind, w_bits=W_BITS, a_bits=A_BITS):
    moments = output_moments(network, inputs)
    return find_corrections(network, quantizers, w_bits, a_bits, inputs, moments, kind)


def outputs(network, at_site, inputs):
    """Every site's output, and the logits."""
    found = []

    def keep(site, x, op):
        found.append(at_site(site, x, op))
        return found[-1]

    logits = network.run(inputs, keep)
    return [np.asarray(y).reshape(-1, y.shape[-1]) for y in found], logits


@pytest.mark.parametrize("kind", ["bias", "batch_norm"])
def test_every_channel_has_the_mean_that_it_had(network, quantizers, inputs, kind):
    found = corrections(network, quantizers, inputs, kind)

    def quantized(site, x, op):
        y = quantized_output(network, quantizers, W_BITS, A_BITS, site, x, op)
        return found[site.index].gain * y + found[site.index].shift

    want, _ = outputs(network, lambda site, x, op: op(x), inputs)
    got, logits = outputs(network, quantized, inputs)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one.mean(0), other.mean(0), atol=1e-12)
        if kind == "batch_norm":
            np.testing.assert_allclose(one.std(0), other.std(0), rtol=1e-3)
    np.testing.assert_allclose(
        corrected_logits(network, quantizers, W_BITS, A_BITS, inputs, found), logits
    )
    plain = fast_logits(network, quantizers, W_BITS, A_BITS, inputs)
    assert float(jnp.abs(plain - logits).max()) > 1e-3


def test_moments_of_the_examples_are_those_that_batch_normalisation_estimates_again(inputs):
    """Linen's training mode, on quantized kernels, takes the statistics of the batch."""
    module, network = helpers.ResidualCNN(), helpers.residual_cnn(3)

    def train(params, statistics):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return module.apply(
                {"params": params, "batch_stats": statistics},
                inputs,
                train=True,
                mutable=["batch_stats"],
            )

    old = network.state["batch_stats"]
    _, new = train(network.params, old)
    own = jax.tree.map(lambda a, b: (b - 0.99 * a) / 0.01, old, new["batch_stats"])
    variables = {"params": network.params, "batch_stats": own}
    network = Network.from_linen(module, variables, inputs[:1])
    found = Quantizers(
        weights=calibrate_weights(network, KernelSpec(), (2, 3, 4)), activations=None
    )
    kernels = [
        quantize_kernel(network, i, k, W_BITS[i], found.weights)
        for i, k in enumerate(network.kernels())
    ]
    y, _ = train(network.with_kernels(kernels), own)
    z, _ = train(network.params, own)
    # No batch normalisation follows the head: its own moments, by hand.
    y, z = np.asarray(y), np.asarray(z)
    want = (y - y.mean(0)) * np.sqrt((z.var(0) + 1e-5) / (y.var(0) + 1e-5)) + z.mean(0)
    got = corrected_logits(
        network,
        found,
        W_BITS,
        FLOAT,
        inputs,
        corrections(network, found, inputs, "batch_norm", a_bits=FLOAT),
    )
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["bias", "batch_norm"])
def test_nothing_quantized_is_nothing_corrected(network, quantizers, inputs, kind):
    found = corrections(network, quantizers, inputs, kind, FLOAT, FLOAT)
    for correction in found.values():
        np.testing.assert_allclose(correction.gain, 1, rtol=1e-12)
        np.testing.assert_allclose(correction.shift, 0, atol=1e-12)


def test_embeddings_are_left_as_they_are():
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in [("e", (7, 4)), ("w", (4, 3))]}
    network = Network.from_function(
        lambda p, x: p["e"][x].mean(1) @ p["w"], params, jnp.zeros((2, 5), int)
    )
    tokens = jnp.asarray(rng.integers(0, 7, (8, 5)))
    found = Quantizers(weights=calibrate_weights(network, KernelSpec(), [2]), activations=None)
    bits = jnp.array([2, 32])
    got = corrections(network, found, tokens, "bias", bits, jnp.array([32, 32]))
    assert list(got) == [1]  # the site of the product


@pytest.mark.parametrize("kind", ["bias", "batch_norm"])
def test_the_evaluator_corrects_every_allocation_by_itself(network, quantizers, inputs, kind):
    x, labels = helpers.images(6, 7)
    data = lambda: iter([Batch(np.asarray(x), np.asarray(labels), np.ones(7, np.float32))])  # noqa: E731
    evaluator = Evaluator(
        network, quantizers, data, correct=kind, examples=inputs, candidates_per_call=2
    )
    w_bits = np.array([[2, 3, 2, 4], [4, 4, 4, 4], [3, 2, 32, 2]])
    a_bits = np.array([[32, 4, 4, 32], [4, 4, 4, 4], [32, 32, 32, 32]])
    allocations = helpers.allocations(network, (w_bits, a_bits))
    outcomes = evaluator(allocations)
    for w, a, outcome in zip(jnp.array(w_bits), jnp.array(a_bits), outcomes, strict=True):
        own = corrections(network, quantizers, inputs, kind, w, a)
        logits = corrected_logits(network, quantizers, w, a, x, own)
        loss = jax.vmap(cross_entropy)(logits, labels).mean()
        np.testing.assert_allclose(outcome.loss, loss, rtol=1e-9)
    uncorrected = Evaluator(network, quantizers, data)(allocations)
    assert all(abs(a.loss - b.loss) > 1e-6 for a, b in zip(outcomes, uncorrected, strict=True))
    assert dataclasses.asdict(evaluator.float_outcome())["increase"] == 0


def test_correction_without_examples_is_refused(network, quantizers):
    with pytest.raises(ValueError, match="correct='bias' compares layers on calibration"):
        Evaluator(network, quantizers, lambda: iter([]), correct="bias")
