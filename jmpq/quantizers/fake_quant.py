"""A network under any allocation of bits, in one compiled program."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jmpq.data.batches import check_finite
from jmpq.files import json_sha256
from jmpq.formats import FLOAT_BITS
from jmpq.network.network import Network
from jmpq.network.precision import widened
from jmpq.network.sites import Op, Site
from jmpq.quantizers.calibration import calibrate, from_blocks, to_blocks
from jmpq.quantizers.rounding import hessian_codes
from jmpq.quantizers.spec import (
    InputSpec,
    KernelSpec,
    Spec,
    TensorSpec,
    check_bits,
    read_spec,
)
from jmpq.quantizers.uniform import centred_codes, fake_quantize
from jmpq.text import plural, printed

# Values per site that activation clipping sees, and least positions per feature.
SAMPLED_VALUES, SAMPLED_POSITIONS = 65_536, 1_024


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scale", "zero_point", "codes"],
    meta_fields=["spec", "bits"],
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scales(Generic[Spec]):
    """Scales of several tensors at several bit-widths.

    Attributes:
        spec: Grid, granularity, clipping; of kernels or of inputs.
        bits: Bit-widths, ascending, without 32.
        scale: Per tensor, ``[bits, blocks]``; JAX puts placeholders there while it lowers.
        zero_point: Per tensor, ``[bits, blocks]``; zeros where the grid has none.
        codes: Per tensor, ``[bits, blocks, elements]``, integers, where the specification
            rounds otherwise than to nearest: these kernels and no others are quantized.
            Empty where values are rounded to nearest as they come.
    """

    spec: Spec
    bits: tuple[int, ...]
    scale: tuple[Any, ...]
    zero_point: tuple[Any, ...]
    codes: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return (
            f"scales of {plural(len(self.scale), 'tensor')} at {list(self.bits)} bits "
            f"({self.spec.grid}, {self.spec.granularity}, {self.spec.clipping})"
        )

    def quantize(
        self, tensor: int, blocks: Float[Array, "blocks elements"], bits: Int[Array, ""]
    ) -> Float[Array, "blocks elements"]:
        """A tensor, one row per block, on its grid at traced `bits`; 32 leaves it."""
        scale, zero_point = (x[:, None] for x in self.at(tensor, bits))
        if not self.codes:
            return fake_quantize(blocks, scale, zero_point, bits, self.spec.grid)
        codes = self.codes[tensor][self._index(bits)].astype(blocks.dtype)
        return jnp.where(bits == FLOAT_BITS, blocks, scale * (codes - zero_point))

    def centred_codes(
        self, tensor: int, blocks: Float[Array, "blocks elements"], bits: Int[Array, ""]
    ) -> Float[Array, "blocks elements"]:
        """Integer codes of a tensor less its zero points, as in `quantize` (any for 32)."""
        scale, zero_point = (x[:, None] for x in self.at(tensor, bits))
        if not self.codes:
            return centred_codes(blocks, scale, zero_point, bits, self.spec.grid)
        return self.codes[tensor][self._index(bits)].astype(zero_point.dtype) - zero_point

    def at(self, tensor: int, bits: Int[Array, ""]) -> tuple[Array, Array]:
        """Scale and zero point of a tensor at traced `bits` (any of them for 32)."""
        index = self._index(bits)
        return self.scale[tensor][index], self.zero_point[tensor][index]

    def _index(self, bits: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.argmax(jnp.array(self.bits) == bits)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weights", "activations"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Quantizers:
    """Calibrated quantizers of a network: weights by layer, activations by site."""

    weights: Scales[KernelSpec]
    activations: Scales[InputSpec] | None

    def __repr__(self) -> str:
        activations = "unquantized" if self.activations is None else repr(self.activations)
        return printed("Quantizers", f"weights: {self.weights!r}", f"inputs: {activations}")

    def check(self, network: Network, w_bits: Sequence[int], a_bits: Sequence[int]) -> None:
        """Raise `ValueError` where a layer is given bits that were not calibrated."""
        activations = self.activations.bits if self.activations else ()
        known = {"weight": self.weights.bits, "activation": activations}
        for kind, bits in (("weight", w_bits), ("activation", a_bits)):
            for layer, b in zip(network.layers, bits, strict=True):
                if b not in (*known[kind], FLOAT_BITS):
                    raise ValueError(
                        f"Layer {layer.name!r}: {kind} bits {b} were not calibrated; there are "
                        f"{list(known[kind])} and {FLOAT_BITS} (unquantized)."
                    )

    def check_network(self, network: Network) -> None:
        """Refuse quantizers that were calibrated on another network.

        Raises:
            ValueError: If tensors, or blocks of a layer, are not as many as the network has.
        """
        tensors = {"weights": len(network.layers), "activations": len(network.sites)}
        for kind, count in tensors.items():
            scales: Scales | None = getattr(self, kind)
            if scales is not None and {len(scales.scale), len(scales.zero_point)} != {count}:
                raise ValueError(
                    f"The quantizers have scales of {len(scales.scale)} {kind}, the network "
                    f"has {count}: they were calibrated on another network."
                )
        if not self.weights.bits:
            return
        for layer, scale in zip(network.layers, self.weights.scale, strict=True):
            rows, count = len(self.weights.bits), self.weights.spec.layer_scales(layer)
            # A fine-tuned layer that stays unquantized is read back with one scale of 1.
            if scale.shape not in ((rows, count), (rows, 1)):
                raise ValueError(
                    f"The quantizers of layer {layer.name!r} have scales of shape "
                    f"{scale.shape}, expected {(rows, count)} (bits, scales): they were "
                    "calibrated on another network."
                )

    @property
    def sha256(self) -> str:
        """Hash of specifications, bits, scales and codes."""
        digest = hashlib.sha256()
        for scales in (self.weights, self.activations):
            if scales is not None:
                digest.update(repr((scales.spec, scales.bits)).encode())
                for array in (*scales.scale, *scales.zero_point, *scales.codes):
                    digest.update(np.asarray(array).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _sha256_by_bits(self) -> tuple[dict[int, str], dict[int, str]]:
        """Hashes of specification, scales and codes of weights and of activations, by bits."""
        return _sha256_by_bits(self.weights), _sha256_by_bits(self.activations)

    def sha256_at(self, w_bits: Iterable[int], a_bits: Iterable[int]) -> str:
        """Hash of all that quantizes weights and activations to some bit-widths only.

        It does not depend on which others were calibrated; 32 has nothing to hash.
        """
        used = [
            [(b, known[b]) for b in sorted(set(bits) - {FLOAT_BITS})]
            for known, bits in zip(self._sha256_by_bits, (w_bits, a_bits), strict=True)
        ]
        return json_sha256(used)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays to store in an npz file, whatever else it holds."""
        arrays: dict[str, np.ndarray] = {}
        for kind in ("weights", "activations"):
            scales: Scales | None = getattr(self, kind)
            if scales is not None:
                header = {"spec": dataclasses.asdict(scales.spec), "bits": list(scales.bits)}
                arrays[f"quantizers/{kind}/header"] = np.array(json.dumps(header))
                for name in ("scale", "zero_point", "codes"):
                    for i, array in enumerate(getattr(scales, name)):
                        arrays[f"quantizers/{kind}/{name}/{i}"] = np.asarray(array)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Quantizers":
        """Inverse of `to_arrays`.

        Raises:
            ValueError: If there are no quantizers among the arrays.
        """
        scales: dict[str, Scales] = {}
        for kind, spec_class in (("weights", KernelSpec), ("activations", InputSpec)):
            if (header := arrays.get(f"quantizers/{kind}/header")) is None:
                continue
            record = json.loads(str(header))
            tensors = {}
            for name in ("scale", "zero_point", "codes"):
                prefix = f"quantizers/{kind}/{name}/"
                count = sum(key.startswith(prefix) for key in arrays)
                tensors[name] = tuple(jnp.asarray(arrays[f"{prefix}{i}"]) for i in range(count))
            spec, bits = read_spec(spec_class, record["spec"]), tuple(record["bits"])
            scales[kind] = Scales(spec=spec, bits=bits, **tensors)
        if "weights" not in scales:
            raise ValueError("The file holds no quantizers; run `jmpq sensitivity` again.")
        return cls(weights=scales["weights"], activations=scales.get("activations"))


def _sha256_by_bits(scales: Scales | None) -> dict[int, str]:
    hashes: dict[int, str] = {}
    for i, bits in enumerate(scales.bits if scales else ()):
        assert scales is not None
        digest = hashlib.sha256(repr(scales.spec).encode())
        for array in (*scales.scale, *scales.zero_point, *scales.codes):
            digest.update(np.asarray(array[i]).astype(np.float64).tobytes())
        hashes[bits] = digest.hexdigest()
    return hashes


def calibrate_weights(
    network: Network,
    spec: KernelSpec,
    bits: Iterable[int],
    batches: Sequence[PyTree] = (),
    *,
    partial: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scales[KernelSpec]:
    """Scales of every layer's kernel, and its codes where rounding is not to nearest.

    Args:
        network: The network.
        spec: How weights are put on a grid.
        bits: Bit-widths to calibrate.
        batches: Calibration inputs, batch by batch, without padding; needed where
            `spec.rounding` is not ``nearest``.
        partial: Folder where the codes of finished layers are kept for an interrupted run.
        progress: Called with the layers rounded and their number, where rounding looks at
            inputs.

    Raises:
        ValueError: If a bit-width does not exist on the grid, groups do not divide a layer,
            or calibration inputs are needed and not there.
    """
    widths = _bit_widths(bits, spec)
    check_inputs(network, batches)
    if spec.rounding != "nearest" and not batches:
        raise ValueError(
            f"rounding={spec.rounding!r} looks at the layers' inputs: pass calibration inputs "
            "as `batches`, or round to 'nearest'."
        )

    def all_layers(kernels: list[Array], widths: Int[Array, " bits"]) -> list:
        matrices = [network.to_matrix(i, kernel) for i, kernel in enumerate(kernels)]
        blocks = [to_blocks(m, kernel_blocks(network, i, spec)) for i, m in enumerate(matrices)]
        return [jax.lax.map(lambda b, x=x: calibrate(x, b, spec), widths) for x in blocks]

    scales = _scales(spec, widths, all_layers, network.kernels())
    if spec.rounding == "nearest" or not widths:
        return scales
    codes = hessian_codes(
        network, spec, widths, scales.scale, scales.zero_point, batches,
        partial=partial, progress=progress,
    )  # fmt: skip
    return dataclasses.replace(scales, codes=codes)


def check_inputs(network: Network, batches: Any) -> None:
    """Refuse what is not a sequence of batches of the network's inputs.

    Only the first batch of a list is tried; a sequence that makes its batches is believed.

    Raises:
        ValueError: If so.
    """
    if (shape := getattr(batches, "shape", None)) is not None:
        raise ValueError(
            f"`batches` is one array of shape {tuple(shape)}: pass a list of batches of "
            "inputs, as [inputs]."
        )
    if isinstance(batches, list | tuple) and batches:
        network.output_shape(batches[0], "the first of the calibration inputs")


def calibrate_activations(
    network: Network,
    spec: InputSpec,
    bits: Iterable[int],
    batches: Sequence[PyTree],
    *,
    key: Array,
) -> Scales[InputSpec]:
    """Scales of every site's input, from calibration inputs.

    Percentiles and squared errors are taken over a random sample (about `SAMPLED_VALUES`
    values per site, at least `SAMPLED_POSITIONS` per feature) that always holds the exact
    least and greatest value; min-max clipping is thus exact. The moving average of ``ema``
    starts from the first batch's values.

    Args:
        network: The network.
        spec: How inputs are put on a grid.
        bits: Bit-widths to calibrate.
        batches: Inputs, batch by batch.
        key: Decides which positions are sampled.

    Raises:
        ValueError: If a bit-width does not exist on the grid, or groups do not divide the
            features of an input.
    """
    check_inputs(network, batches)
    widths = _bit_widths(bits, spec)
    sites = [site for site in network.sites if site.has_input]

    @jax.jit
    def sample(inputs: PyTree, key: Array) -> list[tuple[Array, Array]]:
        _, recorded = network.record(inputs)
        out = []
        for site in sites:
            matrix = _features_first(site, widened(recorded[site.index]))
            features, positions = matrix.shape
            count = max(SAMPLED_POSITIONS, SAMPLED_VALUES // features) // len(batches) + 1
            at = jax.random.randint(jax.random.fold_in(key, site.index), (count,), 0, positions)
            extremes = jnp.stack([matrix.min(axis=1), matrix.max(axis=1)], axis=1)
            out.append((matrix[:, at], extremes))
        return out

    sampled = []
    for n, inputs in enumerate(batches):
        check_finite(inputs, "the calibration inputs")
        sampled.append(sample(inputs, jax.random.fold_in(key, n)))
    matrices = []
    for site, parts in zip(sites, zip(*sampled, strict=True), strict=True):
        if spec.clipping == "ema":
            matrices.append(_moving_ends(site, spec, [e for _, e in parts]))
            continue
        extremes = jnp.concatenate([e for _, e in parts], axis=1)
        ends = jnp.stack([extremes.min(axis=1), extremes.max(axis=1)], axis=1)
        matrices.append(jnp.concatenate([*(values for values, _ in parts), ends], axis=1))

    def all_sites(matrices: list[Array], widths: Int[Array, " bits"]) -> list:
        blocks = []
        for site, m in zip(sites, matrices, strict=True):
            rows = _features_per_block(site, spec)
            blocks.append(to_blocks(m, (rows, m.shape[1])))
        return [jax.lax.map(lambda b, x=x: calibrate(x, b, spec), widths) for x in blocks]

    scales = _scales(spec, widths, all_sites, matrices)
    empty = jnp.zeros((len(widths), 0), scales.scale[0].dtype)
    scale, zero_point = [empty] * len(network.sites), [empty] * len(network.sites)
    for n, site in enumerate(sites):
        scale[site.index], zero_point[site.index] = scales.scale[n], scales.zero_point[n]
    return dataclasses.replace(scales, scale=tuple(scale), zero_point=tuple(zero_point))


def _moving_ends(
    site: Site, spec: InputSpec, extremes: Sequence[Float[Array, "_ 2"]]
) -> Float[Array, "features 2"]:
    """Least and greatest value of every feature's block, averaged from batch to batch."""
    rows = _features_per_block(site, spec)
    blocks = [ends.reshape(-1, rows, 2) for ends in extremes]
    ranges = [jnp.stack([b[..., 0].min(axis=1), b[..., 1].max(axis=1)], axis=1) for b in blocks]
    average = functools.reduce(lambda a, x: spec.decay * a + (1 - spec.decay) * x, ranges)
    return jnp.repeat(average, rows, axis=0)


def quantize_kernel(
    network: Network,
    layer: int,
    kernel: Array,
    bits: Int[Array, ""],
    scales: Scales[KernelSpec],
) -> Array:
    """A kernel on its grid, shaped as it came."""
    if not scales.bits:
        return kernel
    matrix = network.to_matrix(layer, kernel)
    shape = kernel_blocks(network, layer, scales.spec)
    blocks = scales.quantize(layer, to_blocks(matrix, shape), bits)
    return network.from_matrix(layer, from_blocks(blocks, shape, *matrix.shape), kernel)


@jax.jit
def quantize_params(
    network: Network, scales: Scales[KernelSpec], w_bits: Int[Array, " layers"]
) -> PyTree:
    """The parameters with every kernel on its grid at traced bits; 32 leaves one as it is."""
    return network.with_kernels(
        [
            quantize_kernel(network, i, kernel, w_bits[i], scales)
            for i, kernel in enumerate(network.kernels())
        ]
    )


def quantize_input(
    site: Site, inputs: Array, bits: Int[Array, ""], scales: Scales[InputSpec]
) -> Array:
    """A site's input on its grid."""
    if not scales.bits:
        return inputs
    grid = input_grid(site, scales.spec, inputs.shape, *scales.at(site.index, bits))
    return fake_quantize(inputs, *grid, bits, scales.spec.grid)


def input_grid(
    site: Site,
    spec: InputSpec,
    shape: Sequence[int],
    scale: Float[Array, " blocks"],
    zero_point: Float[Array, " blocks"],
) -> tuple[Array, Array]:
    """Scales and zero points of a site's input, shaped to broadcast against the input.

    Args:
        site: The site.
        spec: Granularity of the inputs.
        shape: Shape of the input.
        scale: Scale of every block of features.
        zero_point: Zero point of every block.
    """
    rows, axes = _features_per_block(site, spec), site.feature_axes
    ones = [shape[a] if a in axes else 1 for a in range(len(shape))]

    def along(per_block: Float[Array, " blocks"]) -> Array:
        if per_block.size == 1:
            return per_block.reshape((1,) * len(shape))
        per_feature = jnp.repeat(per_block, rows, total_repeat_length=site.features)
        per_axis = per_feature.reshape([shape[a] for a in axes])
        return per_axis.transpose(np.argsort(axes).tolist()).reshape(ones)

    return along(scale), along(zero_point)


def quantized_logits(
    network: Network,
    quantizers: Quantizers,
    w_bits: Int[Array, " layers"],
    a_bits: Int[Array, " layers"],
    inputs: PyTree,
    params: PyTree | None = None,
) -> Float[Array, "batch *output"]:
    """Logits under an allocation; the bits are traced, 32 leaves a tensor as it is."""
    at_site = functools.partial(quantized_output, network, quantizers, w_bits, a_bits)
    return network.run(inputs, at_site, params)


def quantized_output(
    network: Network,
    quantizers: Quantizers,
    w_bits: Int[Array, " layers"],
    a_bits: Int[Array, " layers"],
    site: Site,
    x: Array,
    op: Op,
) -> Array:
    """Output of a site under an allocation; the last three arguments are `Network.run`'s."""
    layer = site.layer_index
    if quantizers.activations is not None and site.has_input:
        x = quantize_input(site, x, a_bits[layer], quantizers.activations)
    weights = quantizers.weights
    return op(x, quantize_kernel(network, layer, site.kernel, w_bits[layer], weights))


def _bit_widths(bits: Iterable[int], spec: TensorSpec) -> tuple[int, ...]:
    widths = tuple(sorted({int(b) for b in bits} - {FLOAT_BITS}))
    for b in widths:
        check_bits(spec, b)
    return widths


def _scales(spec: Spec, widths: tuple[int, ...], function: Any, tensors: list) -> Scales[Spec]:
    if not widths:  # everything stays unquantized
        none = tuple(jnp.zeros((0, 0), t.dtype) for t in tensors)
        return Scales(spec=spec, bits=(), scale=none, zero_point=none)
    pairs = jax.jit(function)(tensors, jnp.array(widths))
    scale, zero_point = zip(*pairs, strict=True)
    return Scales(spec=spec, bits=widths, scale=scale, zero_point=zero_point)


def kernel_blocks(network: Network, layer: int, spec: KernelSpec) -> tuple[int, int]:
    """Rows and columns of a layer's kernel that share a scale."""
    return spec.layer_blocks(network.layers[layer])


def _features_per_block(site: Site, spec: InputSpec) -> int:
    """Features of a site's input that share a scale."""
    return spec.block_features(site.features, site.layer.name)


def _features_first(site: Site, x: Array) -> Float[Array, "features positions"]:
    rest = [a for a in range(x.ndim) if a not in site.feature_axes]
    features = math.prod(x.shape[a] for a in site.feature_axes)
    return x.transpose([*site.feature_axes, *rest]).reshape(features, -1)
