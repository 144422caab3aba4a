"""VGG (Simonyan, Zisserman 2014) with and without batch normalisation, in linen, NHWC.

Parameter paths follow torchvision: ``features/3/kernel`` is its ``features.3.weight``.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from jmpq.zoo.blocks import adaptive_mean, batch_norm, conv, max_pool

# Channels of the convolutions of each stage; stages end in 2x2 max pooling.
STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
POSITIONS = 7  # height and width that the dense layers see


class VGG(nn.Module):
    """3x3 convolutions in five stages, then three dense layers.

    Attributes:
        stages: Channels of the convolutions of every stage (`STAGES`).
        norm: Whether batch normalisation follows every convolution.
        num_classes: Number of logits.
        hidden: Width of the first two dense layers.

    Dropout, which evaluation switches off, is left out. Images of another size than 224 are
    pooled to 7x7 positions, as in torchvision.

    References:
        Simonyan, Zisserman (2014), Very Deep Convolutional Networks, table 1, columns A, B, D
        and E.
    """

    stages: tuple[tuple[int, ...], ...]
    norm: bool = False
    num_classes: int = 1000
    hidden: int = 4096

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = Features(self.stages, self.norm, name="features")(x, train=train)
        x = adaptive_mean(x, POSITIONS)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # PyTorch's order of features
        return Classifier(self.hidden, self.num_classes, name="classifier")(x)


class Features(nn.Module):
    """The convolutions, numbered as if every operation were a module."""

    stages: tuple[tuple[int, ...], ...]
    norm: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch _ _ _"]:
        number = 0
        for stage in self.stages:
            for width in stage:
                x = conv(width, 3, str(number), bias=True)(x)
                if self.norm:
                    x = batch_norm(str(number + 1), train)(x)
                x = nn.relu(x)
                number += 3 if self.norm else 2
            x = max_pool(x, 2, 2)
            number += 1
        return x


class Classifier(nn.Module):
    """Three dense layers, numbered 0, 3 and 6: the dropouts between them count."""

    hidden: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch classes"]:
        x = nn.relu(nn.Dense(self.hidden, name="0")(x))
        x = nn.relu(nn.Dense(self.hidden, name="3")(x))
        return nn.Dense(self.num_classes, name="6")(x)
