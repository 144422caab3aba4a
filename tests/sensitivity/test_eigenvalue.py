"""λ_max·‖δ‖² against dense float64 eigenvalues of every block."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.formats import choice_grid
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.metrics.hawq_eigenvalue import (
    EigenSearch,
    HawqEigenvalue,
    QBert,
    block_product,
)
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy
from tests import helpers
from tests.sensitivity.dense import A_BITS, W_BITS

EXACT = EigenSearch(tolerance=1e-13, max_products=3000)
CHOICES, WEIGHTS = choice_grid(W_BITS, A_BITS), choice_grid(W_BITS, (32,))


@pytest.fixture(scope="module")
def blocks(dense):
    """Eigenvalues of every kernel's block over all three examples, and over each batch."""
    hessian = jax.jit(jax.hessian(lambda w, n: dense.losses(w)[n]))
    return Blocks(dense, np.stack([hessian(dense.point, n) for n in range(3)]))


class Blocks:
    """Dense Hessians of every example's loss, cut into blocks; the examples are [2, 1]."""

    def __init__(self, dense, matrix):
        self.dense, self.matrix = dense, matrix
        self.batches = [
            (dense.inputs[:2], dense.labels[:2]),
            (dense.inputs[2:], dense.labels[2:]),
        ]
        sizes = [x.size for x in (*dense.network.kernels(), *dense.shifts)]
        ends = np.cumsum(sizes)
        self.places = [np.arange(e - n, e) for e, n in zip(ends, sizes, strict=True)]

    def kernel(self, layer, examples):
        at = self.places[layer]
        return np.linalg.eigvalsh(self.matrix[examples][:, at][:, :, at].mean(0))

    def input(self, layer, example):
        at = self.places[4 + layer].reshape(3, -1)[example]
        return np.linalg.eigvalsh(self.matrix[example][np.ix_(at, at)])

    def input_term(self, layer, m, examples):
        """mean_n λ_n ‖δ_n‖², λ_n of largest magnitude."""
        delta = self.dense.deltas[m][self.places[4 + layer]].reshape(3, -1)
        values = [magnitude(self.input(layer, n)) for n in examples]
        return np.mean(np.array(values) * np.square(delta[examples]).sum(1))

    def weight_term(self, layer, m, value):
        return value * np.square(self.dense.deltas[m]).sum()

    def expected(self, value_of, examples):
        """λ‖δ‖² of all moves: each layer has w2 w4 a3 a8."""
        return np.array([
            self.weight_term(i, 4 * i + k, value_of(self.kernel(i, examples)))
            if k < 2
            else self.input_term(i, 4 * i + k, examples)
            for i in range(4)
            for k in range(4)
        ])  # fmt: skip


def magnitude(values):
    return values[np.argmax(abs(values))]


@pytest.mark.parametrize(
    ("search", "value_of"),
    [(EXACT, magnitude), (EigenSearch(method="lanczos", tolerance=1e-10), np.max)],
)
def test_hawq_is_the_eigenvalue_over_all_batches(dense, blocks, search, value_of):
    got = analyse(dense.moves, HawqEigenvalue(search=search), blocks.batches, CHOICES)
    weights, inputs = np.arange(16) % 4 < 2, np.arange(16) % 4 >= 2
    want = blocks.expected(value_of, [0, 1, 2])
    np.testing.assert_allclose(got.second[weights], want[weights], rtol=1e-8)
    tolerance = 1e-8 if search is EXACT else 1e-6
    np.testing.assert_allclose(got.second[inputs], want[inputs], rtol=tolerance)
    for layer, found in zip(range(4), got.provenance["prepared"].values(), strict=True):
        value = value_of(blocks.kernel(layer, [0, 1, 2]))
        np.testing.assert_allclose(found["eigenvalue"], value, rtol=1e-8)
        assert found["converged"]
        assert found["residual"] <= 1e-5 * abs(value)
        assert 1 < found["products"] < 3000


def test_hawq_has_the_error_of_the_eigenvalue_to_first_order(dense, blocks):
    """The batches' vᵀHv scatter about λ; their standard error is that of the losses."""
    got = analyse(dense.moves, HawqEigenvalue(search=EXACT), blocks.batches, WEIGHTS)
    at = blocks.places[1]
    values, vectors = np.linalg.eigh(blocks.matrix[:, at][:, :, at].mean(0))
    v = vectors[:, np.argmax(abs(values))]
    each = [v @ blocks.matrix[b][:, at][:, :, at].mean(0) @ v for b in ([0, 1], [2])]
    share = np.array([2 / 3, 1 / 3])
    deviations = np.array(each) - share @ each
    sem = np.sqrt(2 * np.sum((share * deviations) ** 2))
    norms = np.square(dense.deltas[4:6]).sum(1)
    np.testing.assert_allclose(got.losses[1], 0.5 * (share @ each) * norms, rtol=1e-7)
    np.testing.assert_allclose(got.sem[1], 0.5 * sem * norms, rtol=1e-6)


def test_qbert_is_mean_and_spread_over_batches(dense, blocks):
    each = np.array([blocks.expected(magnitude, b) for b in ([0, 1], [2])])
    got = analyse(dense.moves, QBert(search=EXACT), blocks.batches, CHOICES)
    share = np.array([2 / 3, 1 / 3])
    np.testing.assert_allclose(got.second, share @ each, rtol=1e-7)
    terms = 0.5 * np.einsum("icm,bm->bic", got.members, each)
    mean = np.tensordot(share, terms, 1)
    deviation = np.sqrt(2 * np.tensordot(share, (terms - mean) ** 2, 1))
    np.testing.assert_allclose(got.losses, mean + deviation, rtol=1e-7)
    without = dataclasses.replace(got, spread=0.0)
    np.testing.assert_allclose(without.losses, mean, rtol=1e-7)
    np.testing.assert_array_equal(without.sem, got.sem)


def test_mean_of_batch_eigenvalues_is_never_below_that_of_the_whole_set(dense, blocks):
    largest = EigenSearch(method="lanczos", tolerance=1e-8)
    whole = analyse(dense.moves, HawqEigenvalue(search=largest), blocks.batches, WEIGHTS)
    parts = analyse(dense.moves, QBert(search=largest, spread=0.0), blocks.batches, WEIGHTS)
    assert np.all(parts.losses >= whole.losses * (1 - 1e-9))
    assert np.any(parts.losses > 1.01 * whole.losses)


def test_negative_curvature_keeps_its_sign(dense):
    """Minus the loss has minus the eigenvalues: nothing takes an absolute value."""
    got, minus = (
        dense.analyse(HawqEigenvalue(search=EXACT, loss=loss)).second
        for loss in (cross_entropy, negative)
    )
    np.testing.assert_allclose(minus, -got, rtol=1e-7)
    assert (minus < 0).any()


def negative(logits, label):
    return -cross_entropy(logits, label)


def interrupt_at(at):
    def progress(done, total):
        if done == at:
            raise KeyboardInterrupt

    return progress


def spoil(path):
    path.write_bytes(path.read_bytes()[:150])


@pytest.mark.parametrize("change", [None, spoil])
def test_interrupted_search_keeps_the_layers_it_finished(
    dense, blocks, tmp_path, monkeypatch, change
):
    partial, args = tmp_path / ".eigenvalue.partial", (blocks.batches, WEIGHTS)
    whole = analyse(dense.moves, HawqEigenvalue(), *args)
    with pytest.raises(KeyboardInterrupt):
        analyse(dense.moves, HawqEigenvalue(), *args, partial=partial, progress=interrupt_at(2))
    (prepared,) = tmp_path.iterdir()
    assert prepared.name == ".eigenvalue.partial.prepared"
    if change is not None:
        change(prepared)
    searched, search = [], EigenSearch.kernels

    def counted(self, product, kernels, key):
        searched.extend(kernel.shape for kernel in kernels)
        return search(self, product, kernels, key)

    monkeypatch.setattr(EigenSearch, "kernels", counted)
    again = analyse(dense.moves, HawqEigenvalue(), *args, partial=partial)
    shapes = [kernel.shape for kernel in dense.network.kernels()]
    assert searched == (shapes[2:] if change is None else shapes)
    np.testing.assert_array_equal(again.second, whole.second)
    assert again.provenance["prepared"] == whole.provenance["prepared"]
    other = HawqEigenvalue(search=EigenSearch(tolerance=1e-3))  # its journal is another
    searched.clear()
    analyse(dense.moves, other, *args, partial=partial)
    assert searched == shapes


def test_hawq_interrupted_at_any_step_goes_on_to_the_same_result(dense, blocks, tmp_path):
    """Four layers are searched, then two batches are measured along what was found."""
    metric, args = HawqEigenvalue(), (blocks.batches, CHOICES)
    steps = []
    whole = analyse(dense.moves, metric, *args, progress=lambda *at: steps.append(at))
    assert steps == [*((i, 4) for i in range(5)), *((i, 2) for i in range(3))]
    for at in range(len(steps)):
        (folder := tmp_path / str(at)).mkdir()
        count, partial = itertools.count(), folder / ".eigenvalue.partial"

        def interrupt(done, total, count=count, at=at):
            if next(count) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            analyse(dense.moves, metric, *args, partial=partial, progress=interrupt)
        seconds = helpers.batch_seconds(partial)
        assert len(seconds) == max(at - 5, 0)
        again = analyse(dense.moves, metric, *args, partial=partial)
        for field in ("first", "second", "batch_second", "losses"):
            np.testing.assert_array_equal(getattr(again, field), getattr(whole, field))
        assert again.provenance["batch_seconds"][: len(seconds)] == seconds
        assert again.provenance["prepared"] == whole.provenance["prepared"]


def test_block_of_a_kernel_that_is_used_twice_has_both_uses_and_their_cross_terms():
    params = {
        "w": jax.random.normal(jax.random.key(0), (3, 3)),
        "table": jax.random.normal(jax.random.key(1), (5, 3)),
    }

    def apply(params, tokens):  # the table embeds and, transposed, reads out
        x = jnp.tanh(jnp.take(params["table"], tokens, axis=0) @ params["w"])
        return jnp.tanh(x @ params["w"]) @ params["table"].T

    tokens, labels = jnp.array([0, 3, 2, 3]), jnp.array([1, 0, 4, 2])
    network = Network.from_function(apply, params, tokens, tied=("w", "table"))

    def mean_loss(params):
        return jax.vmap(cross_entropy)(apply(params, tokens), labels).mean()

    weights = calibrate_weights(network, KernelSpec(), (4,))
    moves = MoveNetwork(
        network=network, quantizers=Quantizers(weights=weights, activations=None)
    )
    for i, layer in enumerate(network.layers):
        name = layer.kernel
        of_kernel = lambda k, name=name: mean_loss(params | {name: k})  # noqa: E731
        hessian = jax.jit(jax.hessian(of_kernel))(params[name])
        batches = [(moves, tokens[:3], labels[:3]), (moves, tokens[3:], labels[3:])]
        product = block_product(network, cross_entropy, batches, [i])
        tangent = jax.random.normal(jax.random.key(i), params[name].shape)
        want = jnp.tensordot(hessian, tangent, 2)
        (got,) = product([params[name]], [tangent])
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    assert {layer.kernel for layer in network.layers} == {"w", "table"}


def test_one_batch_has_no_spread(dense):
    with pytest.raises(ValueError, match="'qbert' takes the spread over batches, and there is"):
        dense.analyse(QBert())


def test_inputs_that_merge_the_batch_have_no_eigenvalues_of_their_own():
    params = {"w": jnp.arange(6.0).reshape(2, 3) / 10, "v": jnp.ones((3, 3))}

    def apply(params, x):
        rows = jnp.tanh(x.reshape(-1, 2) @ params["w"])  # two rows an example
        return rows.reshape(x.shape[0], 2, 3).sum(1) @ params["v"]

    x = jax.random.normal(jax.random.key(0), (3, 2, 2))
    network = Network.from_function(apply, params, x)
    activations = calibrate_activations(
        network, InputSpec(), (4,), [x],
        key=jax.random.key(0),
    )  # fmt: skip
    weights = calibrate_weights(network, KernelSpec(), (4,))
    moves = MoveNetwork(
        network=network, quantizers=Quantizers(weights=weights, activations=activations)
    )
    labels, key = jnp.zeros(3, int), jax.random.key(1)
    with pytest.raises(ValueError, match="Layer 'w': its input merges the batch"):
        HawqEigenvalue()(moves, x, labels, key)
    alone = MoveNetwork(
        network=network, quantizers=Quantizers(weights=weights, activations=None)
    )
    assert np.all(np.isfinite(HawqEigenvalue()(alone, x, labels, key).second))
