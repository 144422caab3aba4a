"""Residual networks (He et al. 2015) for small images and for ImageNet, in linen, NHWC.

Parameter paths follow the published PyTorch weights: ``layer1/0/conv1/kernel`` is their
``layer1.0.conv1.weight``.
"""

import itertools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jmpq.zoo.blocks import ConvNorm, batch_norm, conv, max_pool


class ResNetCIFAR(nn.Module):
    """Convolution, stages of basic blocks, global average pooling, dense layer.

    Attributes:
        depth: Layers counted as the paper counts them, ``2·blocks·stages + 2``: 20, 32, 44,
            56 and 110 with three stages.
        num_classes: Number of logits.
        widths: Channels of each stage. Every stage but the first begins with stride 2.

    Calling it without `train` is evaluation with frozen batch statistics. Float32
    throughout; the width of the input's last axis is free.

    Raises:
        ValueError: If `depth` does not fit the number of stages, or a width shrinks.

    References:
        He, Zhang, Ren, Sun (2015), Deep Residual Learning for Image Recognition, section 4.2.
    """

    depth: int = 20
    num_classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64)

    @property
    def blocks_per_stage(self) -> int:
        """Number of basic blocks in every stage, from `depth`."""
        if not self.widths:
            raise ValueError("`widths` is empty: give the channels of at least one stage.")
        blocks, rest = divmod(self.depth - 2, 2 * len(self.widths))
        if blocks < 1 or rest:
            per_block = 2 * len(self.widths)
            fitting = ", ".join(str(per_block * n + 2) for n in (1, 2, 3))
            raise ValueError(
                f"depth={self.depth} does not fit {len(self.widths)} stages: it must be "
                f"{per_block}·blocks + 2, as {fitting}."
            )
        return blocks

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        blocks = self.blocks_per_stage
        if any(a > b for a, b in itertools.pairwise(self.widths)):
            raise ValueError(
                f"widths={self.widths} shrink: the parameter-free shortcut can only add "
                "channels. Give widths that do not decrease."
            )
        x = conv(self.widths[0], 3, "conv1")(x)
        x = nn.relu(batch_norm("bn1", train)(x))
        for stage, width in enumerate(self.widths):
            x = Stage(width, blocks, 1 if stage == 0 else 2, name=f"layer{stage + 1}")(
                x, train=train
            )
        return nn.Dense(self.num_classes, name="linear")(x.mean((1, 2)))


class Stage(nn.Module):
    """Basic blocks of one width, named 0, 1, ...; the first may halve the resolution."""

    width: int
    blocks: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        for block in range(self.blocks):
            stride = self.stride if block == 0 else 1
            x = BasicBlock(self.width, stride, name=str(block))(x, train=train)
        return x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added (option A shortcut)."""

    width: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        y = conv(self.width, 3, "conv1", stride=self.stride)(x)
        y = nn.relu(batch_norm("bn1", train)(y))
        y = batch_norm("bn2", train)(conv(self.width, 3, "conv2")(y))
        return nn.relu(y + shortcut_a(x, self.width, self.stride))


def shortcut_a(
    x: Float[Array, "batch height width channels"], width: int, stride: int
) -> Float[Array, "batch _ _ _"]:
    """Every `stride`-th pixel, zero channels added on both sides up to `width`.

    References:
        He et al. (2015), section 3.3, option A; half of the channels on each side as in the
        published weights' code (an odd one after).
    """
    x = x[:, ::stride, ::stride, :]
    missing = width - x.shape[-1]
    sides = (missing // 2, missing - missing // 2)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), sides))


class ResNet(nn.Module):
    """The ImageNet networks as torchvision has them: stride in the 3x3 convolution.

    Attributes:
        blocks: Blocks of each stage. Every stage but the first begins with stride 2.
        bottleneck: Whether blocks are 1x1, 3x3, 1x1 convolutions (four times as many channels
            out) instead of two of 3x3.
        num_classes: Number of logits.
        width: Channels of the first stage; each stage doubles them.

    References:
        He, Zhang, Ren, Sun (2015), section 4.1, table 1, shortcuts of option B.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    num_classes: int = 1000
    width: int = 64

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = nn.relu(batch_norm("bn1", train)(conv(self.width, 7, "conv1", stride=2)(x)))
        x = max_pool(x, 3, 2, padding=1)
        for stage, blocks in enumerate(self.blocks):
            x = ProjectedStage(
                self.width * 2**stage,
                blocks,
                1 if stage == 0 else 2,
                self.bottleneck,
                name=f"layer{stage + 1}",
            )(x, train=train)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


class ProjectedStage(nn.Module):
    """Blocks of one width, named 0, 1, ...; the first may halve the resolution."""

    width: int
    blocks: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        for block in range(self.blocks):
            stride = self.stride if block == 0 else 1
            x = ProjectedBlock(self.width, stride, self.bottleneck, name=str(block))(
                x, train=train
            )
        return x


class ProjectedBlock(nn.Module):
    """Convolutions around which the input is added, projected where shapes differ."""

    width: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        sizes = (1, 3, 1) if self.bottleneck else (3, 3)
        widths = (*(self.width,) * (len(sizes) - 1), self.width * (4 if self.bottleneck else 1))
        y = x
        for i, (size, width) in enumerate(zip(sizes, widths, strict=True), start=1):
            strided = i == len(sizes) - 1  # the first of two, the middle one of three
            y = conv(width, size, f"conv{i}", stride=self.stride if strided else 1)(y)
            y = batch_norm(f"bn{i}", train)(y)
            y = nn.relu(y) if i < len(sizes) else y
        if x.shape != y.shape:
            x = ConvNorm(widths[-1], 1, self.stride, name="downsample")(x, train=train)
        return nn.relu(x + y)
