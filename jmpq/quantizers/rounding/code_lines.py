"""Codes of several schemes on the host (NumPy): least, greatest, and steps in between."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jmpq.quantizers.number_line import LINES
from jmpq.quantizers.spec import Grid
from jmpq.quantizers.uniform import code_range

Ends = Float[np.ndarray, "schemes *ones"]


class CodeLines(NamedTuple):
    """Codes of schemes along the first axis: integers, or values of a float format.

    Attributes:
        least: Least code.
        most: Greatest code.
        least_power: Power 2^e_min; for integers beyond every code.
        units: Number 2^m of codes from one power of two to the next.
    """

    least: Ends
    most: Ends
    least_power: Ends
    units: Ends

    @classmethod
    def of(cls, schemes: Sequence[int], grid: Grid) -> "CodeLines":
        """Codes of some schemes, for arrays ``[schemes, rows, columns]``.

        >>> CodeLines.of([3], "symmetric").nearest(np.array([[[1.4, 2.5]]])).tolist()
        [[[1.0, 2.0]]]
        """
        numbers = np.array(schemes)[:, None, None]
        with jax.ensure_compile_time_eval():
            ends = code_range(jnp.array(numbers), grid, float, floats=True)
        least, most = (np.asarray(x, np.float64) for x in ends)
        kind = numbers >> 6 & 63
        return cls(least, most, LINES.least_power[kind], LINES.units[kind])

    @classmethod
    def integers(cls, least: Ends, most: Ends) -> "CodeLines":
        """All integers from `least` to `most`."""
        power = np.full(np.shape(least), LINES.least_power[0])
        return cls(least, most, power, power)

    @property
    def of_column(self) -> "CodeLines":
        """The same for arrays ``[schemes, rows]``."""
        return CodeLines(*(x[..., 0] for x in self))

    def step(self, codes: Float[np.ndarray, "schemes *shape"]) -> np.ndarray:
        """Distance to the next code away from zero."""
        _, exponent = np.frexp(codes)
        return np.maximum(np.ldexp(1.0, exponent - 1), self.least_power) / self.units

    def nearest(self, ratio: Float[np.ndarray, "schemes *shape"]) -> np.ndarray:
        """Nearest code, half to even, before clipping and before adding the zero point."""
        step = self.step(ratio)
        return np.round(ratio / step) * step

    def clip(self, codes: Float[np.ndarray, "schemes *shape"]) -> np.ndarray:
        """Clip codes to the range of the scheme."""
        return np.clip(codes, self.least, self.most)
