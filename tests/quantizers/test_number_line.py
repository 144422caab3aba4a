"""Number lines: ml_dtypes' casts, the OCP and NVFP4 definitions, one compilation for all."""

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jmpq.formats import FAMILIES, Scheme
from jmpq.quantizers.number_line import block_scale, power_of_two, scale_of_clip
from jmpq.quantizers.uniform import fake_quantize

DTYPES = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
}


def on_line(x, name, scale=1.0):
    number = jnp.array(Scheme.of(name).number)
    return np.asarray(
        fake_quantize(
            jnp.asarray(x), jnp.asarray(scale, x.dtype), jnp.zeros((), x.dtype), number,
            "symmetric", floats=True,
        )
    )  # fmt: skip


def representable(name):
    """All finite values of a format, from its codes."""
    bits = Scheme.of(name).bits
    codes = np.arange(2**bits, dtype=np.uint16 if bits == 16 else np.uint8)
    with np.errstate(invalid="ignore"):  # NaN among the codes
        values = codes.view(DTYPES[name]).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("name", DTYPES)
def test_every_representable_value_is_itself_and_midpoints_round_as_the_cast(name):
    values = representable(name)
    np.testing.assert_array_equal(on_line(values, name), values)
    ends = values[[0, -1]]
    assert ends.tolist() == [-Scheme.of(name).format.largest, Scheme.of(name).format.largest]
    between = (values[1:] + values[:-1]) / 2  # ties, half to even
    np.testing.assert_array_equal(
        on_line(between, name), between.astype(DTYPES[name]).astype(np.float64)
    )


@pytest.mark.parametrize("name", DTYPES)
def test_a_million_random_values_round_as_the_cast(name):
    rng, line = np.random.default_rng(0), Scheme.of(name).format
    sign = rng.choice([-1, 1], 1_000_000)
    power = rng.uniform(line.e_min - 3, line.e_max + 2, 1_000_000)
    x = (sign * np.exp2(np.clip(power, -126, 127.99))).astype(np.float32)
    kept = np.clip(x, -line.largest, line.largest).astype(np.float32)  # casts overflow
    want = kept.astype(DTYPES[name]).astype(np.float32)
    if name == "bf16":  # below the least normal float32 XLA computes zero
        want = np.where(np.abs(want) < 2.0**-126, 0, want)
    np.testing.assert_array_equal(on_line(x, name), want)


def test_integers_are_the_case_of_one_constant_step():
    x = np.random.default_rng(1).normal(size=4000) * 9
    for bits in (2, 3, 4, 8, 16):
        args = jnp.asarray(x), jnp.array(0.7), jnp.array(0.0), jnp.array(bits), "half"
        np.testing.assert_array_equal(fake_quantize(*args, floats=True), fake_quantize(*args))


def test_scale_of_powers_of_two_is_that_of_the_microscaling_specification():
    clip = np.abs(np.random.default_rng(2).normal(size=5000)) * np.exp2(
        np.arange(5000) % 60 - 30
    )
    for family in FAMILIES:
        if family.scale == "e8m0":
            number = jnp.array(Scheme.of(family.name).number)
            want = np.exp2(np.floor(np.log2(clip)) - np.floor(np.log2(family.format.largest)))
            np.testing.assert_array_equal(scale_of_clip(jnp.asarray(clip), number), want)
            cast = want.astype(ml_dtypes.float8_e8m0fnu).astype(np.float64)
            np.testing.assert_array_equal(cast, want)
    exact = np.exp2(np.arange(-126.0, 128.0)).astype(np.float32)
    np.testing.assert_array_equal(power_of_two(jnp.asarray(exact)), exact)


def test_scale_of_nvfp4_blocks_is_an_e4m3_under_the_scale_of_the_tensor():
    clip = np.abs(np.random.default_rng(3).normal(size=5000)).astype(np.float32)
    tensor = np.float32(clip.max() / (448 * 6))
    number = jnp.array(Scheme.of("nvfp4").number)
    assert scale_of_clip(jnp.asarray(clip.max()), number) == tensor
    got = np.asarray(block_scale(jnp.asarray(clip), jnp.asarray(tensor)))
    codes = (clip / np.float32(6) / tensor).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    least = np.float32(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).smallest_subnormal)
    np.testing.assert_array_equal(got, np.maximum(codes, least) * tensor)


def test_one_compilation_serves_all_formats():
    @jax.jit
    @chex.assert_max_traces(1)
    def rounded(x, number):
        one, zero = jnp.ones((), x.dtype), jnp.zeros((), x.dtype)
        return fake_quantize(x, one, zero, number, "symmetric", floats=True)

    x = jnp.linspace(-9, 9, 301)
    for name in ("int3", "int8", *DTYPES):
        few = len(np.unique(rounded(x, jnp.array(Scheme.of(name).number))))
        assert few <= 2 ** Scheme.of(name).bits
    np.testing.assert_array_equal(rounded(x, jnp.array(32)), x)


def test_gradient_is_straight_through_inside_and_zero_outside():
    number = jnp.array(Scheme.of("fp4_e2m1").number)

    def value(x, scale):
        return fake_quantize(x, scale, jnp.zeros(()), number, "symmetric", floats=True)

    x = jnp.array([0.3, 5.1, 13.0, -13.0, 12.0])  # scale 2: the ends are -12 and 12
    slopes, by_scale = jax.vmap(jax.grad(value, (0, 1)), (0, None))(x, jnp.array(2.0))
    assert slopes.tolist() == [1, 1, 0, 0, 1]
    rounded = np.asarray(x / 2).astype(DTYPES["fp4_e2m1"]).astype(np.float64)
    np.testing.assert_allclose(by_scale, [*(rounded - x / 2)[:2], 6, -6, 0], atol=1e-15)
