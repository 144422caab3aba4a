"""Calibrate the quantizers of a network: all at once, or kernels, inputs, stream alone."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.data.batches import check_finite
from jmpq.formats import FLOAT_BITS, Scheme, SchemeLike, scheme_number
from jmpq.kinds import check_kinds
from jmpq.network.network import Network
from jmpq.network.precision import widened
from jmpq.network.sites import Site
from jmpq.quantizers.clipping import calibrate_schemes
from jmpq.quantizers.rounding.codes import hessian_codes
from jmpq.quantizers.scales import Quantizers, Scales, input_tiles, kernel_tiles
from jmpq.quantizers.spec import InputSpec, KernelSpec, Spec, TensorSpec, check_bits
from jmpq.quantizers.stream import Point, points_of, run_on_stream, stream_number, stream_spec
from jmpq.quantizers.tiling import Tiling

# Values per site that activation clipping sees, and least positions per feature.
SAMPLED_VALUES, SAMPLED_POSITIONS = 65_536, 1_024


@check_kinds
def calibrate_quantizers(
    network: Network,
    w_bits: Iterable[SchemeLike],
    a_bits: Iterable[SchemeLike] = (FLOAT_BITS,),
    batches: Sequence[PyTree] = (),
    *,
    weights: KernelSpec = KernelSpec(),
    activations: InputSpec = InputSpec(),
    seed: int = 0,
    partial: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quantizers:
    """Calibrate the quantizers of every layer's kernel and input for several schemes.

    Args:
        network: Float network.
        w_bits: Weight bit-widths, or names of other schemes; 32 (unquantized) is allowed and
            needs no calibration.
        a_bits: Activation bit-widths or names; by default activations stay unquantized.
        batches: Calibration inputs, batch by batch. Needed for activations, and for weights
            unless `weights.rounding` is ``nearest``.
        weights: Grid, clipping and rounding of kernels.
        activations: Grid, clipping and placement of activations.
        seed: Seed of the sample of activations.
        partial: Journal of rounded layers, as in `calibrate_weights`.
        progress: Callback ``(layers rounded, layers)``.

    Raises:
        ValueError: If inputs are needed and missing, or for the reasons of
            `calibrate_weights` and `calibrate_activations`.
    """
    check_inputs(network, batches)
    a_bits = tuple(scheme_number(b) for b in a_bits)
    scales = stream = None
    if set(a_bits) - {FLOAT_BITS}:
        if not batches:
            raise ValueError(
                f"Activations of {sorted(set(a_bits) - {FLOAT_BITS})} bits need calibration "
                "inputs: pass them as `batches`, or leave activations unquantized."
            )
        key = jax.random.key(seed)
        scales = calibrate_activations(network, activations, a_bits, batches, key=key)
        if activations.placement == "stream":
            stream = calibrate_stream(network, activations, a_bits, batches, key=key)
    kernels = calibrate_weights(
        network, weights, w_bits, batches, partial=partial, progress=progress
    )
    return Quantizers(weights=kernels, activations=scales, stream=stream)


@check_kinds
def calibrate_weights(
    network: Network,
    spec: KernelSpec,
    bits: Iterable[SchemeLike],
    batches: Sequence[PyTree] = (),
    *,
    partial: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scales[KernelSpec]:
    """Calibrate the scales of every kernel, and its codes unless rounding is to nearest.

    Args:
        network: Float network.
        spec: Grid, clipping and rounding of kernels.
        bits: Bit-widths, or names of other schemes, to calibrate.
        batches: Calibration inputs, batch by batch, without padding; needed unless
            `spec.rounding` is ``nearest``.
        partial: Journal of the codes of finished layers; an interrupted call resumes from it.
        progress: Callback ``(layers rounded, layers)``, for rounding that needs inputs.

    Raises:
        ValueError: If a bit-width does not exist on the grid, groups do not divide a layer,
            or calibration inputs are needed and missing.
    """
    widths = _bit_widths(bits, spec)
    check_inputs(network, batches)
    if spec.rounding != "nearest" and not batches:
        raise ValueError(
            f"rounding={spec.rounding!r} looks at the layers' inputs: pass calibration inputs "
            "as `batches`, or round to 'nearest'."
        )

    tiles = kernel_tiles(network.layers, spec, widths)

    @jax.jit
    def matrices(kernels: list[Array]) -> list[Array]:
        return [network.to_matrix(i, kernel) for i, kernel in enumerate(kernels)]

    scales = _scales(spec, widths, matrices(network.kernels()), tiles)
    if spec.rounding == "nearest" or not widths:
        return scales
    codes = hessian_codes(
        network, spec, widths, tiles, scales.scale, scales.zero_point, batches,
        partial=partial, progress=progress,
    )  # fmt: skip
    return dataclasses.replace(scales, codes=codes)


def check_inputs(network: Network, batches: Any) -> None:
    """Check that `batches` is a sequence of batches of the network's inputs.

    Only the first batch of a list or tuple is checked; a lazy sequence is not read.

    Raises:
        ValueError: If it is a single array, or a batch does not fit the network.
    """
    if (shape := getattr(batches, "shape", None)) is not None:
        raise ValueError(
            f"`batches` is one array of shape {tuple(shape)}: pass a list of batches of "
            "inputs, as [inputs]."
        )
    if isinstance(batches, list | tuple) and batches:
        network.output_shape(batches[0], "the first of the calibration inputs")


@check_kinds
def calibrate_activations(
    network: Network,
    spec: InputSpec,
    bits: Iterable[SchemeLike],
    batches: Sequence[PyTree],
    *,
    key: Array,
) -> Scales[InputSpec]:
    """Calibrate the scales of every site's input.

    Percentiles and squared errors are taken over a random sample: about `SAMPLED_VALUES`
    values per site, at least `SAMPLED_POSITIONS` per feature. The sample always contains the
    exact minimum and maximum, so min-max clipping is exact. The moving average of ``ema``
    starts at the values of the first batch.

    Args:
        network: Float network.
        spec: Grid and clipping of inputs.
        bits: Bit-widths, or names of other schemes, to calibrate.
        batches: Calibration inputs, batch by batch.
        key: Random key of the sampled positions.

    Raises:
        ValueError: If a bit-width does not exist on the grid, or groups do not divide the
            features of an input.
    """
    check_inputs(network, batches)
    widths = _bit_widths(bits, spec)
    sites = [site for site in network.sites if site.has_input]

    def tensors(inputs: PyTree) -> list[Array]:
        _, recorded = network.record(inputs)
        return [_features_first(site, widened(recorded[site.index])) for site in sites]

    tiles = input_tiles(network.sites, spec, widths)
    sampled = {
        site.index: (_features_per_block(site, spec), tiles[site.index]) for site in sites
    }
    scales = _of_samples(tensors, sampled, spec, widths, batches, key)
    empty = jnp.zeros((len(scales.bits), 0), scales.scale[0].dtype)
    scale, zero_point = [empty] * len(network.sites), [empty] * len(network.sites)
    for n, site in enumerate(sites):
        scale[site.index], zero_point[site.index] = scales.scale[n], scales.zero_point[n]
    return dataclasses.replace(
        scales,
        scale=tuple(scale),
        zero_point=tuple(zero_point),
        tiles=tiles if scales.tiles else (),
    )


def _features_per_block(site: Site, spec: InputSpec) -> int:
    return spec.block_features(site.features, site.layer.name)


def _features_first(site: Site, x: Array) -> Float[Array, "features positions"]:
    rest = [a for a in range(x.ndim) if a not in site.feature_axes]
    features = math.prod(x.shape[a] for a in site.feature_axes)
    return x.transpose([*site.feature_axes, *rest]).reshape(features, -1)


def calibrate_stream(
    network: Network,
    spec: InputSpec,
    bits: Iterable[SchemeLike],
    batches: Sequence[PyTree],
    *,
    key: Array,
) -> Scales[InputSpec] | None:
    """Calibrate the scale of every point of the stream, one per tensor.

    Args:
        network: Float network.
        spec: Grid and clipping of inputs.
        bits: Bits of the layers' inputs; points have at least 8 (`stream_number`).
        batches: Calibration inputs, batch by batch.
        key: Random key of the sampled values, as in `calibrate_activations`.

    Returns:
        Scales of the points; None if the network has none or nothing is quantized.

    Raises:
        ValueError: If a bit-width does not exist on the grid.
    """
    points = points_of(network)
    spec = stream_spec(spec)
    widths = _bit_widths({stream_number(scheme_number(b)) for b in bits}, spec)
    if not points or not widths:
        return None

    def tensors(inputs: PyTree) -> list[Array]:
        recorded: list[Array] = []

        def keep(point: Point, x: Array) -> Array:
            recorded.append(widened(x).reshape(1, -1))
            return x

        run_on_stream(network, inputs, lambda site, x, op: op(x), keep)
        return recorded

    tiling = Tiling.of(1, 1, [(1, 1)] * len(widths))
    sampled = {len(network.sites) + point.index: (1, tiling) for point in points}
    return _of_samples(tensors, sampled, spec, widths, batches, key)


def _of_samples(
    tensors: Callable[[PyTree], list[Array]],
    sampled: Mapping[int, tuple[int, Tiling]],
    spec: InputSpec,
    widths: tuple[int, ...],
    batches: Sequence[PyTree],
    key: Array,
) -> Scales[InputSpec]:
    """Scales of tensors ``[features, positions]``, from samples of their values.

    Args:
        tensors: Function from a batch to its tensors.
        sampled: Per tensor, the number of features that share a scale by the specification,
            and the blocks of every scheme. The key of an entry seeds its random sample.
        spec: Grid and clipping of the tensors.
        widths: Numbers of the schemes to calibrate.
        batches: Calibration inputs, batch by batch.
        key: Random key of the sampled positions.
    """

    @jax.jit
    def sample(inputs: PyTree, key: Array) -> list[tuple[Array, Array]]:
        out = []
        for number, matrix in zip(sampled, tensors(inputs), strict=True):
            features, positions = matrix.shape
            count = max(SAMPLED_POSITIONS, SAMPLED_VALUES // features) // len(batches) + 1
            at = jax.random.randint(jax.random.fold_in(key, number), (count,), 0, positions)
            extremes = jnp.stack([matrix.min(axis=1), matrix.max(axis=1)], axis=1)
            out.append((matrix[:, at], extremes))
        return out

    samples = []
    for n, inputs in enumerate(batches):
        check_finite(inputs, "the calibration inputs")
        samples.append(sample(inputs, jax.random.fold_in(key, n)))
    matrices = []
    rows, tiles = zip(*sampled.values(), strict=True)
    for count, parts in zip(rows, zip(*samples, strict=True), strict=True):
        if spec.clipping == "ema":
            matrices.append(_moving_ends(count, spec, [e for _, e in parts]))
            continue
        extremes = jnp.concatenate([e for _, e in parts], axis=1)
        ends = jnp.stack([extremes.min(axis=1), extremes.max(axis=1)], axis=1)
        matrices.append(jnp.concatenate([*(values for values, _ in parts), ends], axis=1))

    return _scales(spec, widths, matrices, tiles)


def _moving_ends(
    rows: int, spec: InputSpec, extremes: Sequence[Float[Array, "_ 2"]]
) -> Float[Array, "features 2"]:
    """Moving averages, over the batches, of each block's minimum and maximum."""
    blocks = [ends.reshape(-1, rows, 2) for ends in extremes]
    ranges = [jnp.stack([b[..., 0].min(axis=1), b[..., 1].max(axis=1)], axis=1) for b in blocks]
    average = functools.reduce(lambda a, x: spec.decay * a + (1 - spec.decay) * x, ranges)
    return jnp.repeat(average, rows, axis=0)


def _scales(
    spec: Spec, widths: tuple[int, ...], matrices: list[Array], tiles: Sequence[Tiling]
) -> Scales[Spec]:
    """Scales of matrices: kernels, or sampled inputs with features along rows."""
    if not widths:  # everything stays unquantized
        none = tuple(jnp.zeros((0, 0), x.dtype) for x in matrices)
        return Scales(spec=spec, bits=(), scale=none, zero_point=none)
    pairs = [
        calibrate_schemes(x, spec, widths, tiling)
        for x, tiling in zip(matrices, tiles, strict=True)
    ]
    scale, zero_point = zip(*pairs, strict=True)
    kept = () if all(Scheme.of(b).is_plain for b in widths) else tuple(tiles)
    return Scales(spec=spec, bits=widths, scale=scale, zero_point=zero_point, tiles=kept)


def _bit_widths(bits: Iterable[SchemeLike], spec: TensorSpec) -> tuple[int, ...]:
    widths = tuple(sorted({scheme_number(b) for b in bits} - {FLOAT_BITS}))
    for b in widths:
        check_bits(spec, b)
    return widths
