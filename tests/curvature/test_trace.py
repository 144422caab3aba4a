"""Traces: exact cases first, then within five standard errors of the dense Hessian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.curvature.ggn import ggn_product
from jmpq.curvature.ggn_trace import ggn_block_traces
from jmpq.curvature.hvp import hessian
from jmpq.curvature.trace import block_traces, trace
from jmpq.training.losses import cross_entropy
from tests.curvature.helpers import dense_hessian, quadratic, tiny_mlp

KEY = jax.random.key(0)


def diagonal():
    weights = {"a": jnp.arange(1.0, 4.0), "b": jnp.array([[-2.0, 5.0]])}
    loss = lambda p: sum(0.5 * (weights[k] * p[k] ** 2).sum() for k in p)  # noqa: E731
    return hessian(loss), weights


def test_traces_are_exact_where_the_hessian_is_diagonal():
    product, params = diagonal()
    got = block_traces(product, params, key=KEY, max_probes=3)
    np.testing.assert_allclose([got.value["a"], got.value["b"]], [6.0, 3.0])
    np.testing.assert_allclose([got.sem["a"], got.sem["b"]], 0.0, atol=1e-12)
    whole = trace(product, params, key=KEY, max_probes=100, tolerance=1e-6)
    assert (whole.value, whole.sem, whole.probes, whole.products) == (9.0, 0.0, 8, 8)
    assert np.isnan(trace(product, params, key=KEY, max_probes=1).sem)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_traces_are_within_five_standard_errors(seed):
    _, loss, params, _ = tiny_mlp(seed)
    product, key = hessian(loss), jax.random.key(seed)
    got = block_traces(product, params, key=key, max_probes=200)
    matrix = dense_hessian(loss, params)
    start = 0
    for name in params:  # the order of ravel_pytree
        size = params[name].size
        want = np.trace(matrix[start : start + size, start : start + size])
        start += size
        assert abs(got.value[name] - want) < 5 * got.sem[name]
    whole = trace(product, params, key=key, max_probes=200)
    assert abs(whole.value - np.trace(matrix)) < 5 * whole.sem
    # Same probes: the parts add up to the whole; its error is not the sum of theirs.
    assert whole.value == pytest.approx(sum(got.value.values()), rel=1e-12)
    again = block_traces(product, params, key=key, max_probes=200)
    assert again.value == got.value


def test_probes_stop_at_the_tolerance_in_every_block():
    _, loss, params, _ = tiny_mlp(1)
    product = hessian(loss)
    got = block_traces(product, params, key=KEY, max_probes=2000, tolerance=0.2)
    assert 8 <= got.probes < 2000
    assert all(got.sem[k] <= 0.2 * abs(got.value[k]) for k in params)
    same = block_traces(product, params, key=KEY, max_probes=got.probes)
    assert same.value == got.value  # more probes repeat the first ones


def test_float32_traces():
    product, params, matrix = quadratic(np.arange(12.0), dtype=jnp.float32)
    got = trace(product, params, key=KEY, max_probes=50)
    assert abs(got.value - np.trace(matrix)) < 5 * got.sem


def test_trace_errors():
    product, params = diagonal()
    with pytest.raises(ValueError, match="at least one probe"):
        block_traces(product, params, key=KEY, max_probes=0)
    with pytest.raises(ValueError, match="not finite"):
        trace(lambda _, v: jax.tree.map(lambda x: x * jnp.nan, v), params, key=KEY)


@pytest.mark.parametrize("seed", [1, 2])
def test_gauss_newton_traces_are_the_dense_blocks(seed):
    logits, _, params, labels = tiny_mlp(seed)
    x = jax.random.normal(jax.random.split(jax.random.key(seed), 4)[3], (5, 2))
    of_inputs = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] + p["c"][None]  # noqa: E731
    np.testing.assert_array_equal(of_inputs(params, x), logits(params))
    got = ggn_block_traces(of_inputs, cross_entropy, params, x, labels)
    product = functools.partial(ggn_product, logits, cross_entropy, labels, params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for name, leaf in params.items():
        unit = jnp.eye(leaf.size).reshape(-1, *leaf.shape)
        column = jax.jit(jax.vmap(lambda e, n=name: product(zero | {n: e})[n]))(unit)
        want = jnp.trace(column.reshape(leaf.size, -1))
        np.testing.assert_allclose(got[name].mean(), want, rtol=1e-10)
        assert got[name].shape == (5,)
        assert (got[name] > 0).all()


def test_traces_leave_out_no_more_curvature_than_tolerated():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": 3.0 * jax.random.normal(keys[0], (4, 5)), "v": jnp.eye(5)}
    x = jax.random.normal(keys[1], (30, 4)) * jnp.linspace(0.1, 4, 30)[:, None]
    labels = jax.random.randint(keys[2], (30,), 0, 5)
    logits = lambda p, x: x @ p["w"] @ p["v"]  # noqa: E731
    exact, same, rough = (
        ggn_block_traces(logits, cross_entropy, params, x, labels, tolerance=t)
        for t in (0.0, 1e-12, 0.05)
    )
    # A linear layer in closed form: Tr = ‖x‖² (1 − Σ p²).
    p = np.asarray(jax.nn.softmax(logits(params, x)))
    want = np.asarray((x**2).sum(axis=1)) * (1 - (p**2).sum(axis=1))
    np.testing.assert_allclose(exact["w"], want, rtol=1e-8)
    np.testing.assert_allclose(same["w"], want, rtol=1e-8, atol=1e-8)
    assert (rough["w"] <= want * (1 + 1e-8)).all()
    assert (rough["w"] == 0).any()  # something was left out, the little that was allowed
    assert 0.8 * want.sum() < rough["w"].sum() < want.sum()
    with pytest.raises(ValueError, match="share of curvature left out"):
        ggn_block_traces(logits, cross_entropy, params, x, labels, tolerance=1.0)


def test_traces_of_a_concave_loss_are_negative():
    gain = lambda z, label: -cross_entropy(z, label)  # noqa: E731
    _, _, params, labels = tiny_mlp(1)
    x = jnp.ones((5, 2))
    of_inputs = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] + p["c"][None]  # noqa: E731
    plus = ggn_block_traces(of_inputs, cross_entropy, params, x, labels)
    minus = ggn_block_traces(of_inputs, gain, params, x, labels)
    for name in params:
        np.testing.assert_allclose(minus[name], -plus[name], rtol=1e-10)
