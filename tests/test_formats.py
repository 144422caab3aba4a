"""Names of formats and schemes: read, written, ordered, refused with what was meant."""

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest

from jmpq.formats import (
    FAMILIES,
    UNQUANTIZED,
    Choice,
    Scheme,
    choice_grid,
    scheme_names,
)

TYPES = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
}


@pytest.mark.parametrize("name", scheme_names())
def test_names_and_numbers_give_the_scheme_back(name):
    scheme = Scheme.of(name)
    assert scheme.name == name
    assert Scheme.of(scheme.number) is scheme
    assert Scheme(scheme.number) == scheme
    for choice in (Choice(name), Choice("int4", name), Choice(name, name)):
        assert Choice.parse(choice.label) == choice
    assert Choice.parse(name) == Choice(name)


def test_numbers_of_plain_integers_are_their_bits_and_no_two_schemes_share_one():
    assert [Scheme.of(f"int{b}").number for b in range(1, 17)] == list(range(1, 17))
    assert Scheme.of("none").number == 32
    numbers = [Scheme.of(name).number for name in scheme_names()]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("name", TYPES)
def test_formats_are_those_of_ml_dtypes(name):
    line, info = Scheme.of(name).format, ml_dtypes.finfo(TYPES[name])
    assert line.bits == info.bits
    assert line.mantissa_bits == info.nmant
    assert line.exponent_bits == info.nexp
    assert line.largest == float(info.max)
    assert 2.0**line.e_min == float(info.smallest_normal)
    assert line.smallest == float(info.smallest_subnormal)


def test_labels_are_short_for_integers_and_names_for_others():
    assert Choice(4, 8).label == "W4A8"
    assert Choice("int4", "none").label == "W4"
    assert Choice("int4_g64", "int8").label == "Wint4_g64A8"
    assert Choice(4, "mxfp8_e4m3").label == "W4Amxfp8_e4m3"
    assert Choice("mxfp4").label == "Wmxfp4"
    assert Choice.parse("Wint4Aint8") == Choice(4, 8)
    assert Choice.parse("nvfp4") == Choice("nvfp4")
    assert Choice("none", "f32") == UNQUANTIZED


def test_choices_are_ordered_by_bits():
    grid = choice_grid(["bf16", "nvfp4", 8, "int4", "mxfp4", "none", 3, "int4_g64"])
    assert [c.weights.name for c in grid] == [
        "int3", "int4", "mxfp4", "nvfp4", "int4_g64", "int8", "bf16", "none"
    ]  # fmt: skip
    assert [c.w_bits for c in grid] == [3, 4, 4, 4, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mxfp5", r"'mxfp5' is not a number format. Did you mean 'mxfp"),
        ("fp8e4m3", r"Did you mean 'fp8_e4m3'"),
        ("e4m3", r"Did you mean .*e4m3"),
        ("zzz", r"Expected int1 to int16, fp8_e4m3, .*nvfp4 or none; _g64 behind an integer"),
        ("int17", "'int17': integers have 1 to 16 bits, got 17"),
        ("int4_g0", "'int4_g0': a group has at least 1 value, got 0"),
        ("mxfp4_g64", "the scales of mxfp4 are part of its definition. Leave out '_g64'"),
        ("bf16_g64", "the scales of bf16 are part of its definition"),
    ],
)
def test_unknown_names_are_refused_with_what_was_meant(name, message):
    with pytest.raises(ValueError, match=message):
        Scheme.of(name)
    with pytest.raises(ValueError, match=message):
        choice_grid([name])
    with pytest.raises(ValueError, match=f"not a choice of formats: .*{message[:12]}"):
        Choice.parse(f"W{name}")


@hypothesis.given(st.integers(0, 2**20))
def test_a_number_is_a_scheme_or_is_refused(number):
    bits, kind, group = number & 63, number >> 6 & 63, number >> 12
    known = number == 32 or (kind == 0 and 1 <= bits <= 16)
    if 0 < kind < len(FAMILIES):
        family = FAMILIES[kind]
        known = family.format.bits == bits and (not group or family.scale == "float32")
    if not known:
        with pytest.raises(ValueError, match="is not a bit-width: expected 1 to 16, or 32"):
            Scheme(number)
        return
    assert Scheme.of(Scheme(number).name).number == number
