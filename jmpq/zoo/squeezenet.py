"""SqueezeNet 1.1 (Iandola et al. 2016), in linen, NHWC.

Parameter paths follow torchvision: ``features/3/expand3x3/kernel`` is its
``features.3.expand3x3.weight``.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jmpq.zoo.blocks import conv, max_pool

# Squeezed channels, and those of each expansion, of the fire modules; None is max pooling.
FIRES = (
    (16, 64),
    (16, 64),
    None,
    (32, 128),
    (32, 128),
    None,
    (48, 192),
    (48, 192),
    (64, 256),
    (64, 256),
)


class SqueezeNet(nn.Module):
    """Fire modules between 3x3 poolings, no normalisation, a convolution for the classes.

    Attributes:
        num_classes: Number of logits.
        fires: Channels of the fire modules.

    Dropout, which evaluation switches off, is left out; `train` changes nothing.

    References:
        Iandola et al. (2016), SqueezeNet; version 1.1 is the authors' own later release.
    """

    num_classes: int = 1000
    fires: tuple[tuple[int, int] | None, ...] = FIRES

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = Features(self.fires, name="features")(x)
        return Classifier(self.num_classes, name="classifier")(x).mean((1, 2))


class Features(nn.Module):
    """The first convolution, named 0, and the fire modules, numbered with the poolings."""

    fires: tuple[tuple[int, int] | None, ...]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch _ _ _"]:
        x = nn.relu(conv(64, 3, "0", stride=2, padding=0, bias=True)(x))
        x = max_pool(x, 3, 2, ceil=True)
        for number, fire in enumerate(self.fires, start=3):
            if fire is None:
                x = max_pool(x, 3, 2, ceil=True)
            else:
                x = Fire(*fire, name=str(number))(x)
        return x


class Fire(nn.Module):
    """1x1 convolution to few channels; 1x1 and 3x3 ones of it, concatenated in this order."""

    squeezed: int
    expanded: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch _ _ _"]:
        x = nn.relu(conv(self.squeezed, 1, "squeeze", bias=True)(x))
        parts = [
            nn.relu(conv(self.expanded, size, f"expand{size}x{size}", bias=True)(x))
            for size in (1, 3)
        ]
        return jnp.concatenate(parts, axis=-1)


class Classifier(nn.Module):
    """1x1 convolution, named 1: the dropout before it counts."""

    num_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width classes"]:
        return nn.relu(conv(self.num_classes, 1, "1", bias=True)(x))
