"""The tap finds layers, leaves the function as it is, and refuses what it cannot see."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.equalize import equalization_pairs
from jmpq.network.layers import layers_from_json, layers_to_json
from jmpq.network.network import Network
from jmpq.network.walk import bind
from tests import helpers


def ones(*shape):
    return jnp.ones(shape, jnp.float32)


def linen(module, *shape, **options):
    example = ones(*shape)
    variables = module.init(jax.random.key(0), example)
    return Network.from_linen(module, variables, example, **options)


def test_layer_table_of_a_residual_network():
    network = helpers.residual_cnn()
    table = [(x.name, x.kind, x.kernel_shape, x.macs, x.input_shape) for x in network.layers]
    assert table == [
        ("stem", "conv", (3, 3, 2, 2), 25 * 36, (5, 5, 2)),
        ("conv1", "conv", (3, 3, 2, 3), 25 * 54, (5, 5, 2)),
        ("conv2", "conv", (3, 3, 3, 2), 25 * 54, (5, 5, 3)),
        ("head", "dense", (2, 3), 6, (2,)),
    ]
    assert [x.output_features for x in network.layers] == [2, 3, 2, 3]
    assert network.other_parameters == 3 + 2 * (2 + 3 + 2)
    assert layers_from_json(layers_to_json(network.layers)) == network.layers


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_idle_tap_is_bit_identical(batch):
    network = helpers.residual_cnn()
    inputs, _ = helpers.images(1, batch)
    logits, recorded = jax.jit(network.record)(inputs)
    np.testing.assert_array_equal(
        logits, jax.jit(functools.partial(helpers.apply, network))(network.params, inputs)
    )
    assert [r.shape[1:] for r in recorded] == [x.input_shape for x in network.layers]


def test_recorded_inputs_are_the_layers_inputs():
    network = helpers.residual_cnn()
    inputs, _ = helpers.images(1)
    logits, recorded = network.record(inputs)
    head = network.params["head"]
    np.testing.assert_array_equal(recorded[0], inputs)
    np.testing.assert_allclose(recorded[-1] @ head["kernel"] + head["bias"][None], logits)


def test_logits_are_those_of_the_function_at_any_parameters():
    network = helpers.residual_cnn()
    inputs, _ = helpers.images(1)
    for params in (network.params, helpers.shake(network.params, 3)):
        want = helpers.apply(network, params, inputs)
        np.testing.assert_array_equal(network.logits(inputs, params), want)
    np.testing.assert_array_equal(
        network.logits(inputs), helpers.apply(network, network.params, inputs)
    )


def tied_and_ignored():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"table": (7, 4), "twice": (4, 4), "apart": (4, 4), "head": (4, 3)}
    params = {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def apply(p, tokens):
        x = jnp.tanh(p["table"][tokens].sum(axis=1) @ p["twice"]) @ p["apart"]
        return jnp.tanh(x @ p["twice"]) @ p["head"]

    tokens = jax.random.randint(keys[0], (5, 3), 0, 7)
    options = {"tied": ["twice"], "ignore": ["apart"]}
    return Network.from_function(apply, params, tokens, **options), tokens


def test_sites_say_whose_they_are_and_where():
    network, _ = tied_and_ignored()
    names = ["table", "twice", "twice#2", "head"]
    assert [site.index for site in network.sites] == [0, 1, 2, 3]
    assert [site.name for site in network.sites] == names
    assert [site.layer_index for site in network.sites] == [0, 1, 1, 2]
    assert all(site.layer is network.layers[site.layer_index] for site in network.sites)
    assert [site.has_input for site in network.sites] == [False, True, True, True]
    assert [site.input_shape for site in network.sites[1:]] == [(4,), (4,), (4,)]
    assert [site.features for site in network.sites[1:]] == [4, 4, 4]
    for site in network.sites:
        np.testing.assert_array_equal(site.kernel, network.params[site.layer.kernel])


def test_a_transform_meets_every_site_with_the_kernel_of_its_run():
    network, tokens = tied_and_ignored()
    other = helpers.shake(network.params, 3)
    met = []

    def transform(site, x, op):
        met.append(site.name)
        np.testing.assert_array_equal(site.kernel, other[site.layer.kernel])
        np.testing.assert_array_equal(op(x), op(x, site.kernel))
        return op(x, network.params[site.layer.kernel])

    got = network.run(tokens, transform, other)
    assert met == [site.name for site in network.sites]
    # All kernels are the network's own again, but that of the layer that is ignored.
    np.testing.assert_array_equal(
        got, network.logits(tokens, {**network.params, "apart": other["apart"]})
    )


def test_a_rule_sees_bodies_without_a_kernel_as_one_equation_unless_it_asks():
    @jax.jit
    def square(x):
        return x * x

    @jax.jit
    def layer(w, x):
        return jnp.tanh(x @ w)

    network = Network.from_function(
        lambda p, x: square(layer(p["w"], x)), {"w": ones(3, 2)}, ones(1, 3)
    )
    for enter_all, names in ((False, ["dot_general", "tanh", "jit"]),
                             (True, ["dot_general", "tanh", "mul"])):  # fmt: skip
        seen = []

        def rule(eqn, ins, path, seen=seen):
            seen.append(eqn.primitive.name)
            return bind(eqn, ins, path)

        network.tap.run(network.params, ones(2, 3), rule=rule, enter_all=enter_all)
        assert seen == names


def test_perturbed_kernels_equal_perturbed_parameters():
    network = helpers.residual_cnn()
    inputs, _ = helpers.images(1)
    scaled = network.run(
        inputs, lambda site, x, op: op(x, site.kernel * (1.0 + site.layer_index))
    )
    params = network.with_kernels([w * (1.0 + i) for i, w in enumerate(network.kernels())])
    np.testing.assert_allclose(scaled, helpers.apply(network, params, inputs), rtol=1e-12)


def test_kernel_matrix_has_a_row_per_output_and_is_inverted():
    network = helpers.residual_cnn()
    for i, kernel in enumerate(network.kernels()):
        matrix = network.to_matrix(i, kernel)
        assert matrix.shape[0] == kernel.shape[-1]
        np.testing.assert_array_equal(network.from_matrix(i, matrix, kernel), kernel)
    conv = network.kernels()[1]
    np.testing.assert_array_equal(
        network.to_matrix(1, conv)[0].reshape(2, 3, 3), conv[..., 0].transpose(2, 0, 1)
    )


def test_hessian_through_the_tap_equals_the_original():
    network = helpers.residual_cnn()
    inputs, _ = helpers.images(1)
    tapped = lambda p: (network.logits(inputs, p) ** 2).sum()  # noqa: E731
    plain = lambda p: (helpers.apply(network, p, inputs) ** 2).sum()  # noqa: E731
    tangent = helpers.shake(network.params, 7)
    for loss, reference in [(tapped, plain)]:
        got = jax.jvp(jax.grad(loss), (network.params,), (tangent,))[1]
        want = jax.jvp(jax.grad(reference), (network.params,), (tangent,))[1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), got, want)


def test_reshaped_transposed_and_cast_kernels_are_seen():
    params = {"a": ones(6, 4), "b": ones(3, 4), "c": ones(2, 2, 3)}

    def apply(p, x):
        x = jnp.tanh(x @ p["a"].astype(jnp.bfloat16).astype(jnp.float32))
        x = jax.jit(lambda w, x: x @ w.T)(p["b"], x)
        return jnp.einsum("ni,oi->no", x, p["c"].reshape(4, 3))

    network = Network.from_function(apply, params, ones(1, 6))
    assert [(x.name, x.kernel_shape, x.output_features) for x in network.layers] == [
        ("a", (6, 4), 4),
        ("b", (4, 3), 3),
        ("c", (4, 3), 4),
    ]
    for i, kernel in enumerate(network.kernels()):
        np.testing.assert_array_equal(
            network.from_matrix(i, network.to_matrix(i, kernel), kernel), kernel
        )


def test_depthwise_and_grouped_convolutions_and_attention():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), strides=2, feature_group_count=4, name="depthwise")(x)
            x = nn.Conv(6, (1, 1), feature_group_count=2, name="grouped")(x)
            x = x.reshape(x.shape[0], -1, 6)
            x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
            return nn.Dense(3, name="head")(x.mean(1))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        network = linen(Mixed(), 1, 8, 8, 4)
    table = {x.name: (x.kernel_shape, x.macs, x.output_features) for x in network.layers}
    assert table["depthwise"] == ((3, 3, 1, 4), 16 * 9 * 4, 4)
    assert table["grouped"] == ((1, 1, 2, 6), 16 * 12, 6)
    assert table["attention/query"][1:] == (16 * 36, 6)
    assert table["attention/out"] == ((2, 3, 6), 16 * 36, 6)
    assert table["head"] == ((6, 3), 18, 3)


def test_embedding_and_its_tied_output():
    params = {"table": jax.random.normal(jax.random.key(0), (7, 4))}

    def apply(p, ids):
        return jnp.take(p["table"], ids, axis=0).mean(1) @ p["table"].T

    ids = jnp.zeros((1, 5), jnp.int32)
    with pytest.raises(ValueError, match="used 2 times"):
        Network.from_function(apply, params, ids)
    network = Network.from_function(apply, params, ids, tied=["table"])
    (layer,) = network.layers
    assert (layer.kind, layer.kernel_shape, layer.macs) == ("embedding", (7, 4), 28)
    assert [site.name for site in network.sites] == ["table", "table#2"]


@pytest.mark.parametrize("array", [jnp.asarray, np.asarray])
def test_shared_buffers_are_one_layer(array):
    shared = array(ones(4, 4))
    params = {"a": shared, "b": shared, "c": array(ones(4, 2))}
    apply = lambda p, x: x @ p["a"] @ p["b"] @ p["c"]  # noqa: E731
    network = Network.from_function(apply, params, ones(1, 4))
    assert [(x.name, x.aliases) for x in network.layers] == [("a", ("b",)), ("c", ())]
    assert network.other_parameters == 0
    halved = network.with_kernels([0.5 * w for w in network.kernels()])
    np.testing.assert_array_equal(halved["b"], 0.5 * shared)


def recurrent(p, x):
    step = lambda c, _: (jnp.tanh(c @ p["stack"][0]), None)  # noqa: E731
    return jax.lax.scan(step, x, None, length=3)[0] @ p["head"]


def looped(p, x):
    step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["stack"].sum(0)))  # noqa: E731
    return jax.lax.while_loop(lambda c: c[0] < 3, step, (0, x))[1] @ p["head"]


def branched(p, x):
    yes = lambda x: x @ p["stack"][0]  # noqa: E731
    return jax.lax.cond(p["head"][0, 0] > 0, yes, lambda x: x, x) @ p["head"]


@jax.custom_jvp
def product(x, w):
    return x @ w


product.defjvp(lambda primals, tangents: (product(*primals), tangents[0] @ primals[1]))


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (recurrent, r"'stack\[0\]', 'stack\[1\]': every step of a `scan` uses it"),
        (looped, "'stack': it is used inside `while`"),
        (branched, "'stack': it is used inside `cond`"),
        (
            lambda p, x: (
                product(x, p["stack"].reshape(4, 8)) @ p["stack"].reshape(8, 4) @ p["head"]
            ),
            "'stack': it is used inside a custom",
        ),
        (lambda p, x: x @ jnp.tanh(p["stack"][0]) @ p["head"], "'stack': .* after `tanh`"),
        (
            lambda p, x: x @ (p["stack"][0] @ p["stack"][1]) @ p["head"],
            r"'stack\[1\]': .* another",
        ),
    ],
)
def test_what_the_tap_cannot_see_is_refused_by_name(apply, reason):
    params = {"stack": ones(2, 4, 4), "head": ones(4, 3)}
    with pytest.raises(ValueError, match=reason):
        Network.from_function(apply, params, ones(1, 4))
    network = Network.from_function(apply, params, ones(1, 4), ignore=["stack"])
    assert [x.name for x in network.layers] == ["head"]


def test_a_loop_that_starts_from_zero_is_taken_once_it_is_tied():
    """The way out of a recurrent layer: W·0 of the first step is no use of W."""

    def unrolled(p, x):
        h = jnp.zeros((x.shape[0], 4), x.dtype)
        for t in range(x.shape[1]):
            h = jnp.tanh(x[:, t] @ p["i"] + h @ p["h"])
        return h @ p["head"]

    def scanned(p, x):
        step = lambda h, row: (jnp.tanh(row @ p["i"] + h @ p["h"]), None)  # noqa: E731
        return (
            jax.lax.scan(step, jnp.zeros_like(x, shape=(x.shape[0], 4)), x.swapaxes(0, 1))[0]
            @ p["head"]
        )

    params = {"i": ones(2, 4), "h": 0.1 * ones(4, 4), "head": ones(4, 3)}
    with pytest.raises(ValueError, match="'h', 'i': every step of a `scan` uses it"):
        Network.from_function(scanned, params, ones(1, 3, 2))
    with pytest.raises(ValueError, match=r"Kernel 'i' is used 3 times, kernel 'h' is used 2 ti"
                       r"mes. Pass tied=\('i', 'h'\) to quantize each once"):  # fmt: skip
        Network.from_function(unrolled, params, ones(1, 3, 2))
    network = Network.from_function(unrolled, params, ones(1, 3, 2), tied=("i", "h"))
    assert [x.macs for x in network.layers] == [3 * 2 * 4, 2 * 4 * 4, 4 * 3]
    inputs = jax.random.normal(jax.random.key(0), (5, 3, 2), ones(1).dtype)
    np.testing.assert_allclose(network.logits(inputs), scanned(params, inputs), rtol=1e-6)


def test_a_gain_that_scales_a_kernel_is_not_named_with_it():
    apply = lambda p, x: x @ (p["w"] / jnp.std(p["w"]) * p["gain"]) @ p["head"]  # noqa: E731
    params = {"w": ones(4, 4).at[0].set(2), "gain": ones(4), "head": ones(4, 3)}
    with pytest.raises(
        ValueError, match=r"'w': .* only after `mul`.* compute it once .*ignore=\('w',\)"
    ):
        Network.from_function(apply, params, ones(1, 4))
    assert len(Network.from_function(apply, params, ones(1, 4), ignore=["w"]).layers) == 1


def test_remat_is_looked_into():
    class Remat(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="head")(nn.remat(nn.Dense)(4, name="inner")(x))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        network = linen(Remat(), 1, 3)
    assert [x.name for x in network.layers] == ["inner", "head"]


def test_wrong_networks_are_refused():
    dense = lambda p, x: x @ p["w"]  # noqa: E731
    with pytest.raises(ValueError, match="'w' has 1 values of 4 that are NaN"):
        Network.from_function(dense, {"w": ones(2, 2).at[0, 0].set(jnp.nan)}, ones(1, 2))
    with pytest.raises(ValueError, match="'w' is not a float array but int32"):
        Network.from_function(dense, {"w": jnp.ones((2, 2), jnp.int32)}, ones(1, 2))
    with pytest.raises(ValueError, match="no quantizable layer"):
        Network.from_function(lambda p, x: x * p["w"][None], {"w": ones(2)}, ones(1, 2))
    with pytest.raises(ValueError, match=r"ignore='x\.\*' matches no parameter; there are w"):
        Network.from_function(dense, {"w": ones(2, 2)}, ones(1, 2), ignore=["x.*"])
    for example in ((1, 2), [], 1.0):
        with pytest.raises(ValueError, match=r"The example .*: pass the inputs of a batch as"):
            Network.from_function(dense, {"w": ones(2, 2)}, example)
    with pytest.raises(ValueError, match="no batch axis"):
        Network.from_function(lambda p, x: x.sum(0) @ p["w"], {"w": ones(2, 2)}, ones(1, 2))


def test_training_mode_is_refused():
    module = helpers.ResidualCNN(dtype=jnp.float32)
    example = jnp.zeros((1, 5, 5, 2), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), example)
    with pytest.raises(ValueError, match="not in evaluation mode"):
        Network.from_linen(module, variables, example, train=True)


def code_of(activation, shift=0.0, seed=0):
    params = {"w": jax.random.normal(jax.random.key(seed), (3, 2))}
    constant = np.full(2, shift, np.float32)

    def apply(params, x):
        return activation(x @ params["w"]) + constant[None]

    return Network.from_function(apply, params, jnp.zeros((1, 3))).code_sha256


def test_the_hash_of_the_code_tells_what_is_computed_whatever_the_weights():
    code = code_of(jax.nn.relu)
    assert code == code_of(jax.nn.relu, seed=1)
    assert code == code_of(lambda x: jax.nn.relu(x))  # written in another way
    others = [code_of(jax.nn.gelu), code_of(jnp.tanh), code_of(jax.nn.relu, shift=1.0)]
    assert len({code, *others}) == 4


def test_a_network_that_needs_values_is_told_so():
    asked = [
        lambda p, x: x @ p["w"] if (p["w"] > 0).all() else x,
        lambda p, x: (x @ p["w"]) * np.asarray(p["w"]).max(),
        lambda p, x: (x @ p["w"])[x[:, 0] > 0],
    ]
    for apply in asked:
        with pytest.raises(
            ValueError, match=r"cannot be traced .*jax.jit fails on it too.*NumPy"
        ):
            Network.from_function(apply, {"w": jnp.ones((4, 4))}, jnp.ones((1, 4)))


class SpreadDepths(nn.Module):
    """Depths spread by ``.item()`` of an array of its own, as in public vision networks."""

    rate: float = 0.4

    @nn.compact
    def __call__(self, x):
        for scale in [x.item() for x in jnp.linspace(0, self.rate, 3)]:
            x = x + (1 - scale) * nn.relu(nn.Dense(4)(x))
        return x * jnp.ones((len(x), 1))


def test_a_network_that_reads_values_of_its_own_arrays_is_followed():
    module, x = SpreadDepths(), jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), "f4")
    with jax.numpy_dtype_promotion("standard"):
        variables = module.init(jax.random.key(0), x)
        network = Network.from_linen(module, variables, x[:1])
        expected = module.apply(variables, x)
    assert [layer.name for layer in network.layers] == ["Dense_0", "Dense_1", "Dense_2"]
    np.testing.assert_allclose(network.logits(x), expected, rtol=1e-6)
    other = Network.from_linen(SpreadDepths(rate=0.2), variables, x[:1])
    assert network.code_sha256 != other.code_sha256


def test_the_variables_of_another_network_are_named_as_the_fault():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.relu(nn.Dense(8)(x)))

    own = Net().init(jax.random.key(0), ones(1, 6))["params"]
    wide = Net().init(jax.random.key(0), ones(1, 9))
    for other, reason in (
        (wide, r"\(6, 8\).*\(9, 8\)"),
        (None, '"kernel" in scope "/Dense_1"'),
    ):
        variables = other or {"params": {"Dense_0": own["Dense_0"]}}
        with pytest.raises(ValueError, match=rf"{reason}.*variables of this very network"):
            Network.from_linen(Net(), variables, ones(1, 6))


def test_patterns_of_a_shell_are_answered_by_regular_expressions():
    params = {"a": {"w": jnp.ones((4, 4))}, "b": {"w": jnp.ones((4, 4))}}
    apply = lambda p, x: x @ p["a"]["w"] @ p["b"]["w"]  # noqa: E731
    with pytest.raises(
        ValueError, match=r"ignore='a/\*' .*It is a regular expression: 'a/.\*'"
    ):
        Network.from_function(apply, params, jnp.ones((1, 4)), ignore=["a/*"])


def test_a_function_may_close_over_a_random_key():
    """As a module of Equinox does that is called with one, also where nothing is random."""

    def network(seed):
        key = jax.random.key(seed)

        def apply(params, x):
            noise = jax.random.normal(key, (x.shape[1],), x.dtype)
            hidden = jax.nn.relu((x + 0.0 * noise[None]) @ params["a"])
            return hidden @ params["b"]

        params = {"a": jnp.ones((4, 3)), "b": jnp.ones((3, 2))}
        return Network.from_function(apply, params, jnp.ones((1, 4)))

    assert network(0).code_sha256 == network(0).code_sha256 != network(1).code_sha256
    assert equalization_pairs(network(0)) == [("a", "b")]
    np.testing.assert_allclose(network(0).logits(jnp.ones((2, 4))), 12.0)


def test_a_batch_of_one_is_traced_otherwise_and_evaluated_alike():
    def apply(p, x):  # jnp.matmul takes the axis of a single example away
        y = x @ p["a"]
        return (jax.nn.softmax(y @ y.swapaxes(1, 2)) @ y @ p["b"]).mean(1)

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        name: jax.random.normal(key, (4, 4)) for name, key in zip("ab", keys, strict=False)
    }
    x = jax.random.normal(keys[2], (1, 3, 4))
    network = Network.from_function(apply, params, x)
    logits, inputs = network.record(x)
    np.testing.assert_array_equal(logits, apply(params, x))
    assert [layer.name for layer in network.layers] == ["a", "b"]
    np.testing.assert_array_equal(inputs[0], x)
