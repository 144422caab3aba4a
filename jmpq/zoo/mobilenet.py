"""MobileNetV1 (Howard et al. 2017) and V2 (Sandler et al. 2018), in linen, NHWC.

Parameter paths of V2 follow torchvision: ``features/2/conv/1/0/kernel`` is its
``features.2.conv.1.0.weight``. V1 has none there; its paths are ``features/3/dw_conv/kernel``.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from jmpq.zoo.blocks import ConvNorm, batch_norm, conv

V1_EPSILON = 1e-3  # of TensorFlow's batch normalisation
# Channels and stride of the depthwise separable convolutions of V1.
V1_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
# Expansion, channels, blocks and stride of the stages of V2 (table 2 of the paper).
V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV1(nn.Module):
    """A convolution, depthwise separable convolutions, a dense layer; TensorFlow's padding.

    Attributes:
        width: Multiplier of all channels.
        num_classes: Number of logits.
        blocks: Channels before the multiplier, and stride, of every separable convolution.

    Dropout, which evaluation switches off, is left out.

    References:
        Howard et al. (2017), MobileNets, table 1.
    """

    width: float = 1.0
    num_classes: int = 1000
    blocks: tuple[tuple[int, int], ...] = V1_BLOCKS

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        widths = tuple((max(int(c * self.width), 8), s) for c, s in self.blocks)
        stem = max(int(32 * self.width), 8)
        x = FeaturesV1(stem, widths, name="features")(x, train=train)
        return nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2)))


class FeaturesV1(nn.Module):
    """The stem, named 0, and the separable convolutions, named 1, 2, ..."""

    stem: int
    blocks: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        x = Stem(self.stem, name="0")(x, train=train)
        for number, (width, stride) in enumerate(self.blocks, start=1):
            x = Separable(width, stride, name=str(number))(x, train=train)
        return x


class Stem(nn.Module):
    """3x3 convolution of stride 2."""

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        x = conv(self.width, 3, "conv", stride=2, padding="SAME")(x)
        return nn.relu6(batch_norm("bn", train, epsilon=V1_EPSILON)(x))


class Separable(nn.Module):
    """3x3 convolution channel by channel, then a 1x1 convolution over the channels."""

    width: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        channels = x.shape[-1]
        x = conv(channels, 3, "dw_conv", stride=self.stride, padding="SAME", groups=channels)(x)
        x = nn.relu6(batch_norm("dw_bn", train, epsilon=V1_EPSILON)(x))
        x = conv(self.width, 1, "pw_conv")(x)
        return nn.relu6(batch_norm("pw_bn", train, epsilon=V1_EPSILON)(x))


class MobileNetV2(nn.Module):
    """Inverted residuals with linear bottlenecks.

    Attributes:
        width: Multiplier of all channels; these are rounded to multiples of 8.
        num_classes: Number of logits.
        stages: Expansion, channels, blocks and stride of every stage.
        head: Channels of the last convolution, multiplied only by widths above 1.

    Dropout, which evaluation switches off, is left out.

    References:
        Sandler et al. (2018), MobileNetV2, table 2.
    """

    width: float = 1.0
    num_classes: int = 1000
    stages: tuple[tuple[int, int, int, int], ...] = V2_STAGES
    head: int = 1280

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        stages = tuple((t, _of_eight(c * self.width), n, s) for t, c, n, s in self.stages)
        widths = _of_eight(32 * self.width), _of_eight(self.head * max(1.0, self.width))
        x = FeaturesV2(*widths, stages, name="features")(x, train=train)
        return ClassifierV2(self.num_classes, name="classifier")(x.mean((1, 2)))


class FeaturesV2(nn.Module):
    """Stem, inverted residuals and last convolution, named 0, 1, ..."""

    stem: int
    head: int
    stages: tuple[tuple[int, int, int, int], ...]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        x = ConvNorm(self.stem, 3, 2, activation=nn.relu6, name="0")(x, train=train)
        number = 1
        for expansion, width, blocks, stride in self.stages:
            for block in range(blocks):
                x = InvertedResidual(
                    width, expansion, stride if block == 0 else 1, name=str(number)
                )(x, train=train)
                number += 1
        return ConvNorm(self.head, 1, activation=nn.relu6, name=str(number))(x, train=train)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1; the input is added where shapes allow."""

    width: int
    expansion: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        hidden = x.shape[-1] * self.expansion
        y = InvertedConvs(self.width, hidden, self.stride, name="conv")(x, train=train)
        return x + y if x.shape == y.shape else y


class InvertedConvs(nn.Module):
    """The three convolutions (two without expansion), numbered with the last norm."""

    width: int
    hidden: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        number, hidden = 0, self.hidden
        if hidden != x.shape[-1]:
            x = ConvNorm(hidden, 1, activation=nn.relu6, name="0")(x, train=train)
            number = 1
        x = ConvNorm(hidden, 3, self.stride, hidden, nn.relu6, name=str(number))(x, train=train)
        x = conv(self.width, 1, str(number + 1))(x)
        return batch_norm(str(number + 2), train)(x)


class ClassifierV2(nn.Module):
    """The dense layer, named 1: the dropout before it counts."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch classes"]:
        return nn.Dense(self.num_classes, name="1")(x)


def _of_eight(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and not below nine tenths.

    >>> _of_eight(32 * 0.35), _of_eight(24 * 0.75), _of_eight(96 * 1.4)
    (16, 24, 136)
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
