"""A choice of bits for one layer, and grids of them."""

import dataclasses
import re
from collections.abc import Iterable

FLOAT_BITS = 32
_LABEL = re.compile(r"[Ww](\d+)(?:[Aa](\d+))?")


@dataclasses.dataclass(frozen=True, order=True)
class Choice:
    """Bits of a layer's weights and of its input activations; 32 means unquantized.

    Ordered by weight bits, then activation bits.

    >>> Choice(4, 8).label, Choice(4).label, Choice.parse("W4A8") == Choice(4, 8)
    ('W4A8', 'W4', True)

    Raises:
        ValueError: If a bit-width is neither 1 to 16 nor 32.
    """

    w_bits: int
    a_bits: int = FLOAT_BITS

    def __post_init__(self) -> None:
        for name, bits in (("w_bits", self.w_bits), ("a_bits", self.a_bits)):
            if not (1 <= bits <= 16 or bits == FLOAT_BITS):
                raise ValueError(
                    f"{name}={bits} is no bit-width: expected 1 to 16, or 32 for unquantized."
                )

    @property
    def label(self) -> str:
        """``W4A8``; ``W4`` where activations stay unquantized."""
        return f"W{self.w_bits}" + ("" if self.a_bits == FLOAT_BITS else f"A{self.a_bits}")

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """Read a label: ``W4A8``, ``W4`` (activations unquantized) or ``W4A32``."""
        match = _LABEL.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"{text!r} is no choice of bits: expected weight and activation bits as in "
                "'W4A8', or 'W4' for unquantized activations."
            )
        w_bits, a_bits = match.groups()
        return cls(int(w_bits), int(a_bits) if a_bits else FLOAT_BITS)

    def __str__(self) -> str:
        return self.label


UNQUANTIZED = Choice(FLOAT_BITS, FLOAT_BITS)


def choice_grid(
    w_bits: Iterable[int], a_bits: Iterable[int] = (FLOAT_BITS,)
) -> tuple[Choice, ...]:
    """Every pair of weight and activation bits, sorted, each once.

    >>> [str(choice) for choice in choice_grid([4, 2, 4], [8])]
    ['W2A8', 'W4A8']

    Raises:
        ValueError: If either list is empty or holds what is no bit-width.
    """
    w_bits, a_bits = tuple(w_bits), tuple(a_bits)
    if not (w_bits and a_bits):
        raise ValueError(
            f"No candidate bits: got w_bits={list(w_bits)} and a_bits={list(a_bits)}; each "
            "needs at least one (a_bits 32 leaves activations unquantized)."
        )
    return tuple(sorted({Choice(w, a) for w in w_bits for a in a_bits}))


def labels(choices: Iterable[Choice]) -> str:
    """Choices for a message: ``W2, W4A8``."""
    return ", ".join(choice.label for choice in choices)
