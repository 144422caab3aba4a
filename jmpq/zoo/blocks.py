"""Pieces of the built-in networks: convolution and pooling as published weights have them."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

BN_EPSILON = 1e-5

Images = Float[Array, "batch _ _ _"]  # height, width, channels
Padding = str | Sequence[tuple[int, int]]


def conv(
    width: int,
    size: int,
    name: str,
    *,
    stride: int = 1,
    padding: Padding | int | None = None,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv:
    """A square convolution.

    Args:
        width: Output channels.
        size: Height and width of the kernel.
        name: Name in the parameters.
        stride: Stride in both directions.
        padding: Zero pixels on every side; (size − 1)/2 by default, which differs from
            ``"SAME"`` (TensorFlow's) at stride 2.
        groups: Groups of channels that see only each other; `width` in a depthwise convolution.
        bias: Whether there is a bias.
    """
    sides = (size - 1) // 2 if padding is None else padding
    return nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding=((sides, sides),) * 2 if isinstance(sides, int) else sides,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=nn.initializers.he_normal(),
        name=name,
    )


def batch_norm(name: str, train: bool, *, epsilon: float = BN_EPSILON) -> nn.BatchNorm:
    """Batch normalisation; the statistics are frozen unless `train`."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, name=name)


class ConvNorm(nn.Module):
    """A convolution named 0, batch normalisation named 1, an activation if there is one."""

    width: int
    size: int
    stride: int = 1
    groups: int = 1
    activation: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Images:
        y = conv(self.width, self.size, "0", stride=self.stride, groups=self.groups)(x)
        y = batch_norm("1", train)(y)
        return y if self.activation is None else self.activation(y)


def max_pool(
    x: Images, size: int, stride: int, *, padding: int = 0, ceil: bool = False
) -> Images:
    """Largest of every window; with `ceil` a last window may reach beyond the image."""
    sides = []
    for length in x.shape[1:3]:
        beyond = -(length + 2 * padding - size) % stride if ceil else 0
        sides.append((padding, padding + beyond))
    return nn.max_pool(x, (size, size), (stride, stride), sides)  # type: ignore[arg-type]


def adaptive_mean(x: Images, size: int) -> Images:
    """Means over `size` by `size` windows that cover the image: as even as they can be."""
    for axis in (1, 2):
        length = x.shape[axis]
        if length == size:
            continue
        windows = [
            jnp.take(x, jnp.arange(i * length // size, -(-(i + 1) * length // size)), axis)
            for i in range(size)
        ]
        x = jnp.stack([window.mean(axis) for window in windows], axis)
    return x
