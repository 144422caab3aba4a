"""Spectral densities: quadrature against the eigenvalues it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.curvature.hvp import hessian
from jmpq.curvature.spectrum import density, lanczos_spectrum, moment
from jmpq.curvature.trace import trace
from tests.curvature.helpers import dense_hessian, quadratic, tiny_mlp

KEY = jax.random.key(0)
GRID = np.linspace(-4, 6, 41)


def smoothed(eigenvalues, width):
    distance = (GRID[:, None] - eigenvalues) / width
    return (np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))).mean(axis=1)


def test_a_multiple_of_the_identity_takes_one_step():
    product, params, _ = quadratic(np.full(12, 3.0))
    got = lanczos_spectrum(product, params, key=KEY, probes=2, steps=5)
    assert got.products == 2
    np.testing.assert_allclose(got.nodes, 3.0, rtol=1e-12)
    np.testing.assert_allclose(got.weights.sum(axis=1), 1.0, rtol=1e-12)
    curve = density(got, GRID, width=0.5)
    np.testing.assert_allclose(curve.value, smoothed(np.array([3.0]), 0.5), rtol=1e-8)
    np.testing.assert_allclose(curve.sem, 0.0, atol=1e-12)


def test_a_diagonal_hessian_is_exact_in_all_steps():
    values = np.array([3.0, -2.0, 1.0, 0.0, 5.0])
    loss = lambda p: 0.5 * (jnp.asarray(values) * p**2).sum()  # noqa: E731
    got = lanczos_spectrum(hessian(loss), jnp.ones(5), key=KEY, probes=2, steps=60)
    np.testing.assert_allclose(got.nodes, np.sort(values)[None].repeat(2, 0), atol=1e-10)
    np.testing.assert_allclose(got.weights, 0.2, rtol=1e-8)
    curve = density(got, GRID, width=0.3)
    np.testing.assert_allclose(curve.value, smoothed(values, 0.3), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_moments_and_density_are_within_five_standard_errors(seed):
    eigenvalues = np.concatenate([np.linspace(-1, 1, 58), [4.0, 5.0]])
    product, params, matrix = quadratic(eigenvalues, seed=seed)
    got = lanczos_spectrum(product, params, key=jax.random.key(seed), probes=30, steps=20)
    count, first, second = (moment(got, order) for order in (0, 1, 2))
    np.testing.assert_allclose(count.value, 60, rtol=1e-12)
    assert abs(first.value - np.trace(matrix)) < 5 * first.sem
    assert abs(second.value - (matrix**2).sum()) < 5 * second.sem
    assert (first.probes, first.products) == (30, 600)
    curve = density(got, GRID, width=0.4)
    error = abs(curve.value - smoothed(eigenvalues, 0.4))
    assert (error <= 5 * curve.sem + 1e-6).all()
    fine = np.linspace(-10, 10, 2001)
    total = density(got, fine, width=0.1).value.sum() * (fine[1] - fine[0])
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_nodes_reach_the_extreme_eigenvalues_of_a_network():
    _, loss, params, _ = tiny_mlp(1)
    values = np.linalg.eigvalsh(dense_hessian(loss, params))
    got = lanczos_spectrum(hessian(loss), params, key=KEY, probes=2, steps=23)
    np.testing.assert_allclose(got.nodes.min(axis=1), values[0], rtol=1e-8)
    np.testing.assert_allclose(got.nodes.max(axis=1), values[-1], rtol=1e-8)
    again = lanczos_spectrum(hessian(loss), params, key=KEY, probes=2, steps=23)
    np.testing.assert_array_equal(again.nodes, got.nodes)


def test_float32_moments_are_those_of_float64():
    eigenvalues = np.linspace(-1, 5, 60)
    a, b = (
        moment(lanczos_spectrum(product, params, key=KEY, probes=3, steps=8), 2)
        for product, params, _ in (quadratic(eigenvalues, dtype=d) for d in ("f4", "f8"))
    )
    np.testing.assert_allclose(a.value, b.value, rtol=0.5)  # other probes in another type
    one = lanczos_spectrum(
        *quadratic(eigenvalues, dtype=jnp.float32)[:2], key=KEY, probes=1, steps=3
    )
    assert np.isnan(moment(one, 1).sem)
    assert np.isnan(density(one, GRID, width=1.0).sem).all()
    assert one.products == trace(*quadratic(eigenvalues)[:2], key=KEY, max_probes=3).products


def test_spectrum_errors():
    product, params, _ = quadratic(np.arange(12.0))
    with pytest.raises(ValueError, match="must be at least 1"):
        lanczos_spectrum(product, params, key=KEY, steps=0)
    with pytest.raises(ValueError, match="not finite"):
        lanczos_spectrum(lambda _, v: v * jnp.nan, jnp.ones(4), key=KEY)
    got = lanczos_spectrum(product, params, key=KEY, probes=1, steps=3)
    with pytest.raises(ValueError, match="must be positive"):
        density(got, GRID, width=0.0)
