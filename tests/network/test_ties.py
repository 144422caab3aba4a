"""Ready-made ties follow from the graph, not from names."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.network import Network
from jmpq.network.ties import architecture_ties, nearest_layers
from jmpq.zoo.architectures import build_module
from jmpq.zoo.decoder import Decoder, DecoderConfig, example_ids


def untrained(module, *shape):
    """A network of zeros: only its graph matters."""
    example = jnp.zeros((1, *shape), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        structs = jax.eval_shape(module.init, jax.random.key(0), example)
        variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), structs)
        return Network.from_linen(module, variables, example)


def test_a_projection_is_tied_to_the_first_convolution_beside_it():
    ties = architecture_ties(untrained(build_module("resnet18", 3), 32, 32, 3))
    # as HAWQ-V3 ties them (its stage 1 has no projection)
    assert ties["downsample"] == [
        (f"layer{stage}/0/conv1", f"layer{stage}/0/downsample/0") for stage in (2, 3, 4)
    ]
    assert ties["residual"] == [
        ("conv1", "layer1/0/conv2", "layer1/1/conv2"),
        *(
            (f"layer{s}/0/conv2", f"layer{s}/0/downsample/0", f"layer{s}/1/conv2")
            for s in (2, 3, 4)
        ),
    ]
    assert ties["depthwise"] == []


def test_depthwise_convolutions_are_tied_to_what_follows():
    ties = architecture_ties(untrained(build_module("mobilenet_v2", 3), 32, 32, 3))
    assert ties["depthwise"][:2] == [
        ("features/1/conv/0/0", "features/1/conv/1"),
        ("features/2/conv/1/0", "features/2/conv/2"),
    ]
    assert len(ties["depthwise"]) == 17
    assert ties["residual"][0] == ("features/2/conv/2", "features/3/conv/2")
    assert [len(group) for group in ties["residual"]] == [2, 3, 4, 3, 3]
    assert ties["downsample"] == []


def test_expansions_read_the_same_value_and_nothing_is_added():
    ties = architecture_ties(untrained(build_module("squeezenet1_1", 3), 32, 32, 3))
    assert ties["shared_input"] == [
        (f"features/{i}/expand1x1", f"features/{i}/expand3x3")
        for i in (3, 4, 6, 7, 9, 10, 11, 12)
    ]
    assert ties["residual"] == ties["downsample"] == ties["depthwise"] == []


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.LayerNorm()(x))
        x = x + y
        y = nn.Dense(8, name="up")(nn.LayerNorm()(x))
        y = nn.Dense(4, name="down")(nn.gelu(y))  # x + 0.044715 x³ adds a value to itself
        return nn.Dense(3, name="head")((x + y).mean(1))


def test_attention_shares_its_input_and_activations_add_no_ties():
    ties = architecture_ties(untrained(Attention(), 5, 4))
    assert ties["shared_input"] == [("attention/query", "attention/key", "attention/value")]
    assert ties["residual"] == [("attention/out", "down")]
    assert ties["downsample"] == ties["depthwise"] == ties["encoder_layer"] == []
    assert ties["qkv"] == ties["shared_input"]


def test_parts_of_a_decoder_are_found():
    module = Decoder(DecoderConfig(
        vocab_size=7, hidden_size=4, num_layers=2, num_heads=2, num_key_value_heads=1,
        head_size=2, intermediate_size=3, max_positions=4,
    ))  # fmt: skip
    variables = module.init(jax.random.key(0), example_ids())
    ties = architecture_ties(Network.from_linen(module, variables, example_ids()))
    for kind, parts in {
        "qkv": ("self_attn/q_proj", "self_attn/k_proj", "self_attn/v_proj"),
        "gate_up": ("mlp/gate_proj", "mlp/up_proj"),
        "encoder_layer": (
            *(f"self_attn/{part}_proj" for part in "qkvo"),
            *(f"mlp/{part}_proj" for part in ("gate", "up", "down")),
        ),
    }.items():
        assert ties[kind] == [tuple(f"layers/{i}/{part}" for part in parts) for i in (0, 1)]


class Fused(nn.Module):
    """Two blocks whose query, key and value are one kernel; the second has heads of its own."""

    @nn.compact
    def __call__(self, x):
        y = jnp.split(nn.Dense(12, name="block_0/attention_0/qkv")(x), 3, axis=-1)
        x = nn.Dense(4, name="block_0/attention_0/out")(attend(*y))
        x = nn.Dense(4, name="block_0/mlp_0")(x)
        heads = [
            [nn.Dense(2, name=f"block_1/attention_0/{part}/{head}")(x) for part in "qkv"]
            for head in (0, 1)
        ]
        x = jnp.concatenate([attend(*head) for head in heads], axis=-1)
        x = nn.Dense(4, name="block_1/attention_0/out")(x)
        return nn.Dense(4, name="block_1/mlp_0")(x).mean(1)


def attend(query, key, value):
    return nn.softmax(query @ key.swapaxes(1, 2)) @ value


def test_a_block_is_more_than_its_attention():
    ties = architecture_ties(untrained(Fused(), 5, 4))
    heads = [tuple(f"block_1/attention_0/{part}/{head}" for part in "qkv") for head in (0, 1)]
    assert ties["qkv"] == heads
    assert ties["encoder_layer"] == [
        ("block_0/attention_0/qkv", "block_0/attention_0/out", "block_0/mlp_0"),
        (*heads[0], *heads[1], "block_1/attention_0/out", "block_1/mlp_0"),
    ]
    assert ties["gate_up"] == []


def test_only_a_gate_is_tied_to_what_it_multiplies():
    def apply(p, x):
        squeezed = jax.nn.sigmoid(x.mean(1, keepdims=True) @ p["s"])  # reads another value
        x = (x @ p["a"]) * squeezed
        return ((x @ p["g"]) * jax.nn.silu(x @ p["u"])).mean(1)

    params = {name: jnp.ones((4, 4)) for name in "sagu"}
    ties = architecture_ties(Network.from_function(apply, params, jnp.ones((1, 3, 4))))
    assert ties["gate_up"] == [("g", "u")]
    assert ties["qkv"] == ties["encoder_layer"] == []


def test_names_do_not_matter():
    def apply(p, x):
        y = jax.jit(lambda x: jnp.tanh(x @ p["q"]))(x)
        return (y @ p["b"] + x @ p["z"]) @ p["a"]

    params = {name: jnp.ones((4, 4)) for name in "abqz"}
    ties = architecture_ties(Network.from_function(apply, params, jnp.ones((1, 4))))
    assert ties["downsample"] == [("q", "z")]
    assert ties["residual"] == [("b", "z")]


@pytest.mark.parametrize("groups", [1, 2])
def test_other_convolutions_are_not_depthwise(groups):
    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), feature_group_count=groups, name="a")(x)
            return nn.Conv(2, (1, 1), name="b")(x).mean((1, 2))

    assert architecture_ties(untrained(Grouped(), 5, 5, 4))["depthwise"] == []


def test_a_layer_reads_the_nearest_ones_before_it():
    """Of a residual stream the last outputs that were added; of a concatenation all."""

    def named(network):
        names = [layer.name for layer in network.layers]
        return {(names[one], names[other]) for one, other in nearest_layers(network)}

    pairs = named(untrained(build_module("resnet18", 3), 32, 32, 3))
    assert ("layer1/0/conv1", "layer1/0/conv2") in pairs
    assert {a for a, b in pairs if b == "layer1/1/conv1"} == {"layer1/0/conv2"}
    assert {a for a, b in pairs if b == "layer2/1/conv1"} == {
        "layer2/0/conv2",
        "layer2/0/downsample/0",
    }
    assert {a for a, b in pairs if b == "layer2/0/downsample/0"} == {"layer1/1/conv2"}
    pairs = named(untrained(build_module("squeezenet1_1", 3), 32, 32, 3))
    assert {a for a, b in pairs if b == "features/4/squeeze"} == {
        "features/3/expand1x1",
        "features/3/expand3x3",
    }
