"""Extreme eigenpairs against dense float64 eigen-decompositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jmpq.curvature.eigen import top_eigenpairs
from jmpq.curvature.hvp import hessian
from jmpq.curvature.krylov import flat_operator
from jmpq.curvature.power import power_iteration
from tests.curvature.helpers import dense_hessian, quadratic, tiny_mlp

KEY = jax.random.key(0)
INDEFINITE = np.concatenate(
    [np.linspace(-1, 1, 52), [-7.0, -5.5, -3.0, 2.0, 4.0, 5.0, 6.0, 9.0]]
)


def best(values, which, k):
    order = {"largest": -values, "smallest": values, "magnitude": -abs(values)}[which]
    return values[np.argsort(order, kind="stable")[:k]]


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_three_ends_match_the_dense_hessian(which, seed):
    _, loss, params, _ = tiny_mlp(seed)
    matrix = dense_hessian(loss, params)
    values, vectors = np.linalg.eigh(matrix)
    got = top_eigenpairs(
        hessian(loss), params, 3, key=jax.random.key(seed), which=which, tolerance=1e-9
    )
    want = best(values, which, 3)
    np.testing.assert_allclose(got.values, want, rtol=1e-8)
    assert got.converged.all()
    for value, vector in zip(want, got.vectors, strict=True):
        flat, _ = ravel_pytree(vector)
        overlap = vectors[:, abs(values - value) < 1e-9].T @ np.asarray(flat)
        np.testing.assert_allclose(np.linalg.norm(overlap), 1.0, rtol=1e-10)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("block_size", [1, None])
def test_a_small_basis_is_restarted_until_converged(which, block_size):
    product, params, matrix = quadratic(INDEFINITE)
    got = top_eigenpairs(
        product, params, 3, key=KEY, which=which, tolerance=1e-9, max_basis=12,
        block_size=block_size,
    )  # fmt: skip
    assert got.converged.all()
    assert got.products > 15
    np.testing.assert_allclose(got.values, best(INDEFINITE, which, 3), rtol=1e-8)
    for value, vector, residual in zip(got.values, got.vectors, got.residuals, strict=True):
        flat = np.asarray(ravel_pytree(vector)[0])
        np.testing.assert_allclose(flat @ flat, 1.0, rtol=1e-12)
        np.testing.assert_allclose(
            np.linalg.norm(matrix @ flat - value * flat), residual, atol=1e-12
        )


def test_every_copy_of_a_degenerate_eigenvalue_is_found():
    spectrum = np.concatenate([np.linspace(0, 1, 56), [5.0, 5.0, 5.0, 3.0]])
    product, params, _ = quadratic(spectrum)
    got = top_eigenpairs(product, params, 4, key=KEY, tolerance=1e-9)
    np.testing.assert_allclose(got.values, [5, 5, 5, 3], rtol=1e-8)
    vectors = np.stack([ravel_pytree(v)[0] for v in got.vectors])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-10)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_multiple_of_the_identity_is_exact(value):
    product, params, _ = quadratic(np.full(12, value))
    got = top_eigenpairs(product, params, 3, key=KEY)
    np.testing.assert_allclose(got.values, value, rtol=1e-12)
    assert got.converged.all()


def test_all_eigenpairs_of_a_diagonal_hessian():
    values = jnp.array([3.0, -4.0, 1.0, 0.0, 2.0])
    loss = lambda p: 0.5 * (values * p["x"] ** 2).sum()  # noqa: E731
    got = top_eigenpairs(hessian(loss), {"x": values}, 5, key=KEY, which="largest")
    np.testing.assert_allclose(got.values, [3, 2, 1, 0, -4], atol=1e-12)
    assert abs(got.vectors[0]["x"][0]) == pytest.approx(1.0)


def test_low_rank_stops_at_the_rank():
    product, params, _ = quadratic([0.0] * 58 + [1.0, 2.0])
    got = top_eigenpairs(product, params, 4, key=KEY)
    np.testing.assert_allclose(got.values, [2, 1, 0, 0], atol=1e-10)
    assert got.converged.all()
    assert got.products < 20


def test_float32_converges_and_keeps_its_type():
    product, params, _ = quadratic(INDEFINITE, dtype=jnp.float32)
    got = top_eigenpairs(product, params, 3, key=KEY, tolerance=1e-4)
    np.testing.assert_allclose(got.values, [9, -7, 6], rtol=1e-5)
    assert got.converged.all()
    assert got.vectors[0]["a"].dtype == jnp.float32


def test_too_few_products_are_reported_as_not_converged():
    product, params, matrix = quadratic(np.linspace(0, 1, 60))
    got = top_eigenpairs(product, params, 2, key=KEY, tolerance=1e-9, max_products=6)
    assert not got.converged.any()
    assert got.products == 8
    assert (got.residuals > 1e-6).all()
    # Weyl: an eigenvalue lies within the residual of each value, converged or not.
    nearest = abs(np.linalg.eigvalsh(matrix)[:, None] - got.values).min(axis=0)
    assert (nearest <= got.residuals).all()


def test_a_key_decides_the_result():
    product, params, _ = quadratic(INDEFINITE)
    a, b, c = (
        top_eigenpairs(product, params, 2, key=jax.random.key(s), max_products=6)
        for s in (1, 1, 2)
    )
    assert (a.values == b.values).all()
    assert (a.vectors[0]["b"] == b.vectors[0]["b"]).all()
    assert (a.values != c.values).all()


def test_sizes_that_do_not_fit_are_refused():
    product, params, _ = quadratic(np.arange(12.0))
    with pytest.raises(ValueError, match="k must be 1 to 12"):
        top_eigenpairs(product, params, 13, key=KEY)
    with pytest.raises(ValueError, match="do not fit k=2"):
        top_eigenpairs(product, params, 2, key=KEY, max_basis=3)
    with pytest.raises(ValueError, match="do not fit k=2"):
        top_eigenpairs(product, params, 2, key=KEY, block_size=0)
    with pytest.raises(ValueError, match="must be at least k=2"):
        top_eigenpairs(product, params, 2, key=KEY, max_products=1)
    with pytest.raises(ValueError, match="at least 2 products"):
        power_iteration(product, params, key=KEY, max_products=1)


def test_parameters_without_curvature_are_refused():
    product, _, _ = quadratic(np.arange(12.0))
    with pytest.raises(ValueError, match=r"needs float parameters, got .*int32"):
        flat_operator(product, {"step": jnp.zeros(3, jnp.int32)})
    with pytest.raises(ValueError, match="`params` is empty"):
        top_eigenpairs(product, {}, key=KEY)


def test_a_product_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        top_eigenpairs(lambda _, v: v * jnp.inf, jnp.ones(4), key=KEY)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_power_iteration_finds_a_separated_eigenvalue(seed):
    product, params, _ = quadratic(np.concatenate([np.linspace(-1, 1, 59), [-10.0]]))
    got = power_iteration(product, params, key=jax.random.key(seed), tolerance=1e-12)
    np.testing.assert_allclose(got.values, [-10], rtol=1e-8)
    assert got.converged.all()
    assert got.residuals[0] < 1e-4


def test_power_iteration_says_when_it_ran_out_and_stops_on_zero():
    product, params, _ = quadratic([1.0] * 30 + [-1.0] * 30)
    got = power_iteration(product, params, key=KEY, tolerance=0.0, max_products=9)
    assert got.products == 9
    assert not got.converged.any()
    assert got.residuals[0] > 0.1  # what the 1 % rule alone would not show
    zero = power_iteration(lambda _, v: v * 0.0, jnp.ones(3), key=KEY)
    assert zero.values == [0.0]
    assert zero.converged.all()
