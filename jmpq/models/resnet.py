"""Residual networks for small images (He et al. 2015), in linen, NHWC.

Parameter paths follow the published PyTorch weights: ``layer1/0/conv1/kernel`` is their
``layer1.0.conv1.weight``.
"""

import functools
import itertools
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

BN_EPSILON = 1e-5


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
        x = _conv(self.widths[0], 1, "conv1")(x)
        x = nn.relu(_batch_norm("bn1", train)(x))
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
        y = _conv(self.width, self.stride, "conv1")(x)
        y = nn.relu(_batch_norm("bn1", train)(y))
        y = _batch_norm("bn2", train)(_conv(self.width, 1, "conv2")(y))
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


def _conv(width: int, stride: int, name: str) -> nn.Conv:
    """3x3 convolution without bias, one zero pixel around: ``SAME`` differs at stride 2."""
    return nn.Conv(
        width,
        (3, 3),
        strides=stride,
        padding=((1, 1), (1, 1)),
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        name=name,
    )


def _batch_norm(name: str, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=BN_EPSILON, name=name
    )


# What the command line and saved weights call the architectures.
RESNETS: Mapping[str, functools.partial[ResNetCIFAR]] = MappingProxyType(
    {
        "digits_resnet": functools.partial(ResNetCIFAR, depth=8),  # 75k parameters
        **{
            f"resnet{depth}": functools.partial(ResNetCIFAR, depth=depth)
            for depth in (20, 32, 44, 56, 110)
        },
    }
)


def resnet(architecture: str, num_classes: int = 10) -> ResNetCIFAR:
    """The network of a name in `RESNETS`.

    Raises:
        ValueError: If there is no such name.
    """
    if architecture not in RESNETS:
        raise ValueError(
            f"There is no architecture {architecture!r}; choose one of {', '.join(RESNETS)}."
        )
    return RESNETS[architecture](num_classes=num_classes)
