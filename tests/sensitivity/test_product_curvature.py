"""The exact Hessian of piecewise linear networks, by tangents, against `jax.hessian` in ε."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.network import Network
from jmpq.network.piecewise import piecewise_linear
from jmpq.network.tap import Tap
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.metrics.taylor import ExactHessian
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy
from tests import helpers

KEY = jax.random.key(0)


def move_network(network, inputs, placement):
    kernels = KernelSpec(granularity="tensor", clipping="minmax")
    spec = InputSpec(grid="symmetric", clipping="minmax", placement=placement)
    quantizers = calibrate_quantizers(
        network, [2, 4], [3], [inputs], weights=kernels, activations=spec
    )
    return MoveNetwork(network=network, quantizers=quantizers)


def tied_network():
    """One square kernel three times, two branches that join, a table looked up, ReLU."""
    keys = jax.random.split(KEY, 3)
    params = {
        "table": jax.random.normal(keys[0], (7, 4)),
        "twice": jax.random.normal(keys[1], (4, 4)),
        "head": jax.random.normal(keys[2], (4, 3)),
    }

    def apply(p, tokens):
        x = p["table"][tokens].sum(axis=1)
        y = jax.nn.relu(x @ p["twice"])
        z = jax.nn.relu(y @ p["twice"]) - 0.5 * y
        return (z @ p["twice"] + x) @ p["head"]

    tokens = jax.random.randint(keys[0], (5, 3), 0, 7)
    network = Network.from_function(apply, params, tokens, tied=["twice"])
    return network, tokens, jnp.array([0, 2, 1, 1, 0])


def convolutions():
    inputs, labels = helpers.images(5, 5)
    return helpers.residual_cnn(3, activation="relu"), inputs, labels


@pytest.mark.parametrize(
    ("make", "micro_batch", "placement"),
    [(convolutions, 5, "inputs"), (convolutions, 5, "stream"), (tied_network, 3, "inputs")],
)
def test_tangents_give_the_whole_hessian_of_a_relu_network(make, micro_batch, placement):
    network, inputs, labels = make()
    assert piecewise_linear(network.tap)
    moves = move_network(network, inputs, placement)
    assert (moves.quantizers.stream is None) == (placement == "inputs")

    def mean_loss(epsilon):
        z = moves.logits(epsilon, inputs)
        return jax.vmap(cross_entropy)(z, labels).mean()

    zero = jnp.zeros(len(moves.moves))
    gradient, want = jax.jit(lambda e: (jax.grad(mean_loss)(e), jax.hessian(mean_loss)(e)))(
        zero
    )
    got = ExactHessian(micro_batch=micro_batch)(moves, inputs, labels, KEY)
    scale = float(abs(want).max())
    np.testing.assert_allclose(got.second, want, rtol=1e-8, atol=1e-10 * scale)
    np.testing.assert_allclose(got.first, gradient, rtol=1e-8, atol=1e-12)
    assert float(abs(jnp.triu(want, 1)).max()) > 0.01 * scale  # there is something to find


@pytest.mark.parametrize(
    ("curved", "function"),
    [
        (False, lambda p, x: jax.nn.relu(x @ p) / 2.0),
        (False, lambda p, x: jax.nn.leaky_relu(jnp.where(x > 0, x, 2 * x) @ p)),
        (False, lambda p, x: jnp.sort(jnp.clip(x @ p, -1, 1), axis=1)),
        (False, lambda p, x: jnp.tanh(p[:, 0])[None] + x @ p),  # curved in a bias alone
        (True, lambda p, x: jnp.tanh(x @ p)),
        (True, lambda p, x: jax.nn.gelu(x) @ p),
        (True, lambda p, x: (x @ p) * x),
        (True, lambda p, x: x / (1.0 + abs(x @ p))),
        (True, lambda p, x: jax.nn.softmax(x @ p)),
        (True, lambda p, x: jax.lax.fori_loop(0, 2, lambda i, y: y + x @ p, x)),
        (True, lambda p, x: jnp.take_along_axis(x, x.argmax(1)[:, None], 1) * (x @ p)),
    ],
)
def test_curved_operations_are_known(curved, function):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, inputs = jnp.eye(3), jnp.ones((2, 3))
        tap = Tap(function, params, inputs)
        assert piecewise_linear(tap) is not curved


def test_a_smooth_network_takes_the_general_way():
    assert not piecewise_linear(helpers.residual_cnn(3).tap)
