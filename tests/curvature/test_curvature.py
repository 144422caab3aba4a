"""Products against dense float64 matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jmpq.curvature.ggn import ggn_of_changes, ggn_product, gradient_of_changes
from jmpq.curvature.hvp import hessian, hessian_over, second_order_increase
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


def test_micro_batches_of_unlike_size_give_the_hessian_of_the_whole_batch():
    x = jax.random.normal(jax.random.key(0), (7, 3))
    y = jnp.arange(7.0)
    mean_loss = lambda w, batch: jnp.tanh((batch[0] @ w - batch[1]) / 5).mean()  # noqa: E731
    w, v = jnp.arange(3.0), jnp.array([1.0, -2.0, 0.5])
    product = hessian_over(mean_loss, [(x[i : i + 3], y[i : i + 3]) for i in (0, 3, 6)])
    want = hessian(lambda w: mean_loss(w, (x, y)))(w, v)
    np.testing.assert_allclose(product(w, v), want, rtol=1e-12)
    with pytest.raises(ValueError, match="`batches` is empty"):
        hessian_over(mean_loss, [])
