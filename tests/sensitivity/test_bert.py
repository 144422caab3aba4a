"""A tiny BERT through the metrics, in float64, against dense derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jmpq.formats import choice_grid
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.fake_quant import quantize_params
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.metrics.hawq_eigenvalue import EigenSearch, QBert, block_product
from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, GaussNewton
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import squared_error
from jmpq.zoo.bert import Bert, BertConfig
from tests.helpers import fast_logits
from tests.zoo import bert_reference

CONFIG = BertConfig(
    vocab_size=9,
    hidden_size=4,
    num_layers=2,
    num_heads=2,
    intermediate_size=6,
    max_positions=6,
)
LAYER = r"(encoder/layer/\d+)/.*"
BITS, A_BITS = (2, 4), (4,)


class Similar:
    """The similarity of pairs, its moves, and everything over one flat vector of kernels."""

    def __init__(self):
        module = Bert(CONFIG, "similarity", dtype=jnp.float64)
        first, second = (bert_reference.tokens(s, 4, 6, CONFIG) for s in (1, 2))
        self.tokens = {k: np.stack([first[k], second[k]], axis=1) for k in first}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            variables = module.init(jax.random.key(0), self.tokens)
        leaves, tree = jax.tree.flatten(variables)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noise = [
            jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
        ]
        leaves = [x + 0.5 * n for x, n in zip(leaves, noise, strict=True)]
        self.network = Network.from_linen(module, jax.tree.unflatten(tree, leaves), self.tokens)
        spec = KernelSpec(
            grid="affine", granularity="group", group_count=2, along="output", clipping="minmax"
        )
        activations = InputSpec(clipping="minmax")
        self.quantizers = Quantizers(
            weights=calibrate_weights(self.network, spec, BITS),
            activations=calibrate_activations(
                self.network, activations, A_BITS, [self.tokens], key=jax.random.key(2)
            ),
        )
        self.moves = MoveNetwork(network=self.network, quantizers=self.quantizers)
        self.targets = jnp.array([0.1, 0.9, 0.4, 0.6])

    def outputs(self, kernels):
        params = self.network.with_kernels(kernels)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return self.network.apply(params, self.tokens)

    def mean_loss(self, kernels, rows=slice(None)):
        z = self.outputs(kernels)[rows]
        return jax.vmap(squared_error)(z, self.targets[rows]).mean()


@pytest.fixture(scope="module")
def similar():
    return Similar()


def test_bits_reach_every_kernel_and_input(similar):
    count = len(similar.network.layers)
    assert count == 3 + 2 * 6
    assert len(similar.moves.moves) == count * 2 + 12  # embeddings have no input to quantize
    w_bits, a_bits = jnp.full(count, 4), jnp.full(count, 32)
    params = quantize_params(similar.network, similar.quantizers.weights, w_bits)
    moved = [
        float(jnp.abs(a - b).max())
        for a, b in zip(similar.network.kernels(params), similar.network.kernels(), strict=True)
    ]
    assert min(moved) > 0
    np.testing.assert_allclose(
        similar.outputs(similar.network.kernels(params)),
        fast_logits(similar.network, similar.quantizers, w_bits, a_bits, similar.tokens),
        rtol=1e-10,
    )


def test_gauss_newton_and_fisher_equal_dense_derivatives(similar):
    kernels = similar.network.kernels()
    jacobian = jax.jit(jax.jacobian(similar.outputs))(kernels)
    residual = similar.outputs(kernels)[:, 0] - similar.targets
    slopes = []
    for i, kernel in enumerate(kernels):
        for delta in similar.moves.weight_deltas(i, kernel):
            slopes.append(jnp.tensordot(jacobian[i][:, 0], delta, delta.ndim))
    slopes = np.stack(slopes, axis=1)  # [examples, weight moves]
    at = [m for m, move in enumerate(similar.moves.moves) if move.kind == "w"]
    batches, choices = [(similar.tokens, similar.targets)], choice_grid(BITS, A_BITS)
    for metric, factor in ((GaussNewton, 1.0), (EmpiricalFisher, residual)):
        found = analyse(similar.moves, metric(loss=squared_error), batches, choices)
        rows = np.asarray(factor)[..., None] * slopes
        want = rows.T @ rows / len(rows)
        np.testing.assert_allclose(found.second[np.ix_(at, at)], want, rtol=1e-8, atol=1e-14)


def test_products_of_an_encoder_layer_equal_the_dense_hessian(similar):
    kernels, network = similar.network.kernels(), similar.network
    block = QBert(block=LAYER).blocks(network)[4 - 1]
    assert [network.layers[i].name.split("/")[2] for i in block] == ["0"] * 6
    flat, unravel = ravel_pytree([kernels[i] for i in block])

    def of_block(flat):
        changed = list(kernels)
        for i, kernel in zip(block, unravel(flat), strict=True):
            changed[i] = kernel
        return similar.mean_loss(changed)

    hessian = np.asarray(jax.jit(jax.hessian(of_block))(flat))
    halves = [
        (similar.moves, jax.tree.map(lambda x, r=r: x[r], similar.tokens), similar.targets[r])
        for r in (slice(0, 1), slice(1, 4))
    ]
    product = block_product(network, squared_error, halves, block)
    tangent = jax.random.normal(jax.random.key(3), flat.shape)
    got = ravel_pytree(product([kernels[i] for i in block], unravel(tangent)))[0]
    np.testing.assert_allclose(got, hessian @ tangent, rtol=1e-8, atol=1e-12)
    values = np.linalg.eigvalsh(hessian)
    metric = QBert(
        block=LAYER, search=EigenSearch(tolerance=1e-9, max_products=2000), loss=squared_error
    )
    found = metric.eigenvalues(
        similar.moves, similar.tokens, similar.targets, jax.random.key(0)
    )
    want = values[np.abs(values).argmax()]
    assert found[3] is not None
    np.testing.assert_allclose(found[3].values[0], want, rtol=1e-4)


def test_every_kernel_of_a_block_gets_its_eigenvalue(similar):
    metric = QBert(block=LAYER, loss=squared_error)
    key = jax.random.key(0)
    pairs = metric.eigenvalues(similar.moves, similar.tokens, similar.targets, key)
    terms = metric(similar.moves, similar.tokens, similar.targets, key)
    for block, pair in zip(metric.blocks(similar.network), pairs, strict=True):
        for i in block:
            deltas = similar.moves.weight_deltas(i, similar.network.kernels()[i])
            norms = [float(jnp.square(d).sum()) for d in deltas]
            got = terms.second[similar.moves.columns(i, "w")]
            np.testing.assert_allclose(got, pair.values[0] * np.array(norms), rtol=1e-10)


def test_a_block_that_matches_nothing_is_an_error(similar):
    with pytest.raises(ValueError, match=r"block='decoder/\.\*' matches no layer"):
        QBert(block="decoder/.*").blocks(similar.network)


def test_a_group_count_that_does_not_divide_names_the_tensor(similar):
    spec = KernelSpec(granularity="group", group_count=3, along="output")
    with pytest.raises(ValueError, match="'embeddings/word_embeddings': 3 groups do not"):
        calibrate_weights(similar.network, spec, (4,))
