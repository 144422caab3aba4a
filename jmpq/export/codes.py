"""Integer codes, scales and zero points of an allocation, as the quantizers make them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jmpq.allocation import Allocation, bit_arrays
from jmpq.deploy.correction import Corrections
from jmpq.formats import FLOAT_BITS
from jmpq.network.network import Network
from jmpq.quantizers.calibration import from_blocks, to_blocks
from jmpq.quantizers.fake_quant import Quantizers, Scales, kernel_blocks
from jmpq.quantizers.learned import rows_of, tensor_bits
from jmpq.quantizers.spec import Grid, InputSpec, KernelSpec
from jmpq.quantizers.uniform import code_range


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class KernelCodes:
    """The codes of one kernel: it is ``scale · (codes − zero_point)``, block by block.

    Attributes:
        bits: Bits of a code, 1 to 16.
        codes: Integers in the range of the grid.
        scale: Scale of every block.
        zero_point: Integer zero point of every block; zeros where the grid has none.
        block: Rows and columns of a block in the kernel's matrix (`Network.to_matrix`).
    """

    bits: int
    codes: Int[np.ndarray, "blocks elements"]
    scale: Float[np.ndarray, " blocks"]
    zero_point: Int[np.ndarray, " blocks"]
    block: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InputGrid:
    """The grid of one site's input.

    Attributes:
        bits: Bits of a code, 1 to 16.
        scale: Scale of every block of features.
        zero_point: Integer zero point of every block, as floats.
    """

    bits: int
    scale: Float[np.ndarray, " blocks"]
    zero_point: Float[np.ndarray, " blocks"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Coded:
    """A network under one allocation, its kernels as codes: what every exporter takes.

    Attributes:
        network: The float network; its kernels are not used where there are codes.
        allocation: Choice of every layer that it names; the others stay unquantized.
        weights: How kernels are put on their grids.
        activations: How inputs are put on their grids.
        kernels: Codes of every layer's kernel; None where it is unquantized.
        inputs: Grid of every site's input; None where it is unquantized or holds indices.
        corrections: Corrections of the sites' outputs.
    """

    network: Network
    allocation: Allocation
    weights: KernelSpec
    activations: InputSpec
    kernels: tuple[KernelCodes | None, ...]
    inputs: tuple[InputGrid | None, ...]
    corrections: Corrections

    def leaf(self, layer: int, blocks: Array) -> Array:
        """An array of the codes' shape, one number an element, arranged as the kernel is."""
        kernel = self.kernels[layer]
        assert kernel is not None
        return kernel_of_blocks(self.network, layer, blocks, kernel.block)


def kernel_of_blocks(
    network: Network, layer: int, blocks: Array, block: tuple[int, int]
) -> Array:
    """A kernel, shaped as it stands in the parameters, from the blocks of its matrix."""
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
    """Codes of an allocation, taken from the quantizers that its accuracy is measured with.

    ``scale · (codes − zero_point)`` equals the fake-quantized kernel exactly. Of a fine-tuned
    network pass its own network, quantizers, allocation and corrections.

    Args:
        network: The float network.
        quantizers: Its calibrated quantizers, of any rounding.
        allocation: Choice of every layer; those it does not name stay unquantized.
        corrections: Corrections of the layers' outputs, by site.

    Raises:
        ValueError: If the allocation names an unknown layer or bits that were not calibrated.
    """
    quantizers.check_network(network)
    w_bits, a_bits = bit_arrays([layer.name for layer in network.layers], [allocation])[0]
    scale, zero_point = rows_of(network, quantizers, w_bits.tolist(), a_bits.tolist())
    of_kernels, of_inputs = tensor_bits(network, w_bits.tolist(), a_bits.tolist())
    spec, kernels = quantizers.weights.spec, []
    centred = _centred(network, quantizers.weights, jnp.array(w_bits))
    for layer, bits in enumerate(of_kernels):
        if bits == FLOAT_BITS:
            kernels.append(None)
            continue
        zero = np.asarray(zero_point.weights[layer]).astype(np.int32)
        kernels.append(
            KernelCodes(
                bits=bits,
                codes=np.asarray(centred[layer]).astype(np.int32) + zero[:, None],
                scale=np.asarray(scale.weights[layer]),
                zero_point=zero,
                block=kernel_blocks(network, layer, spec),
            )
        )
    activations = quantizers.activations
    inputs = [
        None
        if bits == FLOAT_BITS
        else InputGrid(
            bits=bits,
            scale=np.asarray(scale.activations[site]),
            zero_point=np.asarray(zero_point.activations[site]),
        )
        for site, bits in enumerate(of_inputs)
    ]
    return Coded(
        network=network,
        allocation=allocation,
        weights=spec,
        activations=InputSpec() if activations is None else activations.spec,
        kernels=tuple(kernels),
        inputs=tuple(inputs),
        corrections=corrections or {},
    )


def unquantized(network: Network) -> Coded:
    """The float network, for exporters of both."""
    none = Scales(
        spec=KernelSpec(),
        bits=(),
        scale=tuple(jnp.zeros((0, 0)) for _ in network.layers),
        zero_point=tuple(jnp.zeros((0, 0)) for _ in network.layers),
    )
    return take_codes(network, Quantizers(weights=none, activations=None), Allocation({}))


def code_ends(bits: int, grid: Grid) -> tuple[int, int]:
    """Least and greatest integer code of a grid."""
    with jax.ensure_compile_time_eval():
        least, most = code_range(jnp.array(bits), grid, jnp.float32)
        return int(least), int(most)


def stored_bits(bits: int, smallest: int = 2) -> int:
    """Bits at which a runtime stores codes: the next type it has, of `smallest` at least."""
    return next(width for width in (2, 4, 8, 16) if width >= max(bits, smallest))


@jax.jit
def _centred(
    network: Network, scales: Scales[KernelSpec], w_bits: Int[Array, " layers"]
) -> Any:
    """Codes of every layer less zero points, computed as `quantize_params` does."""
    if not scales.bits:
        return [None] * len(network.layers)
    found = []
    for layer, kernel in enumerate(network.kernels()):
        shape = kernel_blocks(network, layer, scales.spec)
        blocks = to_blocks(network.to_matrix(layer, kernel), shape)
        found.append(scales.centred_codes(layer, blocks, w_bits[layer]))
    return found
