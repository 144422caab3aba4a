"""Linen, NNX and plain JAX reach the same network; unusual layers are seen or refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jmpq.formats import choice_grid
from jmpq.network.network import Network
from jmpq.network.patches import input_rows
from jmpq.quantizers.calibrate import calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.metrics.taylor import EmpiricalFisher
from jmpq.sensitivity.moves import MoveNetwork
from tests import helpers


class ResidualNNX(nnx.Module):
    """`helpers.ResidualCNN`."""

    def __init__(self, rngs):
        double = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": rngs}
        conv = lambda a, b: nnx.Conv(a, b, (3, 3), use_bias=False, **double)  # noqa: E731
        self.stem, self.conv1, self.conv2 = conv(2, 2), conv(2, 3), conv(3, 2)
        self.bn0, self.bn1, self.bn2 = (nnx.BatchNorm(n, **double) for n in (2, 3, 2))
        self.head = nnx.Linear(2, 3, **double)

    def __call__(self, x):
        x = nnx.softplus(self.bn0(self.stem(x)))
        y = nnx.softplus(self.bn1(self.conv1(x)))
        x = nnx.softplus(x + self.bn2(self.conv2(y))).mean((1, 2))
        return self.head(x)


def nnx_twin(network):
    """The same weights and statistics in NNX."""
    model = ResidualNNX(nnx.Rngs(0))
    values = {**network.params}
    for name, statistics in network.state["batch_stats"].items():
        values[name] = {**values[name], **statistics}
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    nnx.replace_by_pure_dict(state, values)
    nnx.update(model, state)
    model.eval()
    return model


def by_hand(network):
    """The same network as a plain function of a list of kernels and the head's bias."""

    def apply(params, x):
        zeros = [jnp.zeros(())] * 4
        kernels, bias = params
        with_bias = {**network.params, "head": {"bias": bias}}
        frozen = type("Frozen", (), {"params": with_bias, "state": network.state})
        return helpers.manual_logits(frozen, kernels, zeros, x)[0]

    return apply, (network.kernels(), network.params["head"]["bias"])


def sensitivities(network, inputs, labels):
    spec = KernelSpec(grid="symmetric", granularity="channel", clipping="minmax")
    weights = calibrate_weights(network, spec, (2, 4), [inputs])
    moves = MoveNetwork(
        network=network, quantizers=Quantizers(weights=weights, activations=None)
    )
    return analyse(moves, EmpiricalFisher(), [(inputs, labels)], choice_grid([2, 4], [32]))


def test_linen_nnx_and_a_plain_function_give_the_same_sensitivities():
    linen = helpers.residual_cnn()
    inputs, labels = helpers.images(1)
    example = inputs[:1]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        twin = Network.from_nnx(nnx_twin(linen), example)
    plain = Network.from_function(*by_hand(linen), example)
    assert [x.name for x in twin.layers] == ["stem", "conv1", "conv2", "head"]
    assert [x.name for x in plain.layers] == ["0/0", "0/1", "0/2", "0/3"]
    assert twin.other_parameters == linen.other_parameters
    want = sensitivities(linen, inputs, labels)
    for network in (twin, plain):
        assert [x.macs for x in network.layers] == [x.macs for x in linen.layers]
        got = sensitivities(network, inputs, labels)
        np.testing.assert_allclose(got.losses, want.losses, rtol=1e-9)
        np.testing.assert_allclose(got.second, want.second, rtol=1e-8, atol=1e-14)


def test_nnx_models_are_copied_and_must_be_in_evaluation_mode():
    model = nnx_twin(helpers.residual_cnn())
    example = jnp.zeros((1, 5, 5, 2))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        network = Network.from_nnx(model, example)
        before = helpers.apply(network, network.params, example + 1)
        model.stem.kernel[...] = 0 * model.stem.kernel[...]
        np.testing.assert_array_equal(
            helpers.apply(network, network.params, example + 1), before
        )
        model.train()
        with pytest.raises(
            ValueError, match=r"ResidualNNX is not in evaluation mode.*eval\(\)"
        ):
            Network.from_nnx(model, example)


class Reader(nnx.Module):
    """A recurrent module with dropout behind it; `rows` gives what it reads."""

    def __init__(self, cell, rngs):
        self.rnn = nnx.RNN(cell(3, 4, rngs=rngs), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x, deterministic=None):
        return self.head(self.dropout(self.rnn(x)[:, -1], deterministic=deterministic))

    def rows(self, x, *, scale):
        return scale * self.head(self.rnn(x).mean(1))


@pytest.mark.parametrize("cell", [nnx.GRUCell, nnx.OptimizedLSTMCell])
def test_recurrent_nnx_modules_are_refused_for_their_loop_and_can_be_ignored(cell):
    model, x = Reader(cell, nnx.Rngs(0)), jnp.ones((2, 5, 3), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        match = r"'rnn/cell/dense_h/kernel', .*: every step of a `scan` uses it.*ignore=\('rnn"
        with pytest.raises(ValueError, match=match) as error:
            Network.from_nnx(model, x, deterministic=True)
        assert "bias" not in str(error.value)
        ignore = eval(str(error.value).partition("ignore=")[2].rstrip("."))
        with pytest.raises(ValueError, match=r"random numbers reach its output.*eval\(\)"):
            Network.from_nnx(model, x, ignore=ignore)
        network = Network.from_nnx(model, x, ignore=ignore, deterministic=True)
        assert [layer.name for layer in network.layers] == ["head"]
        want = model(x, deterministic=True)
        np.testing.assert_allclose(network.logits(x), want, rtol=1e-6)
        other = Network.from_nnx(model, x, ignore=ignore, method="rows", scale=2.0)
        np.testing.assert_allclose(other.logits(x), model.rows(x, scale=2.0), rtol=1e-6)


class Keeper(nnx.Module):
    """It keeps what it computed in a new variable, and returns it too if asked."""

    def __init__(self, rngs):
        self.body = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x, *, both):
        x = nnx.relu(self.body(x))
        self.hidden = nnx.Intermediate(x)
        return (x, self.head(x)) if both else self.head(x)


def test_nnx_modules_may_keep_and_return_several_arrays():
    x = jnp.ones((2, 3), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        network = Network.from_nnx(Keeper(nnx.Rngs(0)), x, output=1, both=True)
        want = Network.from_nnx(Keeper(nnx.Rngs(0)), x, both=False).logits(x)
        np.testing.assert_array_equal(network.logits(x), want)


class Unusual(nn.Module):
    """Layers that are not the usual convolution and dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3,), name="conv1d")(x)
        x = nn.ConvTranspose(6, (4,), strides=(2,), name="transposed")(x)
        x = nn.ConvTranspose(4, (3,), transpose_kernel=True, name="flipped")(x)
        x = nn.DenseGeneral((2, 3), axis=-1, name="split")(x)
        x = nn.remat(nn.DenseGeneral)(5, axis=(-2, -1), name="joined")(x)
        x = nn.Einsum((5, 3), "btf,fo->bto", use_bias=False, name="einsum")(x)
        return x.mean(1)


UNUSUAL = {  # kernel, multiply-accumulates of an example of 5 positions, 3 features
    "conv1d": ((3, 3, 4), 5 * 36),
    "transposed": ((4, 4, 6), 5 * 96),
    "flipped": ((3, 6, 4), 10 * 72),
    "split": ((4, 2, 3), 10 * 24),
    "joined": ((2, 3, 5), 10 * 30),
    "einsum": ((5, 3), 10 * 15),
}


def initialised(module, x, seed=0):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        structs = jax.eval_shape(module.init, jax.random.key(0), x)
        rng = np.random.default_rng(seed)
        draw = lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype)  # noqa: E731
        return jax.tree.map(draw, structs)


def test_unusual_layers_are_seen_with_their_operations_and_inputs():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 3)), jnp.float32)
    variables = initialised(Unusual(), x)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        network = Network.from_linen(Unusual(), variables, x)
        table = {layer.name: layer for layer in network.layers}
        assert set(table) == set(UNUSUAL)
        for name, (shape, macs) in UNUSUAL.items():
            assert np.prod(table[name].kernel_shape) == np.prod(shape)
            assert (name, table[name].macs) == (name, macs)
        outputs = {}

        def keep(site, x, op):
            rows = input_rows(site, x)
            matrix = network.to_matrix(site.layer_index, site.kernel)
            outputs[site.name] = op(x), (rows[0] @ matrix.T)
            np.testing.assert_array_equal(
                network.from_matrix(site.layer_index, matrix, site.kernel), site.kernel
            )
            return outputs[site.name][0]

        logits = network.run(x, keep)
        np.testing.assert_allclose(logits, Unusual().apply(variables, x), rtol=1e-5)
    for direct, product in outputs.values():
        np.testing.assert_allclose(direct.reshape(product.shape), product, rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="shared")
        return nn.Dense(2, name="head")(layer(nn.relu(layer(x))))


def test_a_layer_that_is_called_twice_is_quantized_once_where_that_is_said():
    x = jnp.ones((1, 4), jnp.float32)
    variables = initialised(Shared(), x)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        with pytest.raises(ValueError, match=r"'shared/kernel' is used 2 times"):
            Network.from_linen(Shared(), variables, x)
        network = Network.from_linen(Shared(), variables, x, tied=["shared/kernel"])
    assert [(layer.name, layer.macs) for layer in network.layers] == [
        ("shared", 32),
        ("head", 8),
    ]


def test_an_equinox_module_is_a_plain_function():
    eqx = pytest.importorskip("equinox")
    first, second = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 3, 3, key=first),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(27, 4, key=second),
        ]
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 5, 5)))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
        network = Network.from_function(apply, params, x)
        logits, recorded = network.record(x)
        np.testing.assert_allclose(logits, jax.vmap(model)(x), rtol=1e-9)
    assert [layer.name for layer in network.layers] == ["layers/0", "layers/3"]
    assert [layer.macs for layer in network.layers] == [9 * 54, 27 * 4]
    np.testing.assert_array_equal(recorded[0].reshape(x.shape), x)
