"""The part a layer plays follows from kind, shape and the last parts of its name."""

import pytest

from jmpq.network.layers import Layer, layer_type


def dense(name):
    return Layer(
        name=name, kind="dense", kernel=f"{name}/kernel", kernel_shape=(2, 3), output_axes=(1,),
        input_axes=(0,), parameters=6, macs=6, input_shape=(2,), output_shape=(3,),
    )  # fmt: skip


def conv(channels, groups, outputs):
    shape = (3, 3, channels // groups, outputs)
    return Layer(
        name="x", kind="conv", kernel="x/kernel", kernel_shape=shape, output_axes=(3,),
        input_axes=(2,), parameters=9 * shape[2] * outputs, macs=1,
        input_shape=(8, 8, channels), output_shape=(8, 8, outputs),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "names"),
    {
        "q": ("layers/0/self_attn/q_proj", "layer/1/attention/self/query/7", "blocks/0/attn/q"),
        "k": ("layers/self_attn/k_proj[3]", "MultiHeadDotProductAttention_0/key"),
        "v": ("layers/0/self_attn/v_proj", "encoder/layer/1/attention/self/value"),
        "qkv": ("blocks/0/attn/qkv", "h/0/attn/c_attn"),
        "o": ("layers/0/self_attn/o_proj", "encoder/layer/1/attention/output/dense",
              "blocks/0/attn/proj", "encoderblock_0/MultiHeadDotProductAttention_0/out",
              "layer/0/attention/output/dense/3"),
        "gate": ("layers/0/mlp/gate_proj", "layers/0/feed_forward/w1"),
        "up": ("layers/0/mlp/up_proj", "layers/0/feed_forward/w3"),
        "down": ("layers/0/mlp/down_proj", "layers/0/feed_forward/w2"),
        "fc1": ("blocks/0/mlp/fc1", "encoder/layer/1/intermediate/dense",
                "encoderblock_0/MlpBlock_0/Dense_0", "encoder_layer_0/mlp/0"),
        "fc2": ("blocks/0/mlp/fc2", "encoder/layer/1/output/dense",
                "encoderblock_0/MlpBlock_0/Dense_1", "encoder_layer_0/mlp/3"),
        "head": ("head", "lm_head", "classifier", "classifier/1", "fc", "heads/head"),
        "dense": ("pooler/dense", "blocks/0/linear", "w1"),
    }.items(),
)  # fmt: skip
def test_dense_layers_are_told_by_their_names(kind, names):
    assert {layer_type(dense(name)) for name in names} == {kind}


@pytest.mark.parametrize(
    ("channels", "groups", "outputs", "kind"),
    [(6, 6, 6, "depthwise"), (6, 1, 6, "conv"), (6, 3, 6, "conv"), (1, 1, 16, "conv")],
)
def test_convolutions_are_told_by_their_shapes(channels, groups, outputs, kind):
    assert layer_type(conv(channels, groups, outputs)) == kind
