"""Grids: published errors, closed forms, one compilation for all bit-widths."""

import dataclasses
import json
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.quantizers.clipping import calibrate, from_blocks, to_blocks
from jmpq.quantizers.spec import InputSpec, KernelSpec, check_bits, read_spec
from jmpq.quantizers.uniform import fake_quantize, round_ste, scale_of_range
from tests.problem.tables import dense, embedding

GRIDS = ["symmetric", "half", "affine"]


def quantized(x, bits, spec):
    blocks = to_blocks(x, spec.block_shape(*x.shape, "w"))
    scale, zero = calibrate(blocks, jnp.array(bits), spec)
    rounded = fake_quantize(blocks, scale[:, None], zero[:, None], jnp.array(bits), spec.grid)
    shape = spec.block_shape(*x.shape, "w")
    return from_blocks(rounded, shape, *x.shape), scale, zero


def values(seed, shape=(6, 40)):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_minmax_error_is_at_most_half_a_step_and_codes_are_few(grid, bits, granularity):
    x = values(bits)
    spec = KernelSpec(grid=grid, granularity=granularity, clipping="minmax")
    got, scale, _ = quantized(x, bits, spec)
    steps = np.broadcast_to(np.asarray(scale)[:, None], (len(scale), x.size // len(scale)))
    assert np.all(np.abs(got - x) <= 0.5 * steps.reshape(x.shape) * (1 + 1e-9))
    for row, block in zip(scale, np.asarray(got).reshape(len(scale), -1), strict=True):
        assert len(np.unique(np.round(block / row))) <= 2**bits


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_idempotent_and_zero_stays_zero(grid, bits):
    x = values(1).at[:, 0].set(0.0)
    blocks = x
    scale, zero = calibrate(blocks, jnp.array(bits), KernelSpec(grid=grid))
    once = fake_quantize(blocks, scale[:, None], zero[:, None], jnp.array(bits), grid)
    twice = fake_quantize(once, scale[:, None], zero[:, None], jnp.array(bits), grid)
    np.testing.assert_array_equal(once, twice)
    assert np.all(once[:, 0] == 0.0)


def test_scales_by_hand():
    low, high, bits = jnp.array([-1.0]), jnp.array([3.0]), jnp.array(2)
    for grid, want in [("symmetric", 3.0), ("half", 2.0), ("affine", 4 / 3)]:
        scale, zero = scale_of_range(low, high, bits, grid)
        np.testing.assert_allclose(scale, want)
        assert float(zero[0]) == (1.0 if grid == "affine" else 0.0)
    x = jnp.array([[-1.0, 0.4, 1.9, 3.0]])
    for grid, want in [
        ("symmetric", [0.0, 0.0, 3.0, 3.0]),
        ("half", [0.0, 0.0, 2.0, 2.0]),
        ("affine", [-4 / 3, 0.0, 4 / 3, 8 / 3]),
    ]:
        scale, zero = scale_of_range(low, high, bits, grid)
        np.testing.assert_allclose(
            fake_quantize(x, scale[:, None], zero[:, None], bits, grid), [want]
        )


def test_grid_matters_as_published():
    """2 bits on normal weights: 0.62 with 2^(b−1) − 1, 0.32 with 2^(b−1) − 0.5, min-max."""
    x = jax.random.normal(jax.random.key(0), (2000, 170), jnp.float64)
    errors = {}
    for grid in ("symmetric", "half"):
        spec = KernelSpec(grid=grid, granularity="channel", clipping="minmax")
        errors[grid] = float(jnp.square(quantized(x, 2, spec)[0] - x).mean())
    assert errors["symmetric"] == pytest.approx(0.62, abs=0.02)
    assert errors["half"] == pytest.approx(0.32, abs=0.02)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 4])
def test_mse_clipping_is_the_best_of_its_multiples(grid, bits):
    x = values(3, (1, 300))
    spec = KernelSpec(grid=grid)
    error = float(jnp.square(quantized(x, bits, spec)[0] - x).mean())
    tried = []
    for i in range(5, 101):
        ends = (i / 100 * x.min(axis=1), i / 100 * x.max(axis=1))
        scale, zero = scale_of_range(*ends, jnp.array(bits), grid)
        got = fake_quantize(x, scale[:, None], zero[:, None], jnp.array(bits), grid)
        tried.append(float(jnp.square(got - x).mean()))
    assert error == pytest.approx(min(tried), rel=1e-12)
    assert error < tried[-1]


def test_percentile_clipping_is_numpys_quantile():
    x = values(4, (2, 500))
    for grid, tail in (("symmetric", 0.01), ("affine", 0.01)):
        spec = KernelSpec(grid=grid, clipping="percentile", percentile=99.0)
        _, scale, _ = quantized(x, 4, spec)
        if grid == "symmetric":
            want = np.quantile(np.abs(x), 1 - tail, axis=1) / 7
        else:
            want = np.ptp(np.quantile(x, [tail, 1 - tail], axis=1), axis=0) / 15
        np.testing.assert_allclose(scale, want)


@pytest.mark.parametrize("grid", ["symmetric", "affine"])
def test_of_sparse_values_percentile_clipping_keeps_the_range(grid):
    x = jnp.zeros((1, 5000), jnp.float64).at[0, 7].set(0.3)
    spec = KernelSpec(grid=grid, granularity="tensor", clipping="percentile")
    plain = dataclasses.replace(spec, clipping="minmax")
    np.testing.assert_array_equal(quantized(x, 8, spec)[0], quantized(x, 8, plain)[0])
    assert quantized(x, 8, spec)[0][0, 7] == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"granularity": "group", "group_size": 10}, (1, 10)),
        ({"granularity": "group", "group_count": 4}, (1, 10)),
        ({"granularity": "group", "group_size": 3, "along": "output"}, (3, 40)),
        ({"granularity": "group", "group_count": 3, "along": "output"}, (2, 40)),
        ({"granularity": "group", "group_count": 4, "along": "columns"}, (6, 10)),
        ({"granularity": "group", "group_size": 8, "along": "columns"}, (6, 8)),
        ({"granularity": "channel"}, (1, 40)),
        ({"granularity": "tensor"}, (6, 40)),
    ],
)
def test_blocks_share_one_scale(options, blocks):
    spec = KernelSpec(**options)
    x = values(5)
    assert spec.block_shape(*x.shape, "w") == blocks
    tiles = to_blocks(x, blocks)
    np.testing.assert_array_equal(tiles[0], x[: blocks[0], : blocks[1]].ravel())
    np.testing.assert_array_equal(from_blocks(tiles, blocks, *x.shape), x)


def test_groups_of_an_embedding_are_of_its_columns():
    words = embedding("words", 30522, 384)
    for along, want in (("output", (30522, 32)), ("columns", (30522, 32)), ("input", (1, 32))):
        spec = KernelSpec(granularity="group", group_count=12, along=along)
        assert spec.layer_blocks(words) == want
        assert spec.layer_scales(words) == (12 if along != "input" else 12 * 30522)
    assert KernelSpec().layer_blocks(words) == (1, 384)


def test_as_many_groups_as_heads_give_every_head_its_scale():
    query = dense("query", 8, 6)  # two heads of three features
    x = values(5)[:, :8] * jnp.repeat(jnp.array([1.0, 9.0]), 3)[:, None]
    spec = KernelSpec(granularity="group", group_count=2, along="output", clipping="minmax")
    blocks = to_blocks(x, spec.layer_blocks(query))
    scale, _ = calibrate(blocks, jnp.array(4), spec)
    want = [np.abs(x[:3]).max() / 7, np.abs(x[3:]).max() / 7]
    np.testing.assert_allclose(scale, want)


def test_finer_blocks_err_less():
    x = values(6) * jnp.exp(values(7))
    errors = [
        float(jnp.square(quantized(x, 3, KernelSpec(**o))[0] - x).mean())
        for o in (
            {"granularity": "tensor"},
            {"granularity": "channel"},
            {"granularity": "group", "group_size": 8},
        )
    ]
    assert errors == sorted(errors, reverse=True)


def test_gradient_is_straight_through_inside_and_zero_outside():
    one, bits = jnp.ones((1,)), jnp.array(3)
    gradient = jax.grad(lambda x: fake_quantize(x, one, 0 * one, bits, "symmetric").sum())
    np.testing.assert_array_equal(gradient(jnp.array([0.4, 2.2, 7.0, -9.0])), [1, 1, 0, 0])
    assert float(round_ste(jnp.array(2.5))) == 2.0  # half to even


def test_fifty_bit_changes_compile_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(x, bits):
        scale, zero = calibrate(x, bits, KernelSpec())
        return fake_quantize(x, scale[:, None], zero[:, None], bits, "symmetric")

    x = values(8)
    found = [np.asarray(run(x, jnp.array(2 + i % 15))) for i in range(50)]
    assert len({f.tobytes() for f in found[:15]}) == 15
    np.testing.assert_array_equal(run(x, jnp.array(32)), x)


def test_all_zero_block():
    got, _, _ = quantized(jnp.zeros((2, 4)), 4, KernelSpec(grid="affine"))
    np.testing.assert_array_equal(got, 0.0)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="'group' takes exactly one"):
        KernelSpec(granularity="group")
    with pytest.raises(ValueError, match="'group' takes exactly one"):
        KernelSpec(granularity="channel", group_size=4)
    with pytest.raises(ValueError, match=r"percentile=40"):
        KernelSpec(clipping="percentile", percentile=40.0)
    with pytest.raises(ValueError, match="'conv1': groups of 7 do not divide its 40 input"):
        KernelSpec(granularity="group", group_size=7).block_shape(6, 40, "conv1")
    many = KernelSpec(granularity="group", group_count=768, along="columns")
    with pytest.raises(ValueError, match="'query': 768 groups do not divide its 384 input"):
        many.block_shape(384, 384, "query")
    with pytest.raises(ValueError, match="'words': 768 groups do not divide its 384 embedded"):
        many.layer_blocks(embedding("words", 30522, 384))
    with pytest.raises(ValueError, match="1 bits on the 'symmetric' grid: expected 2 to 16"):
        check_bits(KernelSpec(), 1)
    check_bits(KernelSpec(grid="affine"), 1)
    check_bits(KernelSpec(), 32)


def test_kernels_and_inputs_have_the_options_that_mean_something_for_them():
    kernels, inputs = ({f.name for f in dataclasses.fields(s)} for s in (KernelSpec, InputSpec))
    assert kernels - inputs == {"along", "rounding"}
    assert inputs - kernels == {"decay", "placement", "int32_biases"}
    clippings = [
        set(typing.get_args(s.__annotations__["clipping"])) for s in (KernelSpec, InputSpec)
    ]
    assert clippings[1] - clippings[0] == {"ema"}


@pytest.mark.parametrize(
    "spec", [KernelSpec(rounding="gptq"), InputSpec(clipping="ema", decay=0.5)]
)
def test_a_specification_is_rebuilt_from_its_fields(spec):
    record = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert read_spec(type(spec), record) == spec
    with pytest.raises(ValueError, match=r"do not fit this version.*'colour'.*again"):
        read_spec(type(spec), {**record, "colour": "red"})


def test_features_of_an_input_that_share_a_scale():
    assert InputSpec().block_features(12, "x") == 12
    assert InputSpec(granularity="channel").block_features(12, "x") == 1
    assert InputSpec(granularity="group", group_count=4).block_features(12, "x") == 3
    with pytest.raises(ValueError, match="'x': groups of 5 do not divide its 12 input"):
        InputSpec(granularity="group", group_size=5).block_features(12, "x")
