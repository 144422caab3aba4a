"""Vision transformers compute what NumPy does; published files of three namings are read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.special

from jmpq.network.network import Network
from jmpq.zoo.architectures import build_module
from jmpq.zoo.vit import ViT, ViTConfig
from jmpq.zoo.weights_torchvision import abstract_variables, load_published

SHAPE, CLASSES, WIDTH = (8, 8, 3), 3, 6
TINY = ViTConfig(
    image_size=8, patch=4, hidden_size=WIDTH, num_layers=2, num_heads=2, intermediate_size=10
)
PARTS = {"q": "query", "k": "key", "v": "value", "proj": "out"}


def random(module):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda s: rng.normal(0, 0.5, s.shape).astype(s.dtype), abstract_variables(module, SHAPE)
    )


def images(count=2):
    return np.random.default_rng(2).normal(size=(count, *SHAPE)).astype(np.float32)


def written_out(params, x, config):
    """The network in NumPy, float64."""
    params = jax.tree.map(np.float64, params)

    def dense(p, y):
        return y @ p["kernel"] + p["bias"]

    def norm(p, y):
        y = y - y.mean(-1, keepdims=True)
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def gelu(y):
        return y * scipy.special.ndtr(y)

    side, heads = config.patch, config.num_heads
    rows = x.shape[1] // side
    patches = x.reshape(-1, rows, side, rows, side, 3).transpose(0, 1, 3, 2, 4, 5)
    kernel = params["patch_embed"]["proj"]["kernel"].reshape(-1, WIDTH)
    y = patches.reshape(len(x), rows**2, -1) @ kernel + params["patch_embed"]["proj"]["bias"]
    if config.pool == "token":
        y = np.concatenate([np.repeat(params["cls_token"], len(x), 0), y], axis=1)
    y = y + params["pos_embed"]
    for index in range(config.num_layers):
        p = params["blocks"][str(index)]
        z = norm(p["norm1"], y)
        q, k, v = (
            dense(p["attn"][n], z).reshape(len(x), -1, heads, WIDTH // heads).swapaxes(1, 2)
            for n in "qkv"
        )
        weights = scipy.special.softmax(q @ k.swapaxes(2, 3) / np.sqrt(WIDTH / heads), -1)
        y = y + dense(p["attn"]["proj"], (weights @ v).swapaxes(1, 2).reshape(z.shape))
        z = gelu(dense(p["mlp"]["fc1"], norm(p["norm2"], y)))
        y = y + dense(p["mlp"]["fc2"], z)
    y = norm(params["norm"], y)
    return dense(params["head"], y[:, 0] if config.pool == "token" else y.mean(1))


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_logits_equal_the_network_written_out(pool):
    config = dataclasses.replace(TINY, pool=pool, num_layers=1)
    module = ViT(config, CLASSES)
    variables = random(module)
    got = jax.jit(module.apply)(variables, jnp.asarray(images()))
    want = written_out(variables["params"], np.float64(images()), config)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def leaves(variables):
    return {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }


def timm(variables):
    """Tensors as timm saves them."""
    made = {}
    for path, leaf in leaves(variables).items():
        *layer, last = path.split("/")
        if last == "kernel":
            leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
        last = {"kernel": "weight", "scale": "weight"}.get(last, last)
        made[".".join([*layer, last])] = np.ascontiguousarray(leaf)
    for index in range(TINY.num_layers):
        for last in ("weight", "bias"):
            at = f"blocks.{index}.attn."
            parts = [made.pop(f"{at}{part}.{last}") for part in "qkv"]
            made[f"{at}qkv.{last}"] = np.concatenate(parts)
    return made


def torchvision(variables):
    """Tensors as torchvision saves them."""
    changes = {
        "patch_embed.proj": "conv_proj",
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "blocks.": "encoder.layers.encoder_layer_",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "norm.": "encoder.ln.",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj": "self_attention.out_proj",
        "fc1": "0",
        "fc2": "3",
        "head.": "heads.head.",
    }
    made = {}
    for name, tensor in timm(variables).items():
        for old, new in changes.items():
            name = name.replace(old, new)
        made[name] = tensor
    return made


def big_vision(variables, *, stacked=False):
    """Parameters as big_vision saves them."""
    made = {}
    for path, leaf in leaves(variables).items():
        *layer, last = path.split("/")
        match layer:
            case []:
                name = {"cls_token": "cls", "pos_embed": "pos_embedding"}[last]
                made[name] = leaf[:, 1:] if last == "pos_embed" else leaf
            case ["patch_embed", _]:
                made[f"embedding/{last}"] = leaf
            case ["blocks", index, "attn", part]:
                if last == "kernel":
                    shape = (2, 3, WIDTH) if part == "proj" else (WIDTH, 2, 3)
                else:
                    shape = (WIDTH,) if part == "proj" else (2, 3)
                where = f"encoderblock_{index}/MultiHeadDotProductAttention_0/{PARTS[part]}"
                made[f"Transformer/{where}/{last}"] = leaf.reshape(shape)
            case ["blocks", index, "mlp", part]:
                number = int(part[-1]) - 1
                where = f"Transformer/encoderblock_{index}/MlpBlock_0/Dense_{number}"
                made[f"{where}/{last}"] = leaf
            case ["blocks", index, norm]:
                number = int(norm[-1]) - 1
                made[f"Transformer/encoderblock_{index}/LayerNorm_{number}/{last}"] = leaf
            case ["norm"]:
                made[f"Transformer/encoder_norm/{last}"] = leaf
            case ["head"]:
                made[f"head/{last}"] = leaf
    if stacked:
        firsts = [name for name in made if "encoderblock_0/" in name]
        for name in firsts:
            others = [name.replace("block_0", f"block_{i}") for i in range(TINY.num_layers)]
            whole = np.stack([made.pop(other) for other in others])
            made[name.replace("encoderblock_0", "encoderblock")] = whole
    return {f"params/{name}": array for name, array in made.items()}


@pytest.mark.parametrize("kind", ["timm", "torchvision", "big_vision", "stacked"])
def test_published_namings_are_read(kind, tmp_path):
    module = ViT(TINY, CLASSES)
    variables = random(module)
    if kind in ("big_vision", "stacked"):
        # Its positions are added before the class token, which so has none.
        variables["params"]["pos_embed"][:, 0] = 0
        path = tmp_path / "w.npz"
        np.savez(path, **big_vision(variables, stacked=kind == "stacked"))
    else:
        path = tmp_path / "w.safetensors"
        tensors = timm(variables) if kind == "timm" else torchvision(variables)
        path.write_bytes(safetensors.numpy.save(tensors))
    got = load_published(path, module, input_shape=SHAPE)
    jax.tree.map(np.testing.assert_array_equal, got, variables)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # torchvision's num_params of vit_b_16; timm's of small and tiny
    [("vit_b16", 86_567_656), ("vit_s16", 22_050_664), ("vit_ti16", 5_717_416)],
)
def test_parameters_are_the_published_ones(name, parameters):
    shape = (224, 224, 3)
    variables = abstract_variables(build_module(name, 1000), shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters


def test_every_matrix_is_a_layer():
    module = ViT(dataclasses.replace(TINY, num_layers=1), CLASSES)
    network = Network.from_linen(module, random(module), jnp.zeros((1, *SHAPE)))
    names = [layer.name for layer in network.layers]
    block = [f"blocks/0/{n}" for n in ("attn/q", "attn/k", "attn/v", "attn/proj")]
    mlp = ["blocks/0/mlp/fc1", "blocks/0/mlp/fc2"]
    assert names == ["patch_embed/proj", *block, *mlp, "head"]


def test_the_one_for_small_images_has_as_many_parameters_as_it_says():
    variables = abstract_variables(build_module("vit_cifar"), (32, 32, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 460_714


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"image_size=30 does not divide into patches of 4"):
        ViTConfig(image_size=30, patch=4)
    with pytest.raises(ValueError, match="does not divide into num_heads=5"):
        ViTConfig(num_heads=5)
    with pytest.raises(ValueError, match="pool='max': choose token or mean"):
        ViTConfig(pool="max")
    with pytest.raises(ValueError, match=r"8 by 8 pixels; .* positions for 32 by 32"):
        abstract_variables(build_module("vit_cifar"), SHAPE)
