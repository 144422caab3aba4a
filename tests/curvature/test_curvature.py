"""Products against dense float64 matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jmpq.curvature.ggn import ggn_of_changes, ggn_product, gradient_of_changes
from jmpq.curvature.hvp import (
    hessian,
    hessian_over,
    linearization_bytes,
    second_order_increase,
)
from jmpq.training.losses import cross_entropy, kl_divergence
from tests.curvature.helpers import dense, tiny_mlp


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_products_match_the_dense_hessian(seed):
    _, loss, params, _ = tiny_mlp(seed)
    flat, unravel, flat_loss = dense(loss, params)
    matrix = jax.jit(jax.hessian(flat_loss))(flat)
    delta = 0.1 * jax.random.normal(jax.random.key(seed + 10), flat.shape)
    product, _ = ravel_pytree(hessian(loss)(params, unravel(delta)))
    np.testing.assert_allclose(product, matrix @ delta, rtol=1e-10, atol=1e-14)
    got = second_order_increase(loss, params, unravel(delta))
    np.testing.assert_allclose(got, 0.5 * delta @ matrix @ delta, rtol=1e-10)


def test_zero_leaves_leave_a_layer_out():
    _, loss, params, _ = tiny_mlp(4)
    delta = {k: jnp.zeros_like(v) for k, v in params.items()} | {"b": 0.1 * params["b"]}
    block = jax.jit(jax.hessian(lambda b: loss({**params, "b": b})))(params["b"])
    block = block.reshape(12, 12)
    d = delta["b"].ravel()
    got = second_order_increase(loss, params, delta)
    np.testing.assert_allclose(got, 0.5 * d @ block @ d, rtol=1e-10)


def test_wrong_tree_is_refused():
    _, loss, params, _ = tiny_mlp(1)
    with pytest.raises(ValueError, match="must have the tree"):
        second_order_increase(loss, params, {"a": params["a"]})


@pytest.mark.parametrize("seed", [1, 2])
def test_gauss_newton_is_the_hessian_of_the_kl(seed):
    logits, _, params, labels = tiny_mlp(seed)
    flat, unravel, flat_logits = dense(logits, params)
    z = logits(params)
    kl = lambda w: jax.vmap(kl_divergence)(flat_logits(w), z).mean()  # noqa: E731
    want = jax.jit(jax.hessian(kl))(flat)
    jacobian = jax.jit(jax.jacobian(flat_logits))(flat)  # [batch, classes, n]
    got = ggn_of_changes(cross_entropy, z, labels, jnp.moveaxis(jacobian, 1, 2))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    tangent = unravel(flat * 0.3)
    take = jax.jit(functools.partial(ggn_product, logits, cross_entropy, labels))
    product, _ = ravel_pytree(take(params, tangent))
    np.testing.assert_allclose(product, want @ (flat * 0.3), rtol=1e-9, atol=1e-12)


def test_gradient_of_changes_is_the_chain_rule():
    logits, loss, params, labels = tiny_mlp(5)
    flat, _, flat_logits = dense(logits, params)
    changes = jnp.moveaxis(jax.jit(jax.jacobian(flat_logits))(flat), 1, 2)
    got = gradient_of_changes(cross_entropy, logits(params), labels, changes).mean(0)
    want, _ = ravel_pytree(jax.grad(loss)(params))
    np.testing.assert_allclose(got, want, rtol=1e-10)


def unlike_batches():
    x = jax.random.normal(jax.random.key(0), (7, 3))
    y = jnp.arange(7.0)
    mean_loss = lambda w, batch: jnp.tanh((batch[0] @ w - batch[1]) / 5).mean()  # noqa: E731
    batches = [(x[i : i + 3], y[i : i + 3]) for i in (0, 3, 6)]
    return mean_loss, batches, hessian(lambda w: mean_loss(w, (x, y)))


def test_micro_batches_of_unlike_size_give_the_hessian_of_the_whole_batch():
    mean_loss, batches, whole = unlike_batches()
    w, v = jnp.arange(3.0), jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(hessian_over(mean_loss, batches)(w, v), whole(w, v), rtol=1e-12)
    with pytest.raises(ValueError, match="`batches` is empty"):
        hessian_over(mean_loss, [])


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_kept_linearisations_follow_the_parameters_and_the_memory(kept):
    mean_loss, batches, whole = unlike_batches()
    w, v = jnp.arange(3.0), jnp.array([1.0, -2.0, 0.5])
    sizes = [linearization_bytes(mean_loss, w, batch) for batch in batches]
    linearised = []

    def counted(w, batch):
        jax.debug.callback(lambda: linearised.append(1))
        return mean_loss(w, batch)

    product = hessian_over(counted, batches, memory_bytes=sum(sizes[:kept]))
    for at in (w, w, w + 1.0, w):  # the second finds what the first kept
        np.testing.assert_allclose(product(at, v), whole(at, v), rtol=1e-12)
    jax.effects_barrier()
    # three of four products linearise `kept` batches; the others are taken from scratch
    assert len(linearised) == 3 * kept + 4 * (3 - kept)


@pytest.mark.parametrize("seed", [1, 2])
def test_all_orders_of_differentiation_agree(seed):
    _, loss, params, _ = tiny_mlp(seed)
    flat, unravel, flat_loss = dense(loss, params)
    tangent = unravel(jax.random.normal(jax.random.key(seed + 10), flat.shape))
    want = jax.jit(jax.hessian(flat_loss))(flat) @ ravel_pytree(tangent)[0]
    of_batch = lambda p, batch: loss(p) + 0.0 * batch.sum()  # noqa: E731
    rows = [jnp.ones(2)]
    products = {
        "forward over reverse": hessian_over(of_batch, rows),
        "reverse over forward": hessian_over(of_batch, rows, order="reverse_over_forward"),
        "linearised": hessian_over(of_batch, rows, memory_bytes=1 << 20),
    }
    for name, product in products.items():
        got, _ = ravel_pytree(product(params, tangent))
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-14, err_msg=name)
        quadratic_form = 0.5 * got @ ravel_pytree(tangent)[0]
        by_jvps = second_order_increase(loss, params, tangent)
        np.testing.assert_allclose(quadratic_form, by_jvps, rtol=1e-8, err_msg=name)
