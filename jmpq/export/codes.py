"""Codes, scales and zero points of an allocation, read from the quantizers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jmpq.allocation import Allocation, bit_arrays
from jmpq.deploy.correction import Corrections
from jmpq.export.float_codes import decode, encode
from jmpq.formats import FLOAT_BITS, Scheme
from jmpq.network.network import Network
from jmpq.quantizers.clipping import from_blocks, to_blocks
from jmpq.quantizers.learned import settled, tensor_bits
from jmpq.quantizers.scales import Quantizers, Scales, kernel_blocks, kernel_tiles
from jmpq.quantizers.spec import Grid, InputSpec, KernelSpec
from jmpq.quantizers.stream import points_of
from jmpq.quantizers.tiling import Tiling
from jmpq.quantizers.uniform import code_range


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class KernelCodes:
    """Codes of one kernel, which equals ``scale · (codes − zero_point)`` block by block.

    Attributes:
        scheme: Format of the codes and kind of the scales.
        codes: Codes: integers of the grid, or bit patterns of a float format.
        scale: Scale of every equal block.
        zero_point: Integer zero point of every equal block; zeros if the grid has none.
        tiling: Blocks of the kernel's matrix (`Network.to_matrix`): the equal blocks and the
            scheme's own.
    """

    scheme: Scheme
    codes: Int[np.ndarray, "blocks elements"]
    scale: Float[np.ndarray, " blocks"]
    zero_point: Int[np.ndarray, " blocks"]
    tiling: Tiling

    @property
    def bits(self) -> int:
        """Bits of a code, 1 to 16."""
        return self.scheme.bits

    def own(self, per_block: np.ndarray) -> np.ndarray:
        """Scales or zero points of the scheme's own blocks, from those of equal blocks."""
        return per_block[self.tiling.first(0)]


@dataclasses.dataclass(frozen=True, eq=False)
class InputGrid:
    """Grid of one site's input.

    Attributes:
        scheme: Format of the codes and kind of the scales.
        scale: Scale of every block of features; unused if scales are computed at run time.
        zero_point: Integer zero point of every block, as floats.
    """

    scheme: Scheme
    scale: Float[np.ndarray, " blocks"]
    zero_point: Float[np.ndarray, " blocks"]

    @property
    def bits(self) -> int:
        """Bits of a code, 1 to 16."""
        return self.scheme.bits

    @property
    def single(self) -> tuple[float, float] | None:
        """Scale and zero point if all blocks share them; None if they differ."""
        pairs = {*zip(self.scale.tolist(), self.zero_point.tolist(), strict=True)}
        return pairs.pop() if len(pairs) == 1 else None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Coded:
    """A network under one allocation, with kernels as codes: the argument of every exporter.

    Attributes:
        network: Float network; kernels that have codes are not used.
        allocation: Choice of every layer that it names; the others stay unquantized.
        weights: Specification of kernels.
        activations: Specification of activations.
        kernels: Codes of every layer's kernel; None if it is unquantized.
        inputs: Grid of every site's input; None if it is unquantized or holds indices.
        stream: Grid of every point of the stream (`jmpq.quantizers.stream`); None if it is
            unquantized, as all are with placement ``inputs``.
        corrections: Corrections of the sites' outputs.
    """

    network: Network
    allocation: Allocation
    weights: KernelSpec
    activations: InputSpec
    kernels: tuple[KernelCodes | None, ...]
    inputs: tuple[InputGrid | None, ...]
    stream: tuple[InputGrid | None, ...]
    corrections: Corrections

    def leaf(self, layer: int, blocks: Array) -> Array:
        """Rearrange an array with one value per element from blocks to the kernel's shape."""
        kernel = self.kernels[layer]
        assert kernel is not None
        return kernel_of_blocks(self.network, layer, blocks, kernel.tiling.block)


def kernel_of_blocks(
    network: Network, layer: int, blocks: Array, block: tuple[int, int]
) -> Array:
    """A kernel in the shape of its parameter, from the blocks of its matrix."""
    table = network.layers[layer]
    rows = table.output_features
    matrix = from_blocks(blocks, block, rows, table.parameters // rows)
    return network.from_matrix(layer, matrix, network.kernels()[layer])


def take_codes(
    network: Network,
    quantizers: Quantizers,
    allocation: Allocation,
    corrections: Corrections | None = None,
) -> Coded:
    """Codes of an allocation, read from the quantizers that its accuracy is measured with.

    ``scale · (codes − zero_point)`` equals the fake-quantized kernel exactly. For a fine-tuned
    network pass its own network, quantizers, allocation and corrections.

    Args:
        network: Float network.
        quantizers: Calibrated quantizers of the network, with any rounding.
        allocation: Choice of every layer; layers that it does not name stay unquantized.
        corrections: Corrections of the layers' outputs, by site.

    Raises:
        ValueError: If the allocation names an unknown layer or bits that were not calibrated.
    """
    quantizers.check_network(network)
    w_bits, a_bits = bit_arrays([layer.name for layer in network.layers], [allocation])[0]
    quantizers = settled(network, quantizers, w_bits.tolist(), a_bits.tolist())
    of_kernels, of_inputs, of_stream = tensor_bits(network, w_bits.tolist(), a_bits.tolist())
    spec, kernels = quantizers.weights.spec, []
    centred = _centred(network, quantizers.weights, jnp.array(w_bits))
    for layer, bits in enumerate(of_kernels):
        if bits == FLOAT_BITS:
            kernels.append(None)
            continue
        scale, zero_point = _row(quantizers.weights, layer, bits)
        zero, scheme = zero_point.astype(np.int32), Scheme.of(bits)
        values = np.asarray(centred[layer])
        kernels.append(
            KernelCodes(
                scheme=scheme,
                codes=encode(values, scheme.format)
                if scheme.is_float
                else values.astype(np.int32) + zero[:, None],
                scale=scale,
                zero_point=zero,
                tiling=kernel_tiles(network.layers[layer : layer + 1], spec, [bits])[0],
            )
        )
    activations = quantizers.activations
    inputs = _grids(activations, of_inputs)
    stream: list[InputGrid | None] = [None] * len(of_stream)
    if quantizers.stream is not None:
        stream = _grids(quantizers.stream, of_stream)
        for point, grid in zip(points_of(network), stream, strict=True):
            for site in point.read_by:  # what is on the grid of the same bits stays there
                if grid is not None and of_inputs[site] == grid.scheme.number:
                    inputs[site] = grid
    return Coded(
        network=network,
        allocation=allocation,
        weights=spec,
        activations=InputSpec() if activations is None else activations.spec,
        kernels=tuple(kernels),
        inputs=tuple(inputs),
        stream=tuple(stream),
        corrections=corrections or {},
    )


def _grids(scales: Scales | None, bits: Sequence[int]) -> list[InputGrid | None]:
    """Grids of tensors; None for an unquantized tensor."""
    return [
        None if b == FLOAT_BITS else InputGrid(Scheme.of(b), *_row(scales, i, b))
        for i, b in enumerate(bits)
    ]


def _row(scales: Scales | None, tensor: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of a tensor's equal blocks at calibrated bits."""
    assert scales is not None
    row = scales.bits.index(bits)
    return np.asarray(scales.scale[tensor][row]), np.asarray(scales.zero_point[tensor][row])


def unquantized(network: Network) -> Coded:
    """The float network as a `Coded` without codes."""
    none = Scales(
        spec=KernelSpec(),
        bits=(),
        scale=tuple(jnp.zeros((0, 0)) for _ in network.layers),
        zero_point=tuple(jnp.zeros((0, 0)) for _ in network.layers),
    )
    return take_codes(network, Quantizers(weights=none, activations=None), Allocation({}))


def float_on_grid(coded: Coded) -> Coded:
    """The same network without codes, its kernels replaced by their fake-quantized floats."""
    network, kernels = coded.network, list(coded.network.kernels())
    for layer, kernel in enumerate(coded.kernels):
        if kernel is not None:
            exact = jnp.asarray(kernel.codes - kernel.zero_point[:, None], jnp.float32)
            if kernel.scheme.is_float:
                codes = jnp.asarray(kernel.codes)
                exact = decode(codes, kernel.scheme.format, jnp.float32)
            values = jnp.asarray(kernel.scale)[:, None].astype(jnp.float32) * exact
            kernels[layer] = coded.leaf(layer, values.astype(kernels[layer].dtype))
    params = network.with_kernels(kernels)
    floats = unquantized(dataclasses.replace(network, params=params))
    return dataclasses.replace(floats, corrections=coded.corrections)


def check_no_cache(coded: Coded, file: str) -> None:
    """Check that the layer table has no rows of keys and values, which few files can hold.

    Args:
        coded: The network under an allocation.
        file: Kind of the file, for the message.

    Raises:
        ValueError: If it has; the message names the first.
    """
    if caches := [layer.name for layer in coded.network.layers if layer.kind == "cache"]:
        raise ValueError(
            f"{file} holds layers, not what a decoder keeps ({caches[0]!r}, ...): export "
            "'packed' or 'stablehlo', or from a run whose layer table has no keys and values "
            "(`jmpq layers` without --kv-cache)."
        )


def code_ends(bits: int, grid: Grid) -> tuple[int, int]:
    """Least and greatest integer code of a grid."""
    with jax.ensure_compile_time_eval():
        least, most = code_range(jnp.array(bits), grid, jnp.float32)
        return int(least), int(most)


def stored_bits(bits: int, smallest: int = 2) -> int:
    """Bits at which a runtime stores codes: the next of its types, at least `smallest`."""
    return next(width for width in (2, 4, 8, 16) if width >= max(bits, smallest))


@jax.jit
def _centred(
    network: Network, scales: Scales[KernelSpec], w_bits: Int[Array, " layers"]
) -> Any:
    """Codes of every layer minus zero points, computed as in `quantize_params`."""
    if not scales.bits:
        return [None] * len(network.layers)
    found = []
    for layer, kernel in enumerate(network.kernels()):
        shape = kernel_blocks(network, layer, scales)
        blocks = to_blocks(network.to_matrix(layer, kernel), shape)
        found.append(scales.centred_codes(layer, blocks, w_bits[layer]))
    return found
