import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.fake_quant import quantize_kernel
from jmpq.quantizers.learned import (
    MARGIN,
    ScaleRows,
    gradient_factors,
    kernels_near_codes,
    rows_of,
    scale_gradients,
    with_rows,
)
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.quantizers.uniform import fake_quantize
from tests import helpers

RANGES = {"symmetric": (-3, 3), "half": (-4, 3), "affine": (0, 7)}  # of 3 bits
SCALE, ZERO = 0.3, {"symmetric": 0.0, "half": 0.0, "affine": 2.0}


def quantized(x, scale, grid, zero=None):
    """3 bits, one scale."""
    zero = jnp.full_like(x, ZERO[grid] if zero is None else zero)
    return fake_quantize(x, jnp.broadcast_to(scale, x.shape), zero, jnp.array(3), grid)


def values(grid, seed=0):
    """Values inside and outside the range, none near a rounding threshold or an end."""
    x = np.random.default_rng(seed).uniform(-2.5, 2.5, 400)
    low, high = (SCALE * (end - ZERO[grid]) for end in RANGES[grid])
    far = np.abs(np.abs(x / SCALE) % 1 - 0.5) > 0.02
    return x[far & (np.abs(x - low) > 0.01) & (np.abs(x - high) > 0.01)]


@pytest.mark.parametrize("grid", RANGES)
def test_gradient_by_values_is_straight_through_up_to_the_ends(grid):
    low, high = (end - ZERO[grid] for end in RANGES[grid])
    x = SCALE * np.array([low - 0.01, low, low + 0.3, 0.4, high - 0.3, high, high + 0.01])
    gradient = jax.grad(lambda x: quantized(x, jnp.array(SCALE), grid).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("grid", RANGES)
def test_gradient_by_the_scale_is_that_of_the_paper(grid):
    """Esser et al. (2020), eq. (3), for each value by itself; codes less the zero point."""
    x = values(grid)
    low, high = (end - ZERO[grid] for end in RANGES[grid])
    v = x / SCALE
    want = np.where(v <= low, low, np.where(v >= high, high, np.round(v) - v))
    assert (v < low).any()
    assert (v > high).any()
    by_scale = jax.vmap(
        jax.grad(lambda s, x: quantized(x[None], s, grid)[0]), in_axes=(None, 0)
    )
    got = by_scale(jnp.array(SCALE), jnp.asarray(x))
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("grid", RANGES)
def test_both_gradients_together_are_the_true_derivative_along_the_scale(grid):
    """s·round(x/s) has the derivative round(x/s) by s: that by s, and x/s times that by x."""
    x = values(grid, 1)
    h = 1e-7
    up, down = (np.asarray(quantized(jnp.asarray(x), SCALE + d, grid)) for d in (h, -h))
    differences = (up - down) / (2 * h)
    by_x, by_s = jax.vmap(
        jax.grad(lambda x, s: quantized(x[None], s, grid)[0], (0, 1)), in_axes=(0, None)
    )(jnp.asarray(x), jnp.array(SCALE))
    np.testing.assert_allclose(by_s + x / SCALE * by_x, differences, atol=1e-6)


@pytest.fixture(scope="module")
def network():
    return helpers.residual_cnn()


def calibrated(network, *, bits=(2, 3, 8), activations=False, **spec):
    inputs = [helpers.images(seed, 8)[0] for seed in (1, 2)]
    found = None
    if activations:
        grid = InputSpec(clipping="minmax")
        key = jax.random.key(0)
        found = calibrate_activations(network, grid, (4, 8), inputs, key=key)
    weights = calibrate_weights(network, KernelSpec(**spec), bits, inputs)
    return Quantizers(weights=weights, activations=found)


def test_gradient_factors_are_those_of_the_paper(network):
    weights, activations, _ = gradient_factors(
        network,
        calibrated(network, activations=True, clipping="minmax"),
        (8, 2, 3, 32),
        (8, 4, 32, 4),
    )
    sizes = [9 * 2, 9 * 2, 9 * 3]  # weights that share the scale of an output channel
    want = [1 / np.sqrt(n * qmax) for n, qmax in zip(sizes, (127, 1, 3), strict=True)]
    np.testing.assert_allclose(weights, [*want, 0.0])
    sizes = {0: 5 * 5 * 2, 1: 5 * 5 * 2, 3: 2}  # values of one example
    want = [1 / np.sqrt(sizes[i] * qmax) for i, qmax in ((0, 255), (1, 15), (3, 15))]
    np.testing.assert_allclose(np.array(activations)[[0, 1, 3]], want)
    assert activations[2] == 0


def test_a_grid_without_a_positive_code_is_refused_by_name(network):
    quantizers = calibrated(network, bits=(1, 8), grid="half", clipping="minmax")
    with pytest.raises(ValueError, match=r"Layer 'conv1': 1 bit on the 'half' grid has no"):
        gradient_factors(network, quantizers, (8, 1, 1, 8), (32,) * 4)


def test_scaled_gradients_leave_the_values():
    rows = ScaleRows((jnp.array([0.1, 0.2]),), (jnp.array([0.3]),))
    factors = ([0.5], [3.0], [])
    same = scale_gradients(rows, factors)
    for got, want in zip(jax.tree.leaves(same), jax.tree.leaves(rows), strict=True):
        np.testing.assert_array_equal(got, want)
    gradient = jax.grad(
        lambda r: sum(x.sum() for x in jax.tree.leaves(scale_gradients(r, factors)))
    )(rows)
    np.testing.assert_allclose(gradient.weights[0], [0.5, 0.5])
    np.testing.assert_allclose(gradient.activations[0], [3.0])


@pytest.mark.parametrize("blocks", [{}, {"granularity": "group", "group_size": 1}])
def test_the_rows_of_an_allocation_quantize_as_the_table_does(network, blocks):
    quantizers = calibrated(network, grid="affine", clipping="minmax", **blocks)
    w_bits = (8, 2, 3, 32)
    held = with_rows(quantizers, *rows_of(network, quantizers, w_bits, (32,) * 4))
    for layer in (1, 3):
        kernel, b = network.kernels()[layer], jnp.array(w_bits[layer])
        want = quantize_kernel(network, layer, kernel, b, quantizers.weights)
        np.testing.assert_array_equal(
            quantize_kernel(network, layer, kernel, b, held.weights), want
        )
    with pytest.raises(ValueError, match="Layer 'conv2': weight bits 5 were not calibrated"):
        rows_of(network, quantizers, (8, 2, 5, 8), (32,) * 4)


def test_kernels_near_codes_round_to_them_and_move_no_more_than_needed(network):
    quantizers = calibrated(network, rounding="gptq", bits=(2, 3))
    w_bits, kernels = (3, 2, 2, 3), network.kernels()
    moved = kernels_near_codes(network, quantizers, w_bits)
    rows = rows_of(network, quantizers, w_bits, (32,) * 4)
    held = with_rows(quantizers, *rows)
    differ = 0
    for layer, bits in enumerate(map(jnp.array, w_bits)):
        want = quantize_kernel(network, layer, kernels[layer], bits, quantizers.weights)
        got = quantize_kernel(network, layer, moved[layer], bits, held.weights)
        np.testing.assert_allclose(got, want, atol=1e-12)
        nearest = quantize_kernel(network, layer, kernels[layer], bits, held.weights)
        matrices = [network.to_matrix(layer, x) for x in (nearest, want, moved[layer])]
        shift = np.asarray(matrices[2] - network.to_matrix(layer, kernels[layer]))
        steps = np.asarray(rows[0].weights[layer])[:, None]
        stays = np.isclose(matrices[0], matrices[1], atol=1e-9)
        assert (np.abs(shift) / steps)[stays].max() <= MARGIN + 1e-9
        differ += (~stays).sum()
    assert differ > 0
    plain = calibrated(network, clipping="minmax")
    for a, b in zip(kernels_near_codes(network, plain, w_bits), kernels, strict=True):
        np.testing.assert_array_equal(a, b)
