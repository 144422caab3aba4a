"""Calibrated scales of a network's tensors: hashed, stored in npz files, traced by JAX."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jmpq.files import json_sha256
from jmpq.formats import FLOAT_BITS, Scheme
from jmpq.kinds import check_kinds
from jmpq.network.layers import Layer
from jmpq.network.network import Network
from jmpq.network.sites import Site
from jmpq.quantizers.spec import InputSpec, KernelSpec, Spec, read_spec
from jmpq.quantizers.stream import points_of, stream_number
from jmpq.quantizers.tiling import Block, Tiling
from jmpq.quantizers.uniform import centred_codes, fake_quantize
from jmpq.text import plural, printed

KINDS = ("weights", "activations", "stream")  # what has scales


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scale", "zero_point", "codes"],
    meta_fields=["spec", "bits", "tiles"],
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scales(Generic[Spec]):
    """Scales of several tensors for several schemes.

    Attributes:
        spec: Grid, granularity and clipping, of kernels or of inputs.
        bits: Numbers of the schemes (bit-widths of plain integers), ascending, without 32.
        scale: Array ``[bits, blocks]`` per tensor. (JAX substitutes placeholders during
            lowering.)
        zero_point: Array ``[bits, blocks]`` per tensor; zeros if the grid has none.
        codes: Integer array ``[bits, blocks, elements]`` per tensor, if the specification
            does not round to nearest. They replace the values of the kernels they were
            calibrated on. Empty for rounding to nearest.
        tiles: Blocks of every tensor. Empty if all schemes are plain integers: the
            specification then gives the blocks.
    """

    spec: Spec
    bits: tuple[int, ...]
    scale: tuple[Any, ...]
    zero_point: tuple[Any, ...]
    codes: tuple[Any, ...] = ()
    tiles: tuple[Tiling, ...] = ()

    def __repr__(self) -> str:
        return (
            f"scales of {plural(len(self.scale), 'tensor')} at {_shown(self.bits)} "
            f"({self.spec.grid}, {self.spec.granularity}, {self.spec.clipping})"
        )

    @property
    def floats(self) -> bool:
        """Whether some schemes are float formats."""
        return any(Scheme.of(b).is_float for b in self.bits)

    def quantize(
        self, tensor: int, blocks: Float[Array, "blocks elements"], bits: Int[Array, ""]
    ) -> Float[Array, "blocks elements"]:
        """Fake-quantize a tensor, one row per block, at traced `bits`; 32 returns it."""
        scale, zero_point = (x[:, None] for x in self.at(tensor, bits))
        if not self.codes:
            return fake_quantize(
                blocks, scale, zero_point, bits, self.spec.grid, floats=self.floats
            )
        codes = self.codes[tensor][self._index(bits)].astype(blocks.dtype)
        return jnp.where(bits == FLOAT_BITS, blocks, scale * (codes - zero_point))

    def centred_codes(
        self, tensor: int, blocks: Float[Array, "blocks elements"], bits: Int[Array, ""]
    ) -> Float[Array, "blocks elements"]:
        """Codes minus zero points, as `quantize` uses them (arbitrary at 32 bits)."""
        scale, zero_point = (x[:, None] for x in self.at(tensor, bits))
        if not self.codes:
            return centred_codes(
                blocks, scale, zero_point, bits, self.spec.grid, floats=self.floats
            )
        return self.codes[tensor][self._index(bits)].astype(zero_point.dtype) - zero_point

    def at(self, tensor: int, bits: Int[Array, ""]) -> tuple[Array, Array]:
        """Scale and zero point of a tensor at traced `bits`.

        Arbitrary at 32 bits; where one scheme alone is calibrated, its own at all bits.
        """
        index = self._index(bits)
        return self.scale[tensor][index], self.zero_point[tensor][index]

    def _index(self, bits: Int[Array, ""]) -> Int[Array, ""]:
        if len(self.bits) == 1:
            return jnp.zeros((), int)
        return jnp.argmax(jnp.array(self.bits) == bits)

    def own(self, row: int) -> dict[str, np.ndarray]:
        """Arrays of one scheme by its own blocks, named ``scale/0``, ``codes/3``, ...

        They do not depend on the other calibrated schemes.
        """
        return {
            f"{name}/{tensor}": self._own(name, np.asarray(array)[row], tensor, row)
            for name in ("scale", "zero_point", "codes")
            for tensor, array in enumerate(getattr(self, name))
        }

    def _own(self, name: str, array: np.ndarray, tensor: int, row: int) -> np.ndarray:
        if not self.tiles:
            return array
        tiling = self.tiles[tensor]
        return tiling.own_codes(array, row) if name == "codes" else array[tiling.first(row)]


@functools.partial(jax.tree_util.register_dataclass, data_fields=[*KINDS], meta_fields=[])
@check_kinds
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Quantizers:
    """Calibrated quantizers of a network.

    Attributes:
        weights: Scales of the kernels, one tensor per layer.
        activations: Scales of the inputs, one tensor per site; None if unquantized.
        stream: Scales of the points of the stream (`jmpq.quantizers.stream`). None with
            placement ``inputs``, or if the network has no points.
    """

    weights: Scales[KernelSpec]
    activations: Scales[InputSpec] | None
    stream: Scales[InputSpec] | None = None

    def __repr__(self) -> str:
        activations = "unquantized" if self.activations is None else repr(self.activations)
        lines = [f"weights: {self.weights!r}", f"inputs: {activations}"]
        return printed(
            "Quantizers", *lines, *([f"stream: {self.stream!r}"] * bool(self.stream))
        )

    def check(self, network: Network, w_bits: Sequence[int], a_bits: Sequence[int]) -> None:
        """Check that the bits of every layer were calibrated.

        Raises:
            ValueError: If not; the message names the layer.
        """
        activations = self.activations.bits if self.activations else ()
        known = {"weight": self.weights.bits, "activation": activations}
        for kind, bits in (("weight", w_bits), ("activation", a_bits)):
            for layer, b in zip(network.layers, bits, strict=True):
                if b not in (*known[kind], FLOAT_BITS):
                    raise ValueError(
                        f"Layer {layer.name!r}: {kind} bits {Scheme.of(b).short} were not "
                        f"calibrated; there are {_shown(known[kind])} and {FLOAT_BITS} "
                        "(unquantized)."
                    )

    def check_network(self, network: Network) -> None:
        """Check that the quantizers were calibrated on this network.

        Raises:
            ValueError: If the number of tensors, or of a layer's blocks, differs from the
                network's, or if the placement is ``stream`` and the stream has no scales.
        """
        tensors = {"weights": len(network.layers), "activations": len(network.sites)}
        if self.activations is not None and self.activations.spec.placement == "stream":
            tensors["stream"] = len(points_of(network))
            if tensors["stream"] and self.stream is None:
                raise ValueError(
                    "The activations are placed on the 'stream', which has no scales: use "
                    "calibrate_quantizers, or add stream=calibrate_stream(...)."
                )
        for kind, count in tensors.items():
            scales: Scales | None = getattr(self, kind)
            if scales is not None and {len(scales.scale), len(scales.zero_point)} != {count}:
                raise ValueError(
                    f"The quantizers have scales of {len(scales.scale)} {kind}, the network "
                    f"has {count}: they were calibrated on another network."
                )
        if not self.weights.bits:
            return
        for i, (layer, scale) in enumerate(
            zip(network.layers, self.weights.scale, strict=True)
        ):
            r, c = kernel_blocks(network, i, self.weights)
            rows, count = len(self.weights.bits), layer.parameters // (r * c)
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
        for scales in (self.weights, self.activations, self.stream):
            if scales is not None:
                digest.update(repr((scales.spec, scales.bits)).encode())
                digest.update(repr(scales.tiles).encode() if scales.tiles else b"")
                for array in (*scales.scale, *scales.zero_point, *scales.codes):
                    digest.update(np.asarray(array).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _sha256_by_bits(self) -> tuple[dict[int, str], dict[int, str]]:
        """Hashes of weights' and of activations' specification, scales, codes, by bits."""
        activations = _sha256_by_bits(self.activations)
        if self.stream is not None:
            stream = _sha256_by_bits(self.stream)
            activations = {
                b: json_sha256([own, stream.get(stream_number(b))])
                for b, own in activations.items()
            }
        return _sha256_by_bits(self.weights), activations

    def sha256_at(self, w_bits: Iterable[int], a_bits: Iterable[int]) -> str:
        """Hash of the quantizers of some bit-widths.

        It does not depend on the other calibrated bit-widths. 32 is ignored.
        """
        used = [
            [(b, known[b]) for b in sorted(set(bits) - {FLOAT_BITS})]
            for known, bits in zip(self._sha256_by_bits, (w_bits, a_bits), strict=True)
        ]
        return json_sha256(used)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays for an npz file, named ``quantizers/...`` to leave room for others."""
        arrays: dict[str, np.ndarray] = {}
        for kind in KINDS:
            scales: Scales | None = getattr(self, kind)
            if scales is not None:
                header = {"spec": dataclasses.asdict(scales.spec), "bits": list(scales.bits)}
                if scales.tiles:
                    header["tiles"] = scales.tiles
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
        for kind, spec_class in zip(KINDS, (KernelSpec, InputSpec, InputSpec), strict=True):
            if (header := arrays.get(f"quantizers/{kind}/header")) is None:
                continue
            record = json.loads(str(header))
            tensors = {}
            for name in ("scale", "zero_point", "codes"):
                prefix = f"quantizers/{kind}/{name}/"
                count = sum(key.startswith(prefix) for key in arrays)
                tensors[name] = tuple(jnp.asarray(arrays[f"{prefix}{i}"]) for i in range(count))
            spec, bits = read_spec(spec_class, record["spec"]), tuple(record["bits"])
            tiles = tuple(map(Tiling.read, record.get("tiles", ())))
            scales[kind] = Scales(spec=spec, bits=bits, tiles=tiles, **tensors)
        if "weights" not in scales:
            raise ValueError("The file holds no quantizers; run `jmpq sensitivity` again.")
        return cls(**{"activations": None, **scales})


def _sha256_by_bits(scales: Scales | None) -> dict[int, str]:
    hashes: dict[int, str] = {}
    for i, bits in enumerate(scales.bits if scales else ()):
        assert scales is not None
        digest = hashlib.sha256(repr(scales.spec).encode())
        for array in scales.own(i).values():
            digest.update(array.astype(np.float64).tobytes())
        hashes[bits] = digest.hexdigest()
    return hashes


def kernel_tiles(
    layers: Sequence[Layer], spec: KernelSpec, numbers: Sequence[int]
) -> tuple[Tiling, ...]:
    """Blocks of every layer's kernel for some schemes."""
    tiles = []
    for layer in layers:
        rows = layer.output_features
        own = [spec.scheme_blocks(layer, number) for number in numbers]
        tiles.append(Tiling.of(rows, layer.columns, own))
    return tuple(tiles)


def input_tiles(
    sites: Sequence[Site], spec: InputSpec, numbers: Sequence[int]
) -> tuple[Tiling, ...]:
    """Blocks of every site's features for some schemes; none if the input is indices."""
    tiles = []
    for site in sites:
        if not site.has_input:
            tiles.append(Tiling(0, 1, (1, 1), ((1, 1),) * len(numbers)))
            continue
        own = [spec.scheme_features(site.features, site.layer.name, b) for b in numbers]
        tiles.append(Tiling.of(site.features, 1, [(size, 1) for size in own]))
    return tuple(tiles)


def kernel_blocks(network: Network, layer: int, scales: Scales[KernelSpec]) -> Block:
    """Rows and columns of a layer's kernel that share a scale in every scheme."""
    if scales.tiles:
        return scales.tiles[layer].block
    return scales.spec.layer_blocks(network.layers[layer])


def _shown(bits: Sequence[int]) -> str:
    """Schemes for a message: ``[2, 8] bits``, or names."""
    plain = all(Scheme.of(b).is_plain for b in bits)
    return f"{list(bits)} bits" if plain else ", ".join(Scheme.of(b).name for b in bits)
