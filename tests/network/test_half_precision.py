"""Networks in half precision: scales, codes, losses and divergences are those of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.deploy.measure import Evaluator
from jmpq.formats import choice_grid
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.quantizers.uniform import fake_quantize, scale_of_range
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.logits.measure import measure_superposed
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.sensitivity.metrics.by_name import make_metric
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import kl_divergence

HALVES = [jnp.bfloat16, jnp.float16]
KINDS = ["bfloat16", "float16"]
W_BITS, A_BITS = (2, 8, 16), (8,)
SPECS = {"weights": KernelSpec(clipping="minmax"), "activations": InputSpec(clipping="minmax")}


def apply(params, x):
    """Two dense layers in the type of the parameters, whatever the inputs are."""
    x = x.astype(params["one"].dtype)
    x = jax.nn.softplus(x @ params["one"])
    return x @ params["two"]


@pytest.fixture(scope="module", params=HALVES, ids=KINDS)
def pair(request):
    """A network in half precision, and the float32 copy of the same values."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "one": jax.random.normal(keys[0], (5, 6)),
        "two": jax.random.normal(keys[1], (6, 4)),
    }
    half = jax.tree.map(lambda x: x.astype(request.param), params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    example = jnp.zeros((1, 5), jnp.float32)
    return [Network.from_function(apply, each, example) for each in (half, wide)]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    return rng.normal(size=(6, 5)).astype(np.float32), rng.integers(0, 4, 6)


def test_parameters_and_outputs_are_float32_but_the_function_is_the_users(pair, data):
    half, wide = pair
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, half.params, wide.params)
    z = half.logits(data[0])
    assert z.dtype == np.float32
    own = "bfloat16" if "bf16" in str(half.tap.jaxpr) else "float16"
    direct = apply(jax.tree.map(lambda x: x.astype(own), half.params), jnp.asarray(data[0]))
    assert direct.dtype == own
    np.testing.assert_array_equal(z, direct.astype(np.float32))
    assert [layer.name for layer in half.layers] == ["one", "two"]


def quantizers(network, data):
    return calibrate_quantizers(network, W_BITS, A_BITS, [data[0]], **SPECS)


def test_scales_and_codes_are_those_of_the_float32_copy(pair, data):
    half, wide = (quantizers(network, data) for network in pair)
    for one, two in zip(half.weights.scale, wide.weights.scale, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, two)
    # The first layer's input is rounded to half precision, and its scale is not.
    site, first = pair[0].sites[0], half.activations.scale[0]
    x = pair[0].record(data[0])[1][0].astype(np.float32)
    low, high = jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)
    assert site.has_input
    np.testing.assert_allclose(first[0, 0], (high - low) / 255, rtol=1e-6)
    stored = Quantizers.from_arrays(half.to_arrays())
    assert stored.sha256 == half.sha256


@pytest.mark.parametrize("dtype", HALVES, ids=KINDS)
def test_sixteen_bits_do_not_overflow(dtype):
    low, high = jnp.zeros((), dtype), jnp.full((), 4, dtype)
    scale, zero_point = scale_of_range(low, high, jnp.array(16), "affine")
    np.testing.assert_allclose(scale, 4 / 65535, rtol=1e-6)
    x = jnp.linspace(0, 4, 50).astype(dtype)
    rounded = fake_quantize(x, scale[None], zero_point[None], jnp.array([16]), "affine")
    assert rounded.dtype == dtype
    np.testing.assert_array_equal(rounded, x)  # a finer grid than that of the type


def test_more_bits_are_better_and_divergences_are_not_negative(pair, data):
    network = pair[0]
    evaluator = Evaluator(network, quantizers(network, data), [data])
    layers = ["one", "two"]
    made = [Allocation.from_bits(layers, np.full((2, 2), [[b], [32]])) for b in W_BITS]
    kl = [outcome.kl for outcome in evaluator(made)]
    assert kl[0] > kl[1] >= kl[2] >= 0
    assert kl[2] < 1e-3
    z = jnp.asarray(np.random.default_rng(2).normal(size=(500, 10)), jnp.bfloat16)
    q = z + jnp.bfloat16(0.01)
    found = jax.vmap(kl_divergence)(q, z)
    assert found.dtype == np.float32
    assert abs(float(found.min())) < 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "gauss_newton",
        "empirical_fisher",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "gauss_newton_difference", "first_order", "hessian", "output_fisher",
                "hawq_eigenvalue", "hawq_trace", "qbert", "squared_error", "measured_loss",
                "measured_kl", "measured_pairs_loss", "measured_pairs_kl", "path_attribution",
            )
        ),
    ],
)  # fmt: skip
def test_losses_are_near_those_of_the_float32_copy(pair, data, name):
    batches = [(data[0][:3], data[1][:3]), (data[0][3:], data[1][3:])]
    with jax.numpy_dtype_promotion("standard"):
        one, two = (
            analyse(
                MoveNetwork(network=network, quantizers=quantizers(network, data)),
                make_metric(name), batches, choice_grid(W_BITS, A_BITS),
            )
            for network in pair
        )  # fmt: skip
    scale = abs(two.losses[:, 0]).max()
    tolerance = 0.25 if name.startswith(("hawq", "qbert", "measured")) else 0.1
    assert np.isfinite(one.losses).all()
    np.testing.assert_allclose(one.losses, two.losses, atol=tolerance * scale)


def test_logit_changes_are_stored_as_float32(pair, data, tmp_path):
    network = pair[0]
    moves = MoveNetwork(network=network, quantizers=quantizers(network, data))
    found = measure_superposed(
        moves, [data], choice_grid(W_BITS, A_BITS), partial=tmp_path / "p"
    )
    found.save(tmp_path / "superposed.npz")
    loaded = Superposed.load(tmp_path / "superposed.npz")
    assert loaded.changes.dtype == np.float32
    np.testing.assert_array_equal(loaded.changes, found.changes)
    again = measure_superposed(
        moves, [data], choice_grid(W_BITS, A_BITS), partial=tmp_path / "p"
    )
    np.testing.assert_array_equal(again.changes, found.changes)
