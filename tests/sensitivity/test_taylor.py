"""Every sensitivity against dense float64 matrices of a network written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from jmpq.formats import choice_grid
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.metrics.hawq_trace import HawqTrace
from jmpq.sensitivity.metrics.squared_error import SquaredError
from jmpq.sensitivity.metrics.taylor import (
    EmpiricalFisher,
    ExactHessian,
    FirstOrder,
    GaussNewton,
)
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import kl_divergence
from tests.sensitivity.dense import A_BITS, W_BITS, Dense


def test_moves_are_listed_by_layer_weights_first(dense):
    table = [(m.layer, m.kind, m.bits) for m in dense.moves.moves[:5]]
    assert table == [
        ("stem", "w", 2),
        ("stem", "w", 4),
        ("stem", "a", 3),
        ("stem", "a", 8),
        ("conv1", "w", 2),
    ]


def test_first_order_and_exact_hessian(dense):
    mean = lambda w: dense.losses(w).mean()  # noqa: E731
    gradient = np.asarray(jax.grad(mean)(dense.point))
    matrix = np.asarray(jax.jit(jax.hessian(mean))(dense.point))
    want = dense.deltas @ matrix @ dense.deltas.T
    got = dense.analyse(ExactHessian())
    np.testing.assert_allclose(got.first, dense.deltas @ gradient, rtol=1e-8)
    np.testing.assert_allclose(got.second, want, rtol=1e-8, atol=1e-8 * np.abs(want).max())
    np.testing.assert_allclose(np.diag(got.second), np.diag(want), rtol=1e-8)
    first = dense.analyse(FirstOrder())
    np.testing.assert_allclose(first.first, dense.deltas @ gradient, rtol=1e-8)
    np.testing.assert_allclose(first.losses, got.members @ got.first, rtol=1e-8)


def test_empirical_fisher(dense):
    gradients = np.asarray(jax.jit(jax.jacobian(dense.losses))(dense.point)) @ dense.deltas.T
    got = dense.analyse(EmpiricalFisher())
    want = gradients.T @ gradients / len(gradients)
    np.testing.assert_allclose(got.second, want, rtol=1e-8, atol=1e-12)
    for layer in range(4):  # a choice makes its two moves together
        for c, choice in enumerate(got.choices):
            w = 4 * layer + W_BITS.index(choice.w_bits)
            a = 4 * layer + 2 + A_BITS.index(choice.a_bits)
            together = gradients[:, w] + gradients[:, a]
            np.testing.assert_allclose(got.losses[layer, c], 0.5 * (together**2).mean())


def test_gauss_newton_is_the_hessian_of_the_kl_divergence(dense):
    z = dense.logits(dense.point)
    kl = lambda w: jax.vmap(kl_divergence)(dense.logits(w), z).mean()  # noqa: E731
    want = dense.deltas @ np.asarray(jax.jit(jax.hessian(kl))(dense.point)) @ dense.deltas.T
    got = dense.analyse(GaussNewton())
    np.testing.assert_allclose(got.second, want, rtol=1e-8, atol=1e-8 * np.abs(want).max())
    np.testing.assert_allclose(np.diag(got.second), np.diag(want), rtol=1e-8)
    assert np.linalg.eigvalsh(got.second).min() > -1e-10 * np.abs(want).max()


def test_exact_hessian_of_the_kl_divergence_is_gauss_newton_and_its_gradient_is_zero(dense):
    z, choices = dense.logits(dense.point), choice_grid(W_BITS, A_BITS)
    exact = analyse(dense.moves, ExactHessian(loss=kl_divergence), [(dense.inputs, z)], choices)
    newton = dense.analyse(GaussNewton()).second
    np.testing.assert_allclose(exact.first, 0, atol=1e-14)
    np.testing.assert_allclose(
        exact.second, newton, rtol=1e-8, atol=1e-8 * np.abs(newton).max()
    )
    by_reference = analyse(
        dense.moves, GaussNewton(loss=kl_divergence), [(dense.inputs, z)], choices
    )
    np.testing.assert_allclose(by_reference.second, newton, rtol=1e-10)


def test_move_side_and_class_side_jacobians_agree(dense):
    few = Quantizers(
        weights=calibrate_weights(dense.network, KernelSpec(), []),
        activations=calibrate_activations(
            dense.network, InputSpec(), [], [dense.inputs], key=jax.random.key(0)
        ),
    )
    assert MoveNetwork(network=dense.network, quantizers=few).moves == ()
    z, by_class = jax.jit(dense.moves.changes_by_derivative)(dense.inputs)
    jacobian = np.asarray(jax.jit(jax.jacobian(dense.logits))(dense.point))
    want = np.einsum("ncw,mw->nmc", jacobian, dense.deltas)
    np.testing.assert_allclose(z, dense.logits(dense.point), rtol=1e-10)
    np.testing.assert_allclose(by_class, want, rtol=1e-8, atol=1e-10)
    dense.moves.__dict__["moves"] = dense.moves.moves[:2]  # two moves, three classes: by jvp
    try:
        _, by_move = jax.jit(dense.moves.changes_by_derivative)(dense.inputs)
    finally:
        del dense.moves.__dict__["moves"]
    np.testing.assert_allclose(by_move, want[:, :2], rtol=1e-8, atol=1e-10)


def test_changes_by_difference_are_the_moves_made_in_full(dense):
    z, changes = jax.jit(dense.moves.changes_by_difference)(dense.inputs)
    for m, delta in enumerate(dense.deltas):
        want = dense.logits(dense.point + delta) - dense.logits(dense.point)
        np.testing.assert_allclose(changes[:, m], want, rtol=1e-8, atol=1e-12)
    small = Dense.__new__(Dense)
    small.__dict__.update(dense.__dict__)
    got = small.analyse(GaussNewton(changes="difference"))
    p = jax.nn.softmax(z)
    mean = np.einsum("nc,nmc->nm", p, changes)
    covariance = np.einsum("nc,nmc,nkc->nmk", p, changes, changes)
    want = (covariance - mean[:, :, None] * mean[:, None, :]).mean(0)
    np.testing.assert_allclose(got.second, want, rtol=1e-8, atol=1e-12)


def test_squared_error_and_hawq_trace(dense):
    squares = np.square(dense.deltas).sum(1) / np.tile([1, 1, 3, 3], 4)
    got = dense.analyse(SquaredError())
    np.testing.assert_allclose(0.5 * got.second, squares, rtol=1e-8)
    mean = lambda w: dense.losses(w).mean()  # noqa: E731
    diagonal = np.diag(jax.jit(jax.hessian(mean))(dense.point))
    kernels, shifts = dense.unravel(jnp.asarray(diagonal))
    want = []
    for layer in range(4):
        by_weight = float(kernels[layer].sum()) / kernels[layer].size
        by_input = float(shifts[layer].sum()) / (shifts[layer].size / 3)
        want += [by_weight, by_weight, by_input, by_input]
    batches = [(dense.inputs, dense.labels)] * 40
    choices = choice_grid(W_BITS, A_BITS)
    found = analyse(dense.moves, HawqTrace(num_probes=20), batches, choices)
    losses = found.members @ (0.5 * np.array(want) * squares)
    assert np.all(np.abs(found.losses - losses) < 5 * found.sem)


def test_losses_and_interactions_add_up_to_the_quadratic_form(dense):
    got = dense.analyse(ExactHessian())
    table = np.array([[0, 3, 1, 2], [3, 3, 3, 3]])
    cross = got.interactions()
    for row in table:
        total = sum(got.losses[i, c] for i, c in enumerate(row))
        total += 0.5 * sum(
            cross[i, row[i], j, row[j]] for i in range(4) for j in range(4) if i != j
        )
        made = np.zeros(16)
        for i, c in enumerate(row):
            made[4 * i + W_BITS.index(got.choices[c].w_bits)] = 1
            made[4 * i + 2 + A_BITS.index(got.choices[c].a_bits)] = 1
        np.testing.assert_allclose(total, 0.5 * made @ got.second @ made, rtol=1e-10)
        np.testing.assert_allclose(got.predict_columns(row[None], interactions=True)[0], total)
    np.testing.assert_allclose(got.predict_columns(table)[1], got.losses[:, 3].sum())
