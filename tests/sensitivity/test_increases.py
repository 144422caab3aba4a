"""Increases in NumPy beside the losses that JAX computes, for outputs of every shape."""

import functools

import jax
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jmpq.sensitivity.logits.increases import increases
from jmpq.training import losses

READY = {
    "cross_entropy": losses.cross_entropy,
    "squared_error": losses.squared_error,
    "kl": losses.kl_divergence,
}
ALLOCATIONS, EXAMPLES, CLASSES = 3, 5, 4
RNG = np.random.default_rng(0)


def by_jax(kind, loss, q, z, targets):
    each = jax.vmap(functools.partial(losses.increase, kind, loss))
    return np.stack([each(x, z, targets) for x in q])


@pytest.mark.parametrize("positions", [(), (6,), (2, 3)], ids=str)
@pytest.mark.parametrize("loss", READY)
@pytest.mark.parametrize("kind", ["loss", "kl"])
def test_ready_made_losses_are_those_of_training(kind, loss, positions):
    output = (*positions, CLASSES)
    q = 3 * RNG.normal(size=(ALLOCATIONS, EXAMPLES, *output))
    z = 3 * RNG.normal(size=(EXAMPLES, *output))
    labels = RNG.integers(0, CLASSES, (EXAMPLES, *positions)).astype(np.int32)
    if positions:  # some do not count; of the last example none does
        labels[RNG.uniform(size=labels.shape) < 0.3] = -1
        labels[-1] = -1
    targets = labels if loss == "cross_entropy" else RNG.normal(size=z.shape)
    want = by_jax(kind, READY[loss], q, z, targets)
    np.testing.assert_allclose(
        increases(kind, loss, q, z, targets), want, rtol=1e-10, atol=1e-13
    )
    own = increases(kind, READY[loss], q, z, targets)  # the same as a function of JAX
    np.testing.assert_allclose(own, want, rtol=1e-10, atol=1e-13)


def test_a_number_an_example_has_a_squared_error():
    q, z, y = RNG.normal(size=(ALLOCATIONS, EXAMPLES)), RNG.normal(size=EXAMPLES), np.ones(5)
    want = 0.5 * (np.square(q - y) - np.square(z - y))
    np.testing.assert_allclose(increases("loss", "squared_error", q, z, y), want, rtol=1e-12)


@pytest.mark.parametrize("kind", ["loss", "kl"])
def test_huge_logits_stay_finite_and_equal_ones_cost_nothing(kind):
    z = np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], np.float32)
    q = np.repeat(z[None], 2, axis=0)
    found = increases(kind, "cross_entropy", q, z, np.array([0, 1]))
    np.testing.assert_array_equal(found, np.zeros((2, 2)))


def test_a_divergence_is_never_negative():
    z = RNG.normal(size=(400, 10)).astype(np.float32)
    found = increases("kl", "cross_entropy", z[None] + np.float32(1e-7), z, np.zeros(400, int))
    assert found.min() >= 0


def test_another_name_is_refused():
    z = np.zeros((1, 2))
    # by the type checker of the tests, or by the function itself
    with pytest.raises((ValueError, TypeCheckError), match="cross_entrophy"):
        increases("loss", "cross_entrophy", z[None], z, np.zeros(1, int))
