"""Softmax, layer normalisation and GELU in ONNX files: one node each, or the chain as it is."""

import collections
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.export.codes import unquantized
from jmpq.network.network import Network
from jmpq.zoo.decoder import Decoder, DecoderConfig
from jmpq.zoo.vit import ViT, ViTConfig
from tests.export import cases

pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")

from jmpq.export.check import onnx_runner
from jmpq.export.onnx_graph import onnx_model
from jmpq.export.onnx_ops import elementwise
from jmpq.export.onnx_patterns import merge
from jmpq.export.onnx_values import Constant, Graph, Tensor

ONE_NODE = ("Softmax", "LayerNormalization", "Gelu")
FLOAT32_MIN = float(jnp.finfo(jnp.float32).min)


class Between(nn.Module):
    """A function between two dense layers, on tensors of the shape [batch, 5, 8]."""

    function: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x):
        y = self.function(nn.Dense(8, name="first")(x))
        return nn.Dense(3, name="head")(y.reshape(len(y), -1))


def examples(count=4):
    return 2 * jax.random.normal(jax.random.key(1), (count, 5, 8), jnp.float32)


def network_of(module, example):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), example)
        rng = np.random.default_rng(0)  # scales of one and biases of zero are left out
        variables = jax.tree.map(
            lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32), variables
        )
        return Network.from_linen(module, variables, example)


def kinds_of(network, inputs):
    """Kinds of nodes in a network's file, whose logits are those of JAX."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = onnx_model(unquantized(network))
        want = np.asarray(jax.jit(network.logits)(inputs))
    got = onnx_runner(model.SerializeToString())(inputs)
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))
    return collections.Counter(node.op_type for node in model.graph.node)


def kinds_between(function):
    return kinds_of(network_of(Between(function), examples(1)), examples())


def softmax_by_hand(x, axis=-1):
    values = jnp.exp(x - x.max(axis, keepdims=True))
    return values / values.sum(axis, keepdims=True)


def normalised_by_hand(x, *, ddof=0, epsilon=1e-3, axis=-1):
    centred = x - x.mean(axis, keepdims=True)
    return centred / jnp.sqrt(x.var(axis, keepdims=True, ddof=ddof) + epsilon)


def gelu_by_hand(x, half=0.5, inner=2**0.5):
    return half * x * (1 + jax.lax.erf(x / inner))


def tanh_gelu_by_hand(x, cube=0.044715):
    return x * 0.5 * (1 + jnp.tanh((2 / np.pi) ** 0.5 * (x + cube * x * x * x)))


def row(start):
    """Numbers that differ along the last axis of eight."""
    return jnp.arange(start, start + 8, dtype=jnp.float32)


MERGED = {
    "softmax": (nn.softmax, "Softmax"),
    "softmax of an inner axis": (lambda x: nn.softmax(x, axis=1), "Softmax"),
    "softmax by hand": (softmax_by_hand, "Softmax"),
    "softmax of a transposed tensor": (
        lambda x: nn.softmax(x.transpose(0, 2, 1), axis=1),
        "Softmax",
    ),
    "flax's norm": (lambda x: nn.LayerNorm()(x), "LayerNormalization"),
    "flax's norm, variance in two steps": (
        lambda x: nn.LayerNorm(use_fast_variance=False)(x),
        "LayerNormalization",
    ),
    "norm without scale": (lambda x: nn.LayerNorm(use_scale=False)(x), "LayerNormalization"),
    "norm without bias": (lambda x: nn.LayerNorm(use_bias=False)(x), "LayerNormalization"),
    "norm without either": (jax.nn.standardize, "LayerNormalization"),
    "norm over two axes": (
        lambda x: nn.LayerNorm(reduction_axes=(1, 2), feature_axes=(1, 2))(x),
        "LayerNormalization",
    ),
    "norm by hand": (lambda x: normalised_by_hand(x) * row(1) + row(2), "LayerNormalization"),
    "exact GELU": (lambda x: nn.gelu(x, approximate=False), "Gelu"),
    "exact GELU by hand": (gelu_by_hand, "Gelu"),
    "exact GELU of a product": (lambda x: gelu_by_hand(2 * x), "Gelu"),
    "tanh GELU": (lambda x: nn.gelu(x, approximate=True), "Gelu"),
    "tanh GELU by hand": (tanh_gelu_by_hand, "Gelu"),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_a_function_is_one_node(name):
    function, kind = MERGED[name]
    found = kinds_between(function)
    extra = {"Mul"} if name == "exact GELU of a product" else set()
    moved = {"Reshape", "Transpose"}
    assert found[kind] == 1
    assert found.keys() - moved <= {"MatMul", "Add", "Gemm", "Identity", kind} | extra


def two_forms(x):
    return nn.gelu(nn.gelu(x, approximate=True), approximate=False)


def test_both_forms_of_gelu_are_told_apart():
    model = onnx_model(unquantized(network_of(Between(two_forms), examples(1))))
    forms = [n.attribute[0].s for n in model.graph.node if n.op_type == "Gelu"]
    assert forms == [b"tanh", b"none"]


def softmax_of_both_axes(x):
    values = jnp.exp(x - x.max((1, 2), keepdims=True))
    return values / values.sum((1, 2), keepdims=True)


def mixed_axes(x):
    values = jnp.exp(x - x.max(1, keepdims=True))
    return values / values.sum(2, keepdims=True)


def with_greatest_of_another(x):
    values = jnp.exp(x - (2 * x).max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def without_greatest(x):
    return jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)


def partial_softmax(x):
    return nn.softmax(x, where=x > 0)


def used_exponentials(x):
    values = jnp.exp(x - x.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True) + values


def used_deviations(x):
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-3) + centred


def used_gate(x):
    gate = 1 + jax.lax.erf(x * 0.5**0.5)
    return 0.5 * x * gate + gate


def around_another_mean(x):
    centred = x - x[:, :, ::2].mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-3)


def upside_down(x):
    return jnp.sqrt(x.var(-1, keepdims=True) + 1e-3) / (x - x.mean(-1, keepdims=True) + 9)


def scaled_by_position(x):
    return normalised_by_hand(x) * jnp.arange(1.0, 6.0, dtype=jnp.float32)[:, None]


UNLIKE = {
    "softmax of two axes": softmax_of_both_axes,
    "maximum of one axis, sum of another": mixed_axes,
    "maximum of another tensor": with_greatest_of_another,
    "softmax that may overflow": without_greatest,
    "softmax of some elements": partial_softmax,
    "exponentials that are read": used_exponentials,
    "variance with ddof": lambda x: normalised_by_hand(x, ddof=1),
    "norm of an inner axis": lambda x: normalised_by_hand(x, axis=1),
    "root mean square": lambda x: nn.RMSNorm()(x),
    "deviations that are read": used_deviations,
    "deviation from another mean": around_another_mean,
    "deviation below": upside_down,
    "half of another size": lambda x: gelu_by_hand(x, half=0.6),
    "root of another number": lambda x: gelu_by_hand(x, inner=1.5),
    "erf that is read": used_gate,
    "another cube": lambda x: tanh_gelu_by_hand(x, cube=0.05),
    "sigmoid": nn.silu,
    "tanh": jnp.tanh,
}


@pytest.mark.parametrize("name", UNLIKE)
def test_other_functions_stay_as_they_are(name):
    assert not {*kinds_between(UNLIKE[name])} & {*ONE_NODE}


def test_a_scale_by_position_stays_behind_the_norm():
    found = kinds_between(scaled_by_position)
    assert (found["LayerNormalization"], found["Mul"]) == (1, 1)


@pytest.mark.parametrize("read", [False, True])
def test_an_output_inside_a_chain_stays(read):
    graph = Graph(1009, native=False, smallest=2)
    x = graph.known(Tensor("x", (1009, 4), (1009, 4), np.dtype(np.float32), (0, 1)))
    multiple = elementwise(graph, "Mul", [x, number(0.5**0.5)], x.dtype)
    gate = elementwise(graph, "Erf", [multiple], x.dtype)
    one = elementwise(graph, "Add", [gate, number(1)], x.dtype)
    half = elementwise(graph, "Mul", [x, number(0.5)], x.dtype)
    result = elementwise(graph, "Mul", [half, one], x.dtype)
    before = [node.op_type for node in graph.nodes]
    merge(graph, {result.name, *([gate.name] if read else [])})
    assert [node.op_type for node in graph.nodes] == (before if read else ["Gelu"])
    assert graph.nodes[-1].output[0] == result.name


def number(value):
    return Constant(np.asarray(value, np.float32), ())


def masked(hidden, seen):
    return lambda x: nn.softmax(jnp.where(seen(x), x, jnp.asarray(hidden, x.dtype)))


def first_columns(x):
    return x[:, :1, :] > 0


MASKS = {
    "of the inputs": (FLOAT32_MIN, first_columns, {"Where": 1, "Softmax": 1}),
    "infinite": (-np.inf, lambda x: np.tri(5, 8, dtype=bool), {"Softmax": 1}),
    "known": (FLOAT32_MIN, lambda x: np.tri(5, 8, -1, dtype=bool), {"Softmax": 1}),
    "of all scores": (FLOAT32_MIN, lambda x: x > 0, {"Where": 1, "Softmax": 1}),
    "that can be seen": (-100.0, first_columns, {"Where": 1, "Softmax": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_added_where_they_are_smaller_than_the_scores(name):
    hidden, seen, kinds = MASKS[name]
    found = kinds_between(masked(hidden, seen))
    assert {kind: found[kind] for kind in ("Where", "Softmax") if found[kind]} == kinds
    sums = found["Add"] - 1  # a bias of the first layer
    assert sums == (name not in ("of all scores", "that can be seen"))


VIT = ViTConfig(
    image_size=8, patch=4, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32
)
DECODER = DecoderConfig(
    vocab_size=20,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_key_value_heads=2,
    head_size=4,
    intermediate_size=24,
    max_positions=8,
)


def tokens(count):
    return jax.random.randint(jax.random.key(2), (count, 6), 0, 20, jnp.int32)


TRANSFORMERS = {
    "bert": (cases.bert_tiny, lambda: cases.sentences(3), (2, 5, 2)),
    "vit": (
        lambda: network_of(ViT(VIT, 3), jnp.zeros((1, 8, 8, 3), jnp.float32)),
        lambda: jax.random.normal(jax.random.key(1), (3, 8, 8, 3), jnp.float32),
        (2, 5, 2),
    ),
    "decoder": (
        lambda: network_of(Decoder(DECODER), tokens(1)),
        lambda: tokens(3),
        (2, 0, 0),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_hold_no_chain(name):
    network, inputs, counts = TRANSFORMERS[name]
    found = kinds_of(network(), inputs())
    assert tuple(found[kind] for kind in ONE_NODE) == counts
    assert not {*found} & {"Exp", "Erf", "ReduceMax"}
