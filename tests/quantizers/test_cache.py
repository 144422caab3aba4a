"""Keys and values with formats of their own equal networks that are quantized by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation, bit_arrays
from jmpq.formats import Choice
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.products import quantize_products, with_cache
from jmpq.quantizers.spec import InputSpec
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.zoo import decoder
from tests.helpers import fast_logits
from tests.quantizers import formats_by_hand as by_hand
from tests.quantizers.test_products import HEADS, TOKENS, WIDTH, network, x

__all__ = ["network", "x"]  # fixtures
FORMATS = ("int3", "int4", "mxfp4", "fp8_e4m3")
SPEC = InputSpec(clipping="minmax")
KEYS, VALUES = "k:keys", "v:values"


def logits_of(network, quantizers, allocation, inputs):
    names = [layer.name for layer in network.layers]
    w_bits, a_bits = bit_arrays(names, [Allocation(allocation)])[0]
    return fast_logits(network, quantizers, jnp.array(w_bits), jnp.array(a_bits), inputs)


def affine(x, bits):
    """On the affine grid that spans a whole tensor."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = np.round(-low / scale)
    return scale * (np.clip(np.round(x / scale), -zero, 2**bits - 1 - zero))


def kept(x, name):
    """Keys or values of [..., features of a token] by one of `FORMATS`."""
    x = np.asarray(x)
    if name is None:
        return x
    if name == "mxfp4":
        return by_hand.mx(x, name)
    if name == "fp8_e4m3":
        return by_hand.small_float(x.reshape(1, -1), "e4m3", x.size).reshape(x.shape)
    return affine(x, int(name[3:]))


def attention_by_hand(params, x, of_keys, of_values):
    p = {name: np.asarray(w) for name, w in params.items()}
    q, k, v = (np.asarray(x) @ p[name] for name in "qkv")
    k, v = kept(k, of_keys), kept(v, of_values)
    mixed = []
    for part in np.split(np.arange(WIDTH), HEADS):
        scores = np.einsum("bqd,bkd->bqk", q[..., part], k[..., part])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed.append(weights @ v[..., part])
    return np.concatenate(mixed, axis=-1).mean(1) @ p["out"]


@pytest.fixture(scope="module")
def cached(network):
    return with_cache(network)


@pytest.fixture(scope="module")
def quantizers(cached, x):
    return calibrate_quantizers(cached, [4], FORMATS, [x], activations=SPEC)


def test_keys_and_values_are_rows_of_the_table(network, cached, x):
    names = [layer.name for layer in cached.layers]
    assert sorted(names) == sorted(["q", "k", "v", "out", KEYS, VALUES])
    rows = {layer.name: layer for layer in cached.layers if layer.kind == "cache"}
    assert rows.keys() == {KEYS, VALUES}
    for row in rows.values():
        assert (row.parameters, row.input_shape) == (0, (TOKENS, HEADS, WIDTH // HEADS))
        assert row.macs == TOKENS * TOKENS * WIDTH
    np.testing.assert_array_equal(cached.logits(x), network.logits(x))
    values, seen = cached.record(x)
    np.testing.assert_array_equal(values, network.logits(x))
    for site, made in zip(cached.sites, seen, strict=True):
        if site.operation.kind == "cache":
            want = (x @ network.params[site.name[0]][None]).reshape(made.shape)
            np.testing.assert_allclose(made, want, rtol=1e-13)


@pytest.mark.parametrize(
    ("of_keys", "of_values"),
    [("int4", None), (None, "int3"), ("mxfp4", "mxfp4"), ("fp8_e4m3", "int4")],
)
def test_an_allocation_is_attention_with_keys_and_values_quantized_by_hand(
    cached, quantizers, x, of_keys, of_values
):
    allocation = {
        name: Choice("none", scheme)
        for name, scheme in ((KEYS, of_keys), (VALUES, of_values))
        if scheme is not None
    }
    got = logits_of(cached, quantizers, allocation, x)
    want = attention_by_hand(cached.params, x, of_keys, of_values)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    assert np.abs(want - attention_by_hand(cached.params, x, None, None)).max() > 1e-4


def test_products_leave_rows_to_their_choice(cached, x):
    """The other operands, queries and probabilities, are on the grid of the products."""
    both = quantize_products(cached, 16)
    quantizers = calibrate_quantizers(both, [4], FORMATS, [x], activations=SPEC)
    allocation = {KEYS: Choice("none", "int3"), VALUES: Choice("none", "mxfp4")}
    got = logits_of(both, quantizers, allocation, x)
    want = attention_by_hand(cached.params, x, "int3", "mxfp4")
    np.testing.assert_allclose(got, want, atol=1e-3)
    assert np.abs(got - want).max() > 1e-8
    assert [site.name for site in both.sites] == [site.name for site in cached.sites]


@pytest.mark.parametrize("only_caches", [False, True])
def test_moves_of_a_row_are_its_inputs_alone(cached, quantizers, x, only_caches):
    moves = MoveNetwork(network=cached, quantizers=quantizers, only_caches=only_caches)
    kinds = {layer: {m.kind for m in moves.moves if m.layer == layer} for layer in "qv"}
    assert kinds == dict.fromkeys("qv", {"w"} if only_caches else {"w", "a"})
    assert {m.kind for m in moves.moves if m.layer == KEYS} == {"a"}
    z, changes = moves.changes_by_difference(x)
    for i, move in enumerate(moves.moves):
        if move.layer in (KEYS, VALUES):
            one = {move.layer: Choice("none", move.bits)}
            alone = logits_of(cached, quantizers, one, x)
            np.testing.assert_allclose(z + changes[:, i], alone, rtol=1e-9, atol=1e-12)


def test_derivatives_along_keys_and_values_are_those_of_attention(cached, quantizers, x):
    """Against central differences of attention with a small share of each move."""
    moves = MoveNetwork(network=cached, quantizers=quantizers, only_caches=True)
    _, slopes = moves.changes_by_derivative(x)
    _, seen = cached.record(x)
    inputs = {site.name: i for i, site in enumerate(cached.sites)}

    def shifted(name, change):
        def at_site(site, x, op):
            return op(x + change if site.name == name else x)

        return cached.run(x, at_site)

    for m, move in enumerate(moves.moves):
        if move.kind == "a":
            site = cached.sites[inputs[move.layer]]
            deltas = moves.input_deltas(site, seen[site.index])
            row = [b for b in quantizers.activations.bits].index(move.bits)
            step = 1e-5 * deltas[row]
            slope = (shifted(move.layer, step) - shifted(move.layer, -step)) / 2e-5
            np.testing.assert_allclose(slopes[:, m], slope, rtol=1e-5, atol=1e-9)


SMALL = decoder.DecoderConfig(
    vocab_size=12, hidden_size=16, num_layers=2, num_heads=4, num_key_value_heads=2,
    head_size=4, intermediate_size=24, max_positions=8,
)  # fmt: skip


def decoder_by_hand(monkeypatch, module, variables, ids, *, layer, of_keys, of_values):
    """The decoder itself, its keys (after rotation) and values of one layer rounded."""
    turned, calls = decoder.rotated, []

    def token(x, name):
        flat = np.asarray(x).reshape(*x.shape[:2], -1)
        return jnp.asarray(kept(flat, name).reshape(x.shape))

    def rotated(x, turns):
        y = turned(x, turns)
        if x.shape[2] != SMALL.num_key_value_heads:
            return y
        calls.append(None)
        return token(y, of_keys) if len(calls) == layer + 1 else y

    def intercept(next_function, args, kwargs, context):
        y = next_function(*args, **kwargs)
        if context.module.path[-3:] == (str(layer), "self_attn", "v_proj"):
            return token(y, of_values)
        return y

    with monkeypatch.context() as patched, nn.intercept_methods(intercept):
        patched.setattr(decoder, "rotated", rotated)
        logits = module.apply(variables, ids)
    assert len(calls) == SMALL.num_layers
    return logits


@pytest.mark.parametrize(
    ("of_keys", "of_values", "examples"),
    [("int4", "mxfp4", 3), pytest.param("mxfp4", "int3", 1, marks=pytest.mark.slow)],
)
def test_a_decoder_with_shared_heads_is_quantized_where_it_would_keep_them(
    monkeypatch, of_keys, of_values, examples
):
    module = decoder.Decoder(SMALL, jnp.float64)
    ids = jax.random.randint(jax.random.key(1), (examples, 8), 0, SMALL.vocab_size)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), ids)
        variables = jax.tree.map(lambda w: 10 * w, variables)
        network = with_cache(Network.from_linen(module, variables, ids))
        quantizers = calibrate_quantizers(network, [4], FORMATS, [ids], activations=SPEC)
        want = decoder_by_hand(
            monkeypatch, module, variables, ids, layer=1, of_keys=of_keys, of_values=of_values
        )
        name = "layers/1/self_attn/{}_proj:{}".format
        allocation = {
            name("k", "keys"): Choice("none", of_keys),
            name("v", "values"): Choice("none", of_values),
        }
        got = logits_of(network, quantizers, allocation, ids)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    assert np.abs(want - network.logits(ids)).max() > 1e-3
    order = [layer.name for layer in network.layers]
    assert order.index(name("v", "values")) < order.index("layers/1/self_attn/o_proj")


def test_networks_without_keys_and_values_are_refused(network, cached):
    dense = Network.from_function(
        lambda params, x: x @ params["w"], {"w": jnp.ones((3, 2))}, jnp.ones((1, 3))
    )
    with pytest.raises(ValueError, match="keeps no keys and values: nowhere is a product"):
        with_cache(dense)
    with pytest.raises(ValueError, match="has rows of keys and values already"):
        with_cache(cached)

    def one_layer(params, x):
        q, k, v = jnp.split(x @ params["qkv"][None], 3, axis=-1)
        weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k), axis=-1)
        return jnp.einsum("bqk,bkd->bqd", weights, v).mean(1) @ params["out"]

    params = {"qkv": jnp.ones((WIDTH, 3 * WIDTH)), "out": jnp.ones((WIDTH, 3))}
    together = Network.from_function(one_layer, params, jnp.zeros((2, TOKENS, WIDTH)))
    with pytest.raises(ValueError, match="Keys cannot be told from queries: both come from 'q"):
        with_cache(together)
