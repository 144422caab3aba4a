"""Output Fisher against a network written out by hand, its layers' outputs within reach."""

import jax
import jax.numpy as jnp
import numpy as np

from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.metrics.output_fisher import OutputFisher, output_gradients
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy
from tests import helpers


def layer_outputs(inputs, kernels):
    """Each layer alone, linear in its input and in its kernel."""
    conv = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return [
        *(conv(x, w) for x, w in zip(inputs[:3], kernels[:3], strict=True)),
        inputs[3] @ kernels[3],
    ]


def logits_with_probes(network, kernels, probes, inputs):
    """`ResidualCNN` by hand, `probes` added to the layers' outputs."""
    params, stats = network.params, network.state["batch_stats"]

    def conv(x, i):
        y = jax.lax.conv_general_dilated(
            x, kernels[i], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y, name = y + probes[i], f"bn{i}"
        mean, var = (stats[name][k][None, None, None] for k in ("mean", "var"))
        scale, bias = (params[name][k][None, None, None] for k in ("scale", "bias"))
        return (y - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    act = lambda x: jnp.logaddexp(x, 0.0)  # noqa: E731
    x = act(conv(inputs, 0))
    x = act(x + conv(act(conv(x, 1)), 2)).mean((1, 2))
    return x @ kernels[3] + probes[3] + params["head"]["bias"][None]


def test_output_fisher(dense):
    kernels = dense.network.kernels()
    _, seen = helpers.manual_logits(dense.network, kernels, dense.shifts, dense.inputs)
    outputs = layer_outputs(seen, kernels)

    def losses(probes):
        z = logits_with_probes(dense.network, kernels, probes, dense.inputs)
        return jax.vmap(cross_entropy)(z, dense.labels)

    probes = [jnp.zeros_like(y) for y in outputs]
    slopes = jax.jit(jax.jacobian(losses))(probes)  # [example, example, ...]: own loss only
    slopes = [np.stack([s[n, n] for n in range(3)]) for s in slopes]
    want = []
    for m, delta in enumerate(dense.deltas):
        by_kernel, by_shift = dense.unravel(delta)
        changed = (
            layer_outputs(seen, by_kernel) if m % 4 < 2 else layer_outputs(by_shift, kernels)
        )
        change = np.asarray(changed[m // 4])
        want.append(np.square(slopes[m // 4] * change).sum() / 3)
    got = dense.analyse(OutputFisher())
    np.testing.assert_allclose(got.second, want, rtol=1e-10)
    np.testing.assert_allclose(got.losses, 0.5 * got.members @ want, rtol=1e-10)
    assert not got.has_interactions
    found, _ = jax.jit(output_gradients, static_argnums=1)(
        dense.network, cross_entropy, dense.inputs, dense.labels
    )
    for g, slope in zip(found, slopes, strict=True):
        np.testing.assert_allclose(g, slope, rtol=1e-10, atol=1e-14)


def test_a_layer_used_twice_adds_up_its_uses():
    def apply(params, x):
        return jnp.tanh(x @ params["w"]) @ params["w"]

    def apart(params, x):
        return jnp.tanh(x @ params["v"]) @ params["w"]

    w, x = (jax.random.normal(jax.random.key(i), (3, 3)) for i in range(2))
    labels = jnp.array([0, 2, 1])
    kernels = KernelSpec(clipping="minmax")
    inputs = InputSpec(grid="symmetric", granularity="channel", clipping="minmax")
    found = []
    for function, params, tied in (
        (apply, {"w": w}, ("w",)),
        (apart, {"v": w, "w": w + 0}, ()),
    ):
        network = Network.from_function(function, params, x, tied=tied)
        quantizers = Quantizers(
            weights=calibrate_weights(network, kernels, (2, 3)),
            activations=calibrate_activations(
                network, inputs, (2,), [x], key=jax.random.key(0)
            ),
        )
        moves = MoveNetwork(network=network, quantizers=quantizers)
        found.append(OutputFisher()(moves, x, labels, jax.random.key(0)).second)
    np.testing.assert_allclose(found[0], found[1][:3] + found[1][3:], rtol=1e-12)


def test_weights_only_and_activations_only(dense):
    whole = OutputFisher()(dense.moves, dense.inputs, dense.labels, jax.random.key(0)).second
    weights, none = (
        dense.quantizers.weights,
        calibrate_weights(dense.network, KernelSpec(), ()),
    )
    activations = dense.quantizers.activations
    for quantizers, kept in (
        (Quantizers(weights=weights, activations=None), [0, 1]),
        (Quantizers(weights=none, activations=activations), [2, 3]),
    ):
        moves = MoveNetwork(network=dense.network, quantizers=quantizers)
        part = OutputFisher()(moves, dense.inputs, dense.labels, jax.random.key(0)).second
        np.testing.assert_allclose(part, whole.reshape(4, 4)[:, kept].ravel(), rtol=1e-10)
