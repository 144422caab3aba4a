import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jmpq.allocation import Allocation
from jmpq.data.batches import batches
from jmpq.data.dataset import TrimPadding, whole_split
from jmpq.deploy.similarity import SimilarityEvaluator, outcome_of
from jmpq.formats import Choice
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.zoo.bert import Bert
from tests import helpers
from tests.helpers import fast_logits
from tests.zoo import bert_reference


def test_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 40) / 5
    reference = labels + rng.normal(0, 0.3, 40)
    found = reference + rng.normal(0, 0.2, 40)
    outcome = outcome_of(found, reference, labels)
    spearman = [scipy.stats.spearmanr(x, labels).statistic for x in (reference, found)]
    assert outcome.spearman == pytest.approx(spearman[1], abs=1e-12)
    assert outcome.drop == pytest.approx(spearman[0] - spearman[1], abs=1e-12)
    assert outcome.pearson == pytest.approx(np.corrcoef(found, labels)[0, 1], abs=1e-12)
    assert outcome.loss == pytest.approx(0.5 * np.mean((found - reference) ** 2))
    same = outcome_of(reference, reference, labels)
    assert (same.drop, same.drop_sem, same.loss) == (0.0, 0.0, 0.0)


def test_the_error_of_a_drop_is_its_scatter_over_samples():
    rng = np.random.default_rng(1)
    drops, errors = [], []
    for _ in range(60):
        labels = rng.normal(size=80)
        reference = labels + rng.normal(0, 0.5, 80)
        outcome = outcome_of(reference + rng.normal(0, 0.5, 80), reference, labels)
        drops.append(outcome.drop)
        errors.append(outcome.drop_sem)
    assert np.mean(errors) == pytest.approx(np.std(drops), rel=0.35)


def test_a_destroyed_network_has_no_correlation():
    labels = np.arange(4.0)
    for similarities in (np.full(4, 0.5), np.array([0.0, np.nan, 1, 1])):
        assert outcome_of(similarities, labels, labels).to_json()["spearman"] is None


@pytest.fixture(scope="module")
def pairs():
    config = bert_reference.TINY
    first, second = (bert_reference.tokens(s, 5, 7, config) for s in (1, 2))
    tokens = {k: np.stack([first[k], second[k]], axis=1) for k in first}
    labels = np.linspace(0, 1, 5).astype(np.float32)
    split = whole_split("pairs", "heldout", tokens, labels, TrimPadding(lengths=(8,)))
    module = Bert(config, "similarity")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(3), tokens)
    variables = jax.tree.map(lambda x: 3 * x, variables)
    network = Network.from_linen(module, variables, tokens)
    spec = KernelSpec(grid="affine", granularity="group", group_count=2, along="output")
    activations = InputSpec()
    quantizers = Quantizers(
        weights=calibrate_weights(network, spec, (3, 8)),
        activations=calibrate_activations(
            network, activations, (4,), [tokens], key=jax.random.key(0)
        ),
    )
    return network, quantizers, split


def test_an_allocation_is_measured_as_the_quantized_network_says(pairs):
    network, quantizers, split = pairs
    evaluator = SimilarityEvaluator(network, quantizers, lambda: batches(split, 2))
    layers = len(network.layers)
    assert evaluator.float_outcome().drop == 0.0
    for w, a in ((3, 32), (8, 4), (32, 32)):
        bits = np.full(layers, w), np.full(layers, a)
        (allocation,) = helpers.allocations(network, [x[None] for x in bits])
        want = fast_logits(network, quantizers, *map(jnp.array, bits), split.inputs)
        got = evaluator.similarities(allocation)
        np.testing.assert_allclose(got, want[:, 0], atol=1e-6)
        (outcome,) = evaluator([allocation])
        assert outcome.examples == 5
        assert (outcome.loss > 1e-9) == (w != 32)


def test_wrong_networks_and_bits_are_refused(pairs):
    network, quantizers, split = pairs
    evaluator = SimilarityEvaluator(network, quantizers, lambda: batches(split, 5))
    names = [layer.name for layer in network.layers]
    with pytest.raises(ValueError, match="weight bits 5 were not calibrated"):
        evaluator([Allocation.uniform(names, Choice(5))])
    module = Bert(bert_reference.TINY, "embedding")
    other = Network.from_linen(module, {"params": network.params}, split.inputs)
    with pytest.raises(ValueError, match="expected one similarity an example"):
        SimilarityEvaluator(other, quantizers, lambda: batches(split, 5))([Allocation({})])
