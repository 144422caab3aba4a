"""The stream: which tensors a runtime keeps as integers, and the network with them on grids."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.learned import rows_of, tensor_bits, tensor_names, with_rows
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.quantizers.stream import points_of
from jmpq.quantizers.widths import restricted
from jmpq.sensitivity.metrics.path_attribution import path_attribution
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy
from tests import helpers
from tests.helpers import fast_logits

STREAM = InputSpec(placement="stream", clipping="minmax")


@pytest.fixture(scope="module")
def network():
    return helpers.residual_cnn(activation="relu")


@pytest.fixture(scope="module")
def found(network):
    batches = [helpers.images(s)[0] for s in (1, 2)]
    return calibrate_quantizers(network, (8,), (4, 8), batches, activations=STREAM)


def branches(norm=False):
    """Convolutions of one row of pixels: pooling, two readers, a sum, concatenation, a mean."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"stem": (3, 2, 4), "left": (1, 4, 4), "right": (3, 4, 4), "last": (1, 10, 3)}
    params = {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }

    def conv(x, kernel):
        dims = ("NHC", "HIO", "NHC")
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=dims)

    def apply(p, x):
        x = jax.nn.relu(conv(x, p["stem"]) * 0.5 + 0.1)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 1), (1, 2, 1), "VALID")
        left, right = conv(x, p["left"]) + 0.2, jax.nn.relu6(conv(x, p["right"]))
        y = jnp.concatenate(
            [jax.nn.relu(left + right), jnp.pad(x, ((0, 0), (0, 0), (1, 1)))], 2
        )
        if norm:
            y = y - y.mean(2, keepdims=True)
        return conv(y, p["last"]).mean(1)

    return Network.from_function(apply, params, jnp.zeros((1, 6, 2)))


def test_points_are_what_readers_take_as_integers():
    points = {p.name: (p.layer_index, p.read_by, p.size) for p in points_of(branches())}
    assert points == {
        "stem:output": (1, (1, 2), 24),  # read by two layers, and concatenated
        "left:output": (1, (), 12),
        "right:output": (2, (), 12),
        "right:sum": (2, (), 12),
        "last:output": (3, (), 9),
    }
    assert all(p.batch_axis == 0 for p in points_of(branches()))
    names = {p.name for p in points_of(branches(norm=True))}  # a mean over features is taken
    assert names == {"last:output"}  # of what was added and concatenated: it stays float
    smooth = points_of(helpers.residual_cnn())
    assert smooth == ()  # a curved function reads every sum


def by_hand(network, found, a_bits, inputs):
    """Logits of 8-bit kernels, written out: inputs of layers and points, min-max grids."""
    params, stats = network.params, network.state["batch_stats"]
    points = {p.name: p.index for p in points_of(network)}

    def on_grid(x, scales, index, bits):
        if bits == 32:
            return x
        row = scales.bits.index(bits)
        scale, zero = (
            float(scales.scale[index][row, 0]),
            float(scales.zero_point[index][row, 0]),
        )
        codes = np.clip(np.round(np.asarray(x) / scale) + zero, 0, 2**bits - 1)
        return jnp.asarray(scale * (codes - zero))

    def read(x, site, on_stream=32):
        bits = a_bits[site]
        return x if bits == on_stream else on_grid(x, found.activations, site, bits)

    def point(x, name, owner):
        bits = 32 if a_bits[owner] == 32 else max(a_bits[owner], 8)
        return on_grid(x, found.stream, points[name], bits), bits

    def kernel(i):
        w = np.asarray(network.kernels()[i])
        scale = np.asarray(found.weights.scale[i][0])
        return jnp.asarray(np.clip(np.round(w / scale), -127, 127) * scale)

    def conv(x, i):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel(i), (1, 1), "SAME", dimension_numbers=dims
        )

    def norm(x, name):
        mean, var = (np.asarray(stats[name][k]) for k in ("mean", "var"))
        scale, bias = (np.asarray(params[name][k]) for k in ("scale", "bias"))
        return jnp.asarray((np.asarray(x) - mean) / np.sqrt(var + 1e-5) * scale + bias)

    relu = lambda x: jnp.maximum(x, 0.0)  # noqa: E731
    x, bits = point(relu(norm(conv(read(inputs, 0), 0), "bn0")), "stem:output", 1)
    y = relu(norm(conv(read(x, 1, bits), 1), "bn1"))
    y, _ = point(norm(conv(read(y, 2), 2), "bn2"), "conv2:output", 2)
    x, _ = point(relu(x + y), "conv2:sum", 2)
    return read(x.mean((1, 2)), 3) @ kernel(3) + params["head"]["bias"][None]


@pytest.mark.parametrize("a_bits", [(8, 8, 8, 8), (8, 4, 4, 8), (8, 32, 8, 4), (4, 8, 32, 32)])
def test_the_network_on_its_stream_is_the_one_written_out(network, found, a_bits):
    run = fast_logits
    for batch in (4, 1):
        inputs = helpers.images(5, batch)[0]
        got = run(network, found, jnp.full(4, 8), jnp.array(a_bits), inputs)
        want = by_hand(network, found, a_bits, inputs)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_one_compilation_serves_all_bits_and_32_leaves_the_network(network, found):
    inputs = helpers.images(3)[0]

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(a_bits):
        return fast_logits(network, found, jnp.full(4, 32), a_bits, inputs)

    plain = jax.jit(network.logits)(inputs)
    np.testing.assert_allclose(run(jnp.full(4, 32)), plain, rtol=1e-12)
    assert not np.allclose(run(jnp.full(4, 8)), plain, rtol=1e-6)


def test_ranges_of_the_stream_are_those_of_all_batches(network, found):
    inputs = jnp.concatenate([helpers.images(s)[0] for s in (1, 2)])
    _, seen = helpers.manual_logits(
        network, network.kernels(), [jnp.zeros(())] * 4, inputs, jax.nn.relu
    )
    assert found.stream.bits == (8,)
    high = float(seen[1].max())  # what the second layer reads is the first point
    np.testing.assert_allclose(found.stream.scale[0][0, 0], high / 255, rtol=1e-12)
    names = tensor_names(network)[2]
    assert names == ["stem:output", "conv2:output", "conv2:sum"]
    assert tensor_bits(network, [8] * 4, [8, 4, 32, 8])[2] == [8, 32, 32]


def test_quantizers_with_a_stream_are_kept_whole(network, found):
    again = Quantizers.from_arrays(found.to_arrays())
    assert again.sha256 == found.sha256
    assert "stream: scales of 3 tensors at [8] bits" in repr(again)
    few = restricted(found, (8,), (4,))
    assert few.sha256_at((8,), (4,)) == found.sha256_at((8,), (4,))
    without = dataclasses.replace(found, stream=None)
    assert without.sha256 != found.sha256
    assert without.sha256_at((8,), (8,)) != found.sha256_at((8,), (8,))
    with pytest.raises(ValueError, match="placed on the 'stream', which has no scales"):
        without.check_network(network)
    assert calibrate_quantizers(network, (8,), (32,), activations=STREAM).stream is None


def test_rows_of_an_allocation_hold_the_stream(network, found):
    inputs, bits = helpers.images(3)[0], ((8,) * 4, (8, 4, 8, 8))
    arrays = map(jnp.array, bits)
    want = fast_logits(network, found, *arrays, inputs)
    scale, zero_point = rows_of(network, found, *bits)
    held = with_rows(found, scale, zero_point)
    np.testing.assert_array_equal(
        fast_logits(network, held, *map(jnp.array, bits), inputs), want
    )
    moved = scale._replace(stream=tuple(1.5 * row for row in scale.stream))
    other = with_rows(found, moved, zero_point)
    assert not np.allclose(fast_logits(network, other, *map(jnp.array, bits), inputs), want)


def test_a_move_carries_the_points_of_its_layer(network, found):
    moves = MoveNetwork(network=network, quantizers=found)
    inputs = helpers.images(3)[0]
    z = network.logits(inputs)
    _, changes = jax.jit(moves.changes_by_difference)(inputs)
    for m, move in enumerate(moves.moves):
        if move.kind == "a":
            at = [layer.name for layer in network.layers].index(move.layer)
            a_bits = np.full(4, 32)
            a_bits[at] = move.bits
            got = fast_logits(network, found, jnp.full(4, 32), jnp.array(a_bits), inputs) - z
            np.testing.assert_allclose(changes[:, m], got, rtol=1e-9, atol=1e-12)


def test_derivatives_along_moves_agree_on_the_stream(network, found):
    """By a Jacobian of the ε-network, by a backward pass per class, by a tangent per move."""
    moves = MoveNetwork(network=network, quantizers=found)
    inputs = helpers.images(3)[0]
    zero = jnp.zeros(len(moves.moves))
    want = np.asarray(jax.jit(jax.jacobian(lambda e: moves.logits(e, inputs)))(zero))
    by_class = jax.jit(moves.changes_by_derivative)(inputs)[1]
    np.testing.assert_allclose(by_class, want.transpose(0, 2, 1), rtol=1e-8, atol=1e-12)
    by_move = jax.jit(moves._pushforward)(inputs)
    np.testing.assert_allclose(by_move, want.transpose(2, 0, 1), rtol=1e-8, atol=1e-12)
    # Against the points of the stream alone, made by hand as changes of what flows there.
    plain = MoveNetwork(network=network, quantizers=dataclasses.replace(found, stream=None))
    without = np.asarray(jax.jit(jax.jacobian(lambda e: plain.logits(e, inputs)))(zero))
    owners = {network.layers[p.layer_index].name for p in points_of(network)}
    for m, move in enumerate(moves.moves):
        same = np.allclose(want[..., m], without[..., m], rtol=1e-8, atol=1e-12)
        assert same == (move.kind == "w" or move.layer not in owners)


def test_channels_of_inputs_leave_one_scale_a_tensor_of_the_stream(network):
    spec = dataclasses.replace(STREAM, granularity="channel")
    inputs = helpers.images(1)[0]
    found = calibrate_quantizers(
        network, (8,), (8,), [inputs], weights=KernelSpec(), activations=spec
    )
    assert [s.shape for s in found.stream.scale] == [(1, 1)] * 3
    assert found.activations.scale[1].shape == (1, 2)


def test_shares_of_a_path_add_up_on_the_stream(network, found):
    """Midpoints of the path integrate the slope of the loss with all changes held constant."""
    moves = MoveNetwork(network=network, quantizers=found)
    inputs, labels = helpers.images(3)
    names = [layer.name for layer in network.layers]
    made = Allocation.from_bits(names, np.array([[8] * 4, [8, 4, 8, 8]]))
    bits, held = jnp.array([8, 4, 8, 8]), {}

    def keep(site, x, op):
        held[site.name] = moves.own_change(site, x, bits[site.layer_index])
        held[f"w/{site.name}"] = moves.weight_deltas(site.layer_index, site.kernel)[0]
        return op(x)

    def keep_point(point, x):
        held[point.name] = moves.point_change(point, x, bits[point.layer_index])
        return x

    moves.run(inputs, keep, keep_point)

    def loss(t):
        def at_site(site, x, op):
            return op(x + t * held[site.name], site.kernel + t * held[f"w/{site.name}"])

        z = moves.run(inputs, at_site, lambda point, x: x + t * held[point.name])
        return jax.vmap(cross_entropy)(z, labels).mean()

    slopes = jax.jit(jax.vmap(jax.grad(loss)))(jnp.array([0.25, 0.75]))
    shares = path_attribution(moves, made, inputs, labels, points=2)
    np.testing.assert_allclose(shares.sum(), slopes.mean(), rtol=1e-8)
