"""Number formats, schemes (a format with its scales), and choices of two schemes.

A *format* says how one value is coded: an integer or a small float. A *scheme* is a format
with its scales, and has a name:

- ``int1`` to ``int16`` and ``fp8_e4m3``, ``fp8_e5m2``, ``fp6_e3m2``, ``fp6_e2m3``,
  ``fp4_e2m1``: one float32 scale for a tensor, channel or group, as the run's specification
  says; an integer is on the grid of that specification;
- the same with ``_g64``: one float32 scale for every 64 values along the contraction axis;
- ``mxfp8_e4m3``, ``mxfp8_e5m2``, ``mxfp6_e3m2``, ``mxfp6_e2m3``, ``mxfp4``, ``mxint8``: blocks
  of 32 under a power of two (OCP Microscaling Formats 1.0);
- ``nvfp4``: blocks of 16 under an fp8_e4m3 scale, and one float32 for the tensor;
- ``bf16``, ``f16``: no scale; ``none``: unquantized.

In arrays a scheme is its `Scheme.number`: the bit-width of a plain integer, 32 for none.
"""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Iterable
from typing import Literal

from jmpq.kinds import check_kinds
from jmpq.text import did_you_mean

FLOAT_BITS = 32
ScaleKind = Literal["float32", "e8m0", "e4m3", "none"]
_WORD = re.compile(r"[Ww]([^WwAa\s]+)(?:[Aa]([^WwAa\s]+))?")
_GROUPED = re.compile(r"(.+)_g(\d+)")
# A scheme's number has 6 bits for the bit-width, 6 for the family, the rest for the group.
_BITS, _KIND, MOST_GROUP = 6, 12, 2**40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How one value is coded, up to its scale.

    Attributes:
        bits: Bits of a code.
        exponent_bits: Bits of the exponent; 0 for integers.
        mantissa_bits: Bits m after the binary point. The spacing of values at x is
            2^(max(⌊log2 |x|⌋, e_min) − m).
        e_min: Least exponent of a normal number; below it the spacing is constant.
        largest: Greatest value; the least value is its negative. 0 for integers, whose range
            depends on the grid.

    References:
        Open Compute Project (2023), Microscaling Formats (MX) Specification 1.0, on element
        data types.
    """

    bits: int
    exponent_bits: int = 0
    mantissa_bits: int = 0
    e_min: int = 0
    largest: float = 0.0

    @property
    def e_max(self) -> int:
        """Exponent of the greatest value."""
        return math.floor(math.log2(self.largest))

    @property
    def smallest(self) -> float:
        """Least positive value."""
        return 2.0 ** (self.e_min - self.mantissa_bits)

    @property
    def significand_bits(self) -> int:
        """Bits of the signed integer that a multiplier sees: sign, leading one, mantissa."""
        return self.mantissa_bits + 2 if self.exponent_bits else self.bits


def _float(bits: int, exponent: int, mantissa: int, e_min: int, largest: float) -> Format:
    return Format(
        bits=bits, exponent_bits=exponent, mantissa_bits=mantissa, e_min=e_min, largest=largest
    )


E4M3 = _float(8, 4, 3, -6, 448.0)
E5M2 = _float(8, 5, 2, -14, 57344.0)
E3M2 = _float(6, 3, 2, -2, 28.0)
E2M3 = _float(6, 2, 3, 0, 7.5)
E2M1 = _float(4, 2, 1, 0, 6.0)
BF16 = _float(16, 8, 7, -126, 2.0**127 * (2 - 2.0**-7))
F16 = _float(16, 5, 10, -14, 65504.0)
# Eight bits, six after the binary point. The spacing is constant because e_max equals e_min.
MXINT8 = Format(bits=8, mantissa_bits=6, e_min=0, largest=127 / 64)

MX_BLOCK, NV_BLOCK = 32, 16


@dataclasses.dataclass(frozen=True)
class Family:
    """Schemes that differ only in bits (integers) and group size.

    Attributes:
        name: Name; an integer scheme appends its bits.
        format: Format of the values; for integers, without the bits.
        scale: Kind of the scales.
        block: Number of values along the contraction axis that share a scale by definition.
            None if the specification or the scheme's name gives it.
    """

    name: str
    format: Format
    scale: ScaleKind = "float32"
    block: int | None = None


# The position is part of `Scheme.number`, which files store: append new families at the end.
FAMILIES = (
    Family("int", Format(bits=0)),
    Family("fp8_e4m3", E4M3),
    Family("fp8_e5m2", E5M2),
    Family("fp6_e3m2", E3M2),
    Family("fp6_e2m3", E2M3),
    Family("fp4_e2m1", E2M1),
    Family("bf16", BF16, "none"),
    Family("f16", F16, "none"),
    Family("mxfp8_e4m3", E4M3, "e8m0", MX_BLOCK),
    Family("mxfp8_e5m2", E5M2, "e8m0", MX_BLOCK),
    Family("mxfp6_e3m2", E3M2, "e8m0", MX_BLOCK),
    Family("mxfp6_e2m3", E2M3, "e8m0", MX_BLOCK),
    Family("mxfp4", E2M1, "e8m0", MX_BLOCK),
    Family("mxint8", MXINT8, "e8m0", MX_BLOCK),
    Family("nvfp4", E2M1, "e4m3", NV_BLOCK),
)


@functools.total_ordering
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scheme:
    """A number format with its scales; ordered by bits, plain integers first.

    >>> Scheme.of(4).name, Scheme.of("int4_g64").block, Scheme.of("mxfp4").format.largest
    ('int4', 64, 6.0)
    >>> Scheme.of("nvfp4").number & 63, Scheme.of("int8").number, Scheme.of("none").number
    (4, 8, 32)

    Attributes:
        number: Code of the scheme in arrays: bits + 64·family + 4096·group.

    Raises:
        ValueError: If the number does not encode a scheme.
    """

    number: int

    def __post_init__(self) -> None:
        _check_number(self.number)

    @classmethod
    def of(cls, scheme: "SchemeLike") -> "Scheme":
        """The scheme with a name or a number.

        Raises:
            ValueError: If it does not exist; the message suggests similar names.
        """
        if isinstance(scheme, Scheme):
            return scheme
        return _named(scheme) if isinstance(scheme, str) else _numbered(operator.index(scheme))

    @property
    def bits(self) -> int:
        """Bits of a code; 32 for unquantized."""
        return self.number & 63

    @property
    def family(self) -> Family:
        """Family of the scheme."""
        return FAMILIES[self.number >> _BITS & 63]

    @property
    def format(self) -> Format:
        """Format of one value."""
        return self.family.format if self.is_float else Format(bits=self.bits)

    @property
    def is_none(self) -> bool:
        """Whether it leaves a tensor unquantized."""
        return self.number == FLOAT_BITS

    @property
    def is_float(self) -> bool:
        """Whether values are small floats (or fixed point), not codes of an integer grid."""
        return bool(self.number >> _BITS & 63)

    @property
    def is_plain(self) -> bool:
        """Whether it is an integer scaled by the specification; its number is its bits."""
        return self.number < 64

    @property
    def scale(self) -> ScaleKind:
        """Kind of the scales."""
        return "none" if self.is_none else self.family.scale

    @property
    def block(self) -> int | None:
        """Values along the contraction axis that share a scale.

        None if the specification decides.
        """
        return self.family.block or (self.number >> _KIND) or None

    @property
    def name(self) -> str:
        """Name of the scheme, which `of` reads."""
        if self.is_none:
            return "none"
        group = self.number >> _KIND
        width = "" if self.is_float else str(self.bits)
        return f"{self.family.name}{width}{f'_g{group}' if group else ''}"

    @property
    def short(self) -> str:
        """Name in a label: the bits of a plain integer (32 for none), else the name."""
        return str(self.number) if self.is_plain else self.name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Scheme({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scheme) and self.number == other.number

    def __hash__(self) -> int:
        return self.number

    def __lt__(self, other: "Scheme") -> bool:
        return (self.bits, self.number) < (other.bits, other.number)


SchemeLike = Scheme | str | int


def scheme_number(scheme: SchemeLike) -> int:
    """Number of a scheme given by name; a number is returned unchecked."""
    return Scheme.of(scheme).number if isinstance(scheme, str | Scheme) else int(scheme)


def scheme_names() -> tuple[str, ...]:
    """Names of all schemes; grouped schemes with group sizes 32, 64 and 128."""
    integers = [f"int{bits}" for bits in range(1, 17)]
    floats = [family.name for family in FAMILIES[1:]]
    free = [f.name for f in FAMILIES[1:] if f.scale == "float32"]
    grouped = [f"{name}_g{size}" for name in (*integers, *free) for size in (32, 64, 128)]
    return (*integers, *floats, "none", *grouped)


@functools.lru_cache(maxsize=4096)
def _numbered(number: int) -> Scheme:
    return Scheme(number)


@functools.lru_cache(maxsize=4096)
def _named(text: str) -> Scheme:
    name, group = text.strip(), 0
    if name in ("none", "f32"):
        return _numbered(FLOAT_BITS)
    if match := _GROUPED.fullmatch(name):
        name, group = match[1], int(match[2])
        if not 1 <= group < MOST_GROUP:
            raise ValueError(f"{text!r}: a group has at least 1 value, got {group}.")
    families = {family.name: i for i, family in enumerate(FAMILIES) if i}
    if integer := re.fullmatch(r"int(\d+)", name):
        name, bits = "int", int(integer[1])
        if not 1 <= bits <= 16:
            raise ValueError(f"{text!r}: integers have 1 to 16 bits, got {bits}.")
        return _numbered(bits + (group << _KIND))
    if name not in families:
        if name.isdigit() and not group:
            return _numbered(int(name))
        known = scheme_names()
        hint = did_you_mean(text, known, most=2) or (
            f" Expected int1 to int16, {', '.join(families)} or none; _g64 behind an integer "
            "or fp format makes groups of 64 values."
        )
        raise ValueError(f"{text!r} is not a number format.{hint}")
    family = FAMILIES[families[name]]
    if group and family.scale != "float32":
        raise ValueError(
            f"{text!r}: the scales of {name} are part of its definition. Leave out "
            f"'_g{group}', or take a format whose scales are free: 'int4_g64', 'fp8_e4m3_g128'."
        )
    return _numbered(family.format.bits + (families[name] << _BITS) + (group << _KIND))


def _check_number(number: int) -> None:
    bits, kind, group = number & 63, number >> _BITS & 63, number >> _KIND
    if number == FLOAT_BITS or (kind == 0 and 1 <= bits <= 16 and 0 <= group < MOST_GROUP):
        return
    family = FAMILIES[kind] if 0 < kind < len(FAMILIES) else None
    if family is None or family.format.bits != bits or (group and family.scale != "float32"):
        raise ValueError(
            f"{number} is not a bit-width: expected 1 to 16, or {FLOAT_BITS} for unquantized; "
            "other formats have names, such as 'mxfp4'."
        )


@dataclasses.dataclass(frozen=True, order=True, init=False, repr=False)
class Choice:
    """Candidate of one layer: a scheme for its weights and one for its input activations.

    Choices are ordered by weights, then activations. An int is a bit-width; 32 leaves the
    tensor unquantized.

    >>> Choice(4, 8).label, Choice(4).label, Choice.parse("W4A8") == Choice(4, 8)
    ('W4A8', 'W4', True)
    >>> Choice("mxfp4", "int8").label, Choice.parse("Wint4_g64Amxfp8_e4m3").w_bits
    ('Wmxfp4A8', 4)

    Raises:
        ValueError: If a scheme does not exist.
    """

    weights: Scheme
    activations: Scheme

    @check_kinds
    def __init__(self, weights: SchemeLike, activations: SchemeLike = FLOAT_BITS) -> None:
        for field, short, given in (
            ("weights", "w", weights),
            ("activations", "a", activations),
        ):
            try:
                object.__setattr__(self, field, Scheme.of(given))
            except ValueError as error:
                if isinstance(given, str):
                    raise
                raise ValueError(f"{short}_bits={error}") from error

    @property
    def w_bits(self) -> int:
        """Bits of a weight's code; 32 for unquantized."""
        return self.weights.bits

    @property
    def a_bits(self) -> int:
        """Bits of an activation's code; 32 for unquantized."""
        return self.activations.bits

    @property
    def label(self) -> str:
        """``W4A8``, ``Wmxfp4A8``; ``W4`` where activations stay unquantized."""
        inputs = "" if self.activations.is_none else f"A{self.activations.short}"
        return f"W{self.weights.short}{inputs}"

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """Read a label: ``W4A8``, ``Wmxfp4A8``, ``W4`` (activations unquantized), ``W4A32``.

        A scheme name alone, such as ``mxfp4``, quantizes weights only.

        Raises:
            ValueError: If the text is not a label.
        """
        match = _WORD.fullmatch(text.strip()) if isinstance(text, str) else None
        try:
            if match is not None:
                weights, activations = match.groups()
                return cls(weights, activations or FLOAT_BITS)
            if isinstance(text, str) and is_name(text):
                return cls(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a choice of formats: {error}") from error
        raise ValueError(
            f"{text!r} is not a choice of bits: expected weights and activations as in "
            "'W4A8' or 'Wmxfp4A8', or 'W4' for unquantized activations."
            f"{did_you_mean(str(text), scheme_names())}"
        )

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"Choice({self.label})"


UNQUANTIZED = Choice(FLOAT_BITS, FLOAT_BITS)


def is_name(text: str) -> bool:
    """Whether a text names a scheme; a number alone does not count.

    >>> is_name("mxfp4"), is_name("int4_g64"), is_name("mxfp5"), is_name("4")
    (True, True, False, False)
    """
    try:
        return not text.strip().isdigit() and bool(Scheme.of(text))
    except ValueError:
        return False


@check_kinds
def choice_grid(
    w_bits: Iterable[SchemeLike], a_bits: Iterable[SchemeLike] = (FLOAT_BITS,)
) -> tuple[Choice, ...]:
    """Every pair of a weight scheme and an activation scheme, sorted, without duplicates.

    >>> [str(choice) for choice in choice_grid([4, 2, 4], [8])]
    ['W2A8', 'W4A8']
    >>> [str(choice) for choice in choice_grid(["int4", "mxfp4"], ["none"])]
    ['W4', 'Wmxfp4']

    Raises:
        ValueError: If either list is empty or an entry is not a scheme.
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
