"""Gauss-Newton by sampled classes: unbiased, with the standard error it tells."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.sensitivity.metrics.taylor import GaussNewton, class_factors
from jmpq.sensitivity.table import load_sensitivities, save_sensitivities
from jmpq.training.losses import kl_divergence

P = jnp.array([0.9, 0.07, 0.02, 0.01])
CURVATURE = np.diag(P) - np.outer(P, P)


SIGNS = jnp.array(list(itertools.product([-1.0, 1.0], repeat=4)))


def test_expectation_over_all_signs_is_the_curvature():
    s = class_factors(jnp.log(P), SIGNS)
    found = np.einsum("kc,kd->cd", s, s) / len(s)
    np.testing.assert_allclose(found, CURVATURE, rtol=1e-12, atol=1e-16)


def test_signs_vary_less_than_labels_where_a_class_is_nearly_certain():
    """Exact variances of (s·u)², relative to its mean squared: at most 2 with signs."""
    u = jnp.array([0.3, -1.0, 2.0, 0.5])
    v = u @ CURVATURE @ u
    by_sign = np.square(class_factors(jnp.log(P), SIGNS) @ u)
    by_label = np.square((jnp.eye(4) - P[None]) @ u)
    np.testing.assert_allclose(P @ by_label, v, rtol=1e-12)  # unbiased too
    relative = by_sign.var() / v**2, (P @ by_label**2 - v**2) / v**2
    assert relative[0] < 2
    assert relative[1] > 3 * relative[0]


@pytest.fixture(scope="module")
def exact(dense):
    return dense.analyse(GaussNewton())


@pytest.fixture(scope="module")
def drawn(dense):
    """Forty analyses that differ in the seed alone."""
    metric = GaussNewton(class_samples=6)
    return [dense.analyse(metric, seed=seed) for seed in range(40)]


def test_sampled_losses_are_within_five_standard_errors(drawn, exact):
    for found in drawn[:3]:
        assert np.all(np.abs(found.losses - exact.losses) < 5 * found.sampling_sem)
        np.testing.assert_allclose(found.first, exact.first, rtol=1e-10)
    mean = np.mean([found.second for found in drawn], axis=0)
    sem = np.std([found.second for found in drawn], axis=0, ddof=1) / np.sqrt(len(drawn))
    assert np.all(np.abs(mean - exact.second) < 5 * sem)  # cross terms too
    assert np.std([found.losses[0, 0] for found in drawn]) > 0


def test_standard_error_is_the_spread_over_seeds(drawn):
    spread = np.std([found.losses for found in drawn], axis=0, ddof=1)
    told = np.sqrt(np.mean([found.sampling_sem**2 for found in drawn], axis=0))
    np.testing.assert_allclose(told, spread, rtol=0.5)
    np.testing.assert_allclose(np.median(told / spread), 1, rtol=0.2)


def test_one_sample_has_no_standard_error_and_all_classes_have_none(dense, exact, tmp_path):
    one = dense.analyse(GaussNewton(class_samples=1))
    assert np.isnan(one.sampling_sem).all()
    assert exact.sampling_sem is None
    save_sensitivities(tmp_path / "s.npz", {"one": one, "exact": exact})
    loaded = load_sensitivities(tmp_path / "s.npz")
    np.testing.assert_array_equal(loaded["one"].sampling_sem, one.sampling_sem)
    assert loaded["exact"].sampling_sem is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_samples": 0}, "class_samples=0: give at least 1"),
        ({"class_samples": 4, "changes": "difference"}, "saves nothing by difference"),
        ({"class_samples": 4, "loss": kl_divergence}, "cross-entropy alone"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GaussNewton(**options)


def test_parts_of_a_batch_draw_what_the_whole_draws(dense):
    """One key per example: where the batch is cut does not matter."""
    metric = GaussNewton(class_samples=2)
    keys = jax.random.split(jax.random.key(3), 3)
    whole = metric(dense.moves, dense.inputs, dense.labels, keys)
    parts = [
        metric(dense.moves, dense.inputs[s], dense.labels[s], keys[s])
        for s in (slice(0, 1), slice(1, 3))
    ]
    np.testing.assert_allclose(
        whole.second, (parts[0].second + 2 * parts[1].second) / 3, rtol=1e-10
    )
