"""EfficientNet-Lite (Tan, Le 2019; without squeeze-and-excitation, with ReLU6), in linen, NHWC.

Parameter paths follow the PyTorch conversion of Google's checkpoint without its leading
underscores: ``blocks/3/depthwise_conv/kernel`` is ``_blocks.3._depthwise_conv.weight``.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from jmpq.zoo.blocks import batch_norm, conv

EPSILON = 1e-3  # of TensorFlow's batch normalisation
STEM, HEAD = 32, 1280  # channels; the lite variants do not scale them
# Expansion, channels, blocks, stride of the first block and kernel size of every stage.
LITE0_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class EfficientNetLite(nn.Module):
    """Inverted residuals with kernels of 3 and 5 pixels; TensorFlow's padding.

    Attributes:
        num_classes: Number of logits.
        stages: Expansion, channels, blocks, stride and kernel size of every stage.
        stem: Channels of the first convolution.
        head: Channels of the last convolution.

    Dropout and dropped blocks, which evaluation switches off, are left out.

    References:
        Tan, Le (2019), EfficientNet, table 1; the lite variants of tensorflow/tpu (2020).
    """

    num_classes: int = 1000
    stages: tuple[tuple[int, int, int, int, int], ...] = LITE0_STAGES
    stem: int = STEM
    head: int = HEAD

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = conv(self.stem, 3, "conv_stem", stride=2, padding="SAME")(x)
        x = nn.relu6(batch_norm("bn0", train, epsilon=EPSILON)(x))
        x = Blocks(self.stages, name="blocks")(x, train=train)
        x = conv(self.head, 1, "conv_head")(x)
        x = nn.relu6(batch_norm("bn1", train, epsilon=EPSILON)(x))
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


class Blocks(nn.Module):
    """The inverted residuals, named 0, 1, ..."""

    stages: tuple[tuple[int, int, int, int, int], ...]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        number = 0
        for expansion, width, blocks, stride, size in self.stages:
            for block in range(blocks):
                x = Block(
                    width, expansion, stride if block == 0 else 1, size, name=str(number)
                )(x, train=train)
                number += 1
        return x


class Block(nn.Module):
    """1x1 expansion, depthwise, linear 1x1; the input is added where shapes allow."""

    width: int
    expansion: int
    stride: int
    size: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        hidden, y = x.shape[-1] * self.expansion, x
        if self.expansion != 1:
            y = conv(hidden, 1, "expand_conv")(y)
            y = nn.relu6(batch_norm("bn0", train, epsilon=EPSILON)(y))
        y = conv(
            hidden,
            self.size,
            "depthwise_conv",
            stride=self.stride,
            padding="SAME",
            groups=hidden,
        )(y)
        y = nn.relu6(batch_norm("bn1", train, epsilon=EPSILON)(y))
        y = batch_norm("bn2", train, epsilon=EPSILON)(conv(self.width, 1, "project_conv")(y))
        return x + y if self.stride == 1 and x.shape == y.shape else y
