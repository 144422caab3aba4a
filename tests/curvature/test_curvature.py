"""Products and traces against dense float64 matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jmpq.curvature.ggn import ggn_of_changes, ggn_product, gradient_of_changes
from jmpq.curvature.hvp import hvp, second_order_increase
from jmpq.curvature.trace import block_traces
from jmpq.training.losses import cross_entropy, kl_divergence


def tiny_mlp(seed):
    """Smooth, 23 parameters, float64: logits and mean loss of a batch, as functions."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "a": jax.random.normal(keys[0], (2, 4)),
        "b": jax.random.normal(keys[1], (4, 3)),
        "c": jax.random.normal(keys[2], (3,)),
    }
    x = jax.random.normal(keys[3], (5, 2))
    labels = jnp.array([0, 1, 2, 1, 0])
    logits = lambda p: jnp.tanh(x @ p["a"]) @ p["b"] + p["c"][None]  # noqa: E731
    loss = lambda p: jax.vmap(cross_entropy)(logits(p), labels).mean()  # noqa: E731
    return logits, loss, params, labels


def dense(function, params):
    flat, unravel = ravel_pytree(params)
    return flat, unravel, lambda w: function(unravel(w))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_products_match_the_dense_hessian(seed):
    _, loss, params, _ = tiny_mlp(seed)
    flat, unravel, flat_loss = dense(loss, params)
    matrix = jax.hessian(flat_loss)(flat)
    delta = 0.1 * jax.random.normal(jax.random.key(seed + 10), flat.shape)
    product, _ = ravel_pytree(hvp(loss, params, unravel(delta)))
    np.testing.assert_allclose(product, matrix @ delta, rtol=1e-10, atol=1e-14)
    got = second_order_increase(loss, params, unravel(delta))
    np.testing.assert_allclose(got, 0.5 * delta @ matrix @ delta, rtol=1e-10)


def test_zero_leaves_leave_a_layer_out():
    _, loss, params, _ = tiny_mlp(4)
    delta = {k: jnp.zeros_like(v) for k, v in params.items()} | {"b": 0.1 * params["b"]}
    block = jax.hessian(lambda b: loss({**params, "b": b}))(params["b"]).reshape(12, 12)
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
    want = jax.hessian(kl)(flat)
    jacobian = jax.jacobian(flat_logits)(flat)  # [batch, classes, n]
    got = ggn_of_changes(cross_entropy, z, labels, jnp.moveaxis(jacobian, 1, 2))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    tangent = unravel(flat * 0.3)
    product, _ = ravel_pytree(ggn_product(logits, cross_entropy, labels, params, tangent))
    np.testing.assert_allclose(product, want @ (flat * 0.3), rtol=1e-9, atol=1e-12)


def test_gradient_of_changes_is_the_chain_rule():
    logits, loss, params, labels = tiny_mlp(5)
    flat, _, flat_logits = dense(logits, params)
    changes = jnp.moveaxis(jax.jacobian(flat_logits)(flat), 1, 2)
    got = gradient_of_changes(cross_entropy, logits(params), labels, changes).mean(0)
    want, _ = ravel_pytree(jax.grad(loss)(params))
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_traces_are_exact_where_the_hessian_is_diagonal():
    weights = {"a": jnp.arange(1.0, 4.0), "b": jnp.array([[-2.0, 5.0]])}
    loss = lambda p: sum(0.5 * (weights[k] * p[k] ** 2).sum() for k in p)  # noqa: E731
    traces, sems = block_traces(loss, weights, key=jax.random.key(0), num_probes=3)
    np.testing.assert_allclose([traces["a"], traces["b"]], [6.0, 3.0])
    np.testing.assert_allclose([sems["a"], sems["b"]], 0.0, atol=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_block_traces_are_within_five_standard_errors(seed):
    _, loss, params, _ = tiny_mlp(seed)
    traces, sems = block_traces(loss, params, key=jax.random.key(seed), num_probes=400)
    for name in params:
        block = jax.hessian(lambda x, n=name: loss({**params, n: x}))(params[name])
        want = jnp.trace(block.reshape(params[name].size, -1))
        assert abs(traces[name] - want) < 5 * sems[name]
    again, _ = block_traces(loss, params, key=jax.random.key(seed), num_probes=400)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(a == b), traces, again))
