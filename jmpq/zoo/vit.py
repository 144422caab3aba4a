"""Vision transformers (Dosovitskiy et al. 2020), in linen, NHWC.

Parameter paths follow timm, with query, key and value apart: ``blocks/3/attn/q/kernel`` is a
third of ``blocks.3.attn.qkv.weight``.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Pool = Literal["token", "mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of a vision transformer.

    Attributes:
        image_size: Height and width of an image, pixels.
        patch: Height and width of a patch, pixels; divides `image_size`.
        hidden_size: Features of a patch between the blocks.
        num_layers: Blocks.
        num_heads: Attention heads; they share the hidden features evenly.
        intermediate_size: Features inside the feed-forward part of a block.
        pool: ``token``: the head reads a class token before the patches. ``mean``: it reads
            the mean over the patches, and there is no class token.
        tanh_gelu: Whether the activation is GELU by tanh, as in big_vision, instead of exact.
        norm_eps: Added to the variance in normalisation.
        dropout: Rate in training, after every part of a block.
    """

    image_size: int = 224
    patch: int = 16
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    pool: str = "token"  # one of Pool
    tanh_gelu: bool = False
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} does not divide into num_heads="
                f"{self.num_heads} heads. Choose a number of heads that divides it."
            )
        if self.patch < 1 or self.image_size % self.patch:
            raise ValueError(
                f"image_size={self.image_size} does not divide into patches of {self.patch} "
                "pixels. Choose a size that does."
            )
        if self.pool not in get_args(Pool):
            raise ValueError(f"pool={self.pool!r}: choose {' or '.join(get_args(Pool))}.")


VITS: Mapping[str, ViTConfig] = MappingProxyType(
    {
        "vit_b16": ViTConfig(),
        "vit_s16": ViTConfig(hidden_size=384, num_heads=6, intermediate_size=1536),
        "vit_ti16": ViTConfig(hidden_size=192, num_heads=3, intermediate_size=768),
        "vit_b32": ViTConfig(patch=32),
        # 8 by 8 patches of CIFAR-10; 460,714 parameters with ten classes
        "vit_cifar": ViTConfig(
            image_size=32,
            patch=4,
            hidden_size=96,
            num_layers=6,
            num_heads=3,
            intermediate_size=192,
            pool="mean",
            tanh_gelu=True,
        ),
    }
)


class ViT(nn.Module):
    """Patches, positions, blocks that normalise before each part, normalisation, a dense head.

    Attributes:
        config: Sizes.
        num_classes: Number of logits.
        dtype: Type of parameters and results.

    References:
        Dosovitskiy et al. (2020), An image is worth 16x16 words; Beyer, Zhai, Kolesnikov
        (2022), Better plain ViT baselines (the mean over patches).
    """

    config: ViTConfig
    num_classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        config = self.config
        if x.shape[1:3] != (config.image_size,) * 2:
            raise ValueError(
                f"Images of {x.shape[1]} by {x.shape[2]} pixels; this vision transformer has "
                f"positions for {config.image_size} by {config.image_size}."
            )
        x = PatchEmbedding(config, self.dtype, name="patch_embed")(x)
        x = x.reshape(x.shape[0], -1, config.hidden_size)
        initial, dtype = nn.initializers.normal(0.02), self.dtype
        if config.pool == "token":
            token = self.param("cls_token", initial, (1, 1, config.hidden_size), dtype)
            row = jnp.broadcast_to(token, (x.shape[0], 1, config.hidden_size))
            x = jnp.concatenate([row, x], axis=1)
        x = x + self.param("pos_embed", initial, (1, *x.shape[1:]), dtype)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        x = Blocks(config, dtype, name="blocks")(x, train=train)
        x = _norm(config, dtype, "norm")(x)
        x = x[:, 0] if config.pool == "token" else x.mean(axis=1)
        return _dense(self.num_classes, dtype, "head")(x)


class PatchEmbedding(nn.Module):
    """One convolution whose windows do not overlap, named proj."""

    config: ViTConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns hidden"]:
        side = self.config.patch
        return nn.Conv(
            self.config.hidden_size,
            (side, side),
            strides=side,
            padding="VALID",
            dtype=self.dtype,
            param_dtype=self.dtype,
            name="proj",
        )(x)


class Blocks(nn.Module):
    """The blocks, named 0, 1, ..."""

    config: ViTConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches hidden"], *, train: bool
    ) -> Float[Array, "batch patches hidden"]:
        for index in range(self.config.num_layers):
            x = Block(self.config, self.dtype, name=str(index))(x, train=train)
        return x


class Block(nn.Module):
    """Attention, then two dense layers; each normalises its input and adds its output."""

    config: ViTConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches hidden"], *, train: bool
    ) -> Float[Array, "batch patches hidden"]:
        drop = nn.Dropout(self.config.dropout, deterministic=not train)
        y = _norm(self.config, self.dtype, "norm1")(x)
        x = x + drop(Attention(self.config, self.dtype, name="attn")(y))
        y = _norm(self.config, self.dtype, "norm2")(x)
        return x + drop(FeedForward(self.config, self.dtype, name="mlp")(y))


class Attention(nn.Module):
    """softmax(QKᵀ/√d)V in every head, then a dense layer over the heads' features."""

    config: ViTConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches hidden"]
    ) -> Float[Array, "batch patches hidden"]:
        heads = self.config.num_heads
        size = self.config.hidden_size // heads

        def project(name: str) -> Float[Array, "batch patches heads features"]:
            y = _dense(self.config.hidden_size, self.dtype, name)(x)
            return y.reshape(*x.shape[:-1], heads, size)

        query, key, value = (project(name) for name in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.asarray(np.sqrt(size), x.dtype)
        context = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value).reshape(x.shape)
        return _dense(self.config.hidden_size, self.dtype, "proj")(context)


class FeedForward(nn.Module):
    """Two dense layers with GELU between them."""

    config: ViTConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches hidden"]
    ) -> Float[Array, "batch patches hidden"]:
        y = _dense(self.config.intermediate_size, self.dtype, "fc1")(x)
        y = nn.gelu(y, approximate=self.config.tanh_gelu)
        return _dense(self.config.hidden_size, self.dtype, "fc2")(y)


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        dtype=dtype,
        param_dtype=dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        name=name,
    )


def _norm(config: ViTConfig, dtype: Any, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        config.norm_eps,
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=dtype,
        name=name,
    )
