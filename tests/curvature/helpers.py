"""Functions whose Hessian is known or small enough to write out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jmpq.training.losses import cross_entropy


@functools.cache
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


def quadratic(eigenvalues, *, seed=0, dtype=jnp.float64):
    """Product of a symmetric matrix with these eigenvalues on a tree, its point, the matrix."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    matrix = (q * np.asarray(eigenvalues)) @ q.T
    params = {"a": jnp.zeros((2, 3), dtype), "b": jnp.zeros(n - 6, dtype)}
    _, unravel = ravel_pytree(params)
    held = jnp.asarray(matrix, dtype)
    product = lambda _, v: unravel(held @ ravel_pytree(v)[0])  # noqa: E731
    return product, params, matrix


def dense_hessian(loss, params):
    """The Hessian as a matrix, leaves in the order of `ravel_pytree`."""
    flat, _, flat_loss = dense(loss, params)
    return np.asarray(jax.jit(jax.hessian(flat_loss))(flat))
