"""Values of every format, traced: one rounding formula for floats and for integers.

The spacing (step) at x is 2^(max(⌊log2 |x|⌋, e_min) − m). A value is rounded to a multiple of
its step, half to even. Integers have one constant step: e_min = m, beyond all codes. The format
is data (`Scheme.number`), so one compilation serves all formats.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jmpq.formats import BF16, E2M1, E4M3, FAMILIES, Format

_STEP_ONE = 16  # e_min and m of integers: 16-bit codes minus a zero point are below 2^17
_NV_LARGEST = E4M3.largest * E2M1.largest  # greatest value of nvfp4, in float32 tensor scales
_LEAST_POWER = 2.0**BF16.e_min  # least power-of-two scale: the least normal float32


class Line(NamedTuple):
    """Magnitudes that formats represent; fields are NumPy or traced arrays that broadcast.

    Attributes:
        largest: Greatest value; 0 for integers, whose range depends on the grid.
        least_power: Power 2^e_min; below it the step is constant.
        units: Number 2^m of steps in a power of two.
        e_max: Exponent of the greatest value.
    """

    largest: Any
    least_power: Any
    units: Any
    e_max: Any

    def at(self, bits: Int[Array, "*shape"], dtype: Any) -> "Line":
        """Lines of traced schemes."""
        kind = bits >> 6 & 63
        return Line(*(jnp.asarray(x, dtype)[kind] for x in self))

    def round(self, ratio: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Nearest value, half to even, without clipping; the gradient is straight-through."""
        power = jnp.maximum(power_of_two(ratio), self.least_power)
        # Divide by the power, not the step: the step may be below the least normal float32.
        return power * (round_ste(ratio / power * self.units) / self.units)


def _line(format: Format) -> tuple[float, ...]:
    if not format.bits:  # the family of integers
        return 0.0, 2.0**_STEP_ONE, 2.0**_STEP_ONE, 0.0
    return format.largest, 2.0**format.e_min, 2.0**format.mantissa_bits, float(format.e_max)


# Indexed by the family's position, which is part of a scheme's number.
LINES = Line(*np.array([_line(family.format) for family in FAMILIES]).T)
_POWER_SCALE, _TENSOR_SCALE, _NO_SCALE = (
    np.array([family.scale == kind for family in FAMILIES]) for kind in ("e8m0", "e4m3", "none")
)


@jax.custom_jvp
def round_ste(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Round half to even; the derivative is that of the identity (straight-through)."""
    return jnp.round(x)


round_ste.defjvp(lambda primals, tangents: (round_ste(*primals), tangents[0]))


def is_float(bits: Int[Array, "*shape"]) -> Array:
    """Whether traced schemes are float formats."""
    return bits >> 6 & 63 != 0


def power_of_two(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """2^⌊log2 |x|⌋, exactly; 0 below the least normal number. The gradient is zero.

    >>> power_of_two(jnp.array([0.0, 0.75, -6.0, 8.0], jnp.float32)).tolist()
    [0.0, 0.5, 4.0, 8.0]
    """
    x = jax.lax.stop_gradient(x)
    info = jnp.finfo(x.dtype)
    whole = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[info.bits]
    exponent = jnp.array((2**info.nexp - 1) << info.nmant, whole)  # mask of the exponent bits
    word = jax.lax.bitcast_convert_type(x, whole)
    return jax.lax.bitcast_convert_type(word & exponent, x.dtype)


def scale_of_clip(
    clip: Float[Array, "*shape"], bits: Int[Array, "..."]
) -> Float[Array, "*shape"]:
    """Scale of float schemes for values of magnitude up to `clip`.

    A free scale maps `clip` to the greatest value. A power-of-two scale is
    2^(⌊log2 clip⌋ − e_max); values near `clip` may then saturate. For nvfp4 the result is the
    scale of the tensor. A zero `clip` gives scale 1.

    References:
        Open Compute Project (2023), Microscaling Formats (MX) Specification 1.0, section 6.3.
    """
    kind = bits >> 6 & 63
    line = LINES.at(bits, clip.dtype)
    tensor = clip / jnp.asarray(_NV_LARGEST, clip.dtype)
    powers = jnp.asarray((2.0**-LINES.e_max).astype(clip.dtype))
    power = jnp.maximum(power_of_two(clip) * powers[kind], _LEAST_POWER)
    free = clip / jnp.where(line.largest > 0, line.largest, 1)
    scale = jnp.where(jnp.asarray(_POWER_SCALE)[kind], power, free)
    scale = jnp.where(jnp.asarray(_TENSOR_SCALE)[kind], tensor, scale)
    usable = (clip > 0) & (scale > 0) & ~jnp.asarray(_NO_SCALE)[kind]
    return jnp.where(usable, scale, jnp.ones_like(scale))


def block_scale(
    clip: Float[Array, "*shape"], tensor: Float[Array, "..."]
) -> Float[Array, "*shape"]:
    """Scale of nvfp4 blocks: clip / 6 rounded to e4m3 units of the tensor's scale.

    A block whose scale would round to zero gets the least positive e4m3 value.
    """
    line = Line(*(np.asarray(x, clip.dtype) for x in _line(E4M3)))
    nearest = line.round(clip / jnp.asarray(E2M1.largest, clip.dtype) / tensor)
    return jax.lax.stop_gradient(jnp.clip(nearest, E4M3.smallest, E4M3.largest)) * tensor
