"""The quantized network under any allocation: bits are traced, one compilation serves all."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jmpq.formats import FLOAT_BITS, Scheme
from jmpq.kinds import check_kinds
from jmpq.network.network import Network
from jmpq.network.sites import Op, Site, Transform
from jmpq.network.walk import Rule, bind
from jmpq.quantizers.clipping import from_blocks, to_blocks
from jmpq.quantizers.dynamic import dynamic_blocks, quantize_blocks
from jmpq.quantizers.integer_bias import with_integer_biases
from jmpq.quantizers.scales import Quantizers, Scales, kernel_blocks
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.quantizers.stream import Point, run_on_stream, source_of, stream_bits
from jmpq.quantizers.uniform import fake_quantize


def quantize_kernel(
    network: Network,
    layer: int,
    kernel: Array,
    bits: Int[Array, ""],
    scales: Scales[KernelSpec],
) -> Array:
    """Fake-quantize a layer's kernel at traced bits; the shape is kept, 32 returns it."""
    if not scales.bits:
        return kernel
    matrix = network.to_matrix(layer, kernel)
    shape = kernel_blocks(network, layer, scales)
    blocks = scales.quantize(layer, to_blocks(matrix, shape), bits)
    return network.from_matrix(layer, from_blocks(blocks, shape, *matrix.shape), kernel)


@jax.jit
def quantize_params(
    network: Network, scales: Scales[KernelSpec], w_bits: Int[Array, " layers"]
) -> PyTree:
    """Parameters with every kernel fake-quantized at traced bits; 32 leaves a kernel as is."""
    return network.with_kernels(
        [
            quantize_kernel(network, i, kernel, w_bits[i], scales)
            for i, kernel in enumerate(network.kernels())
        ]
    )


def quantize_input(
    site: Site, inputs: Array, bits: Int[Array, ""], scales: Scales[InputSpec]
) -> Array:
    """Fake-quantize a site's input at traced bits; 32 returns it."""
    if not scales.bits:
        return inputs
    return _quantize_site(
        site, inputs, bits, scales.spec, scales.bits, *scales.at(site.index, bits)
    )


def quantize_by(
    site: Site,
    x: Array,
    scheme: Scheme,
    spec: InputSpec,
    scale: Float[Array, " blocks"],
    zero_point: Float[Array, " blocks"],
) -> Array:
    """Fake-quantize a site's input by one scheme, given its scale and zero point."""
    bits = jnp.array(scheme.number)
    return _quantize_site(site, x, bits, spec, [scheme.number], scale, zero_point)


def _quantize_site(
    site: Site,
    inputs: Array,
    bits: Int[Array, ""],
    spec: InputSpec,
    schemes: Sequence[int],
    scale: Float[Array, " blocks"],
    zero_point: Float[Array, " blocks"],
) -> Array:
    """Fake-quantize a site's input by whichever of `schemes` the traced `bits` number."""
    floats = any(Scheme.of(b).is_float for b in schemes)

    def calibrated(x: Array) -> Array:
        grid = input_grid(site, x.shape, scale, zero_point)
        return fake_quantize(x, *grid, bits, spec.grid, floats=floats)

    if not (dynamic := dynamic_blocks(schemes)):
        return calibrated(inputs)
    as_they_come = [
        functools.partial(quantize_blocks, site, tensor=scale[0], bits=bits, block=block)
        for block in dynamic
    ]
    which = jnp.zeros((), int)
    for i, own in enumerate(dynamic.values(), 1):
        which = jnp.where(jnp.isin(bits, jnp.array(own)), i, which)
    return jax.lax.switch(which, [calibrated, *as_they_come], inputs)


def quantize_point(
    point: Point, x: Array, bits: Int[Array, ""], scales: Scales[InputSpec]
) -> Array:
    """Fake-quantize a tensor of the stream; `bits` are the traced bits of its layer's input."""
    bits = stream_bits(bits)
    scale, zero_point = (row.reshape(()) for row in scales.at(point.index, bits))
    return fake_quantize(x, scale, zero_point, bits, scales.spec.grid)


def quantize_site_input(
    network: Network,
    quantizers: Quantizers,
    a_bits: Int[Array, " layers"],
    site: Site,
    x: Array,
) -> Array:
    """Fake-quantize a site's input under an allocation.

    An input that is already on the stream's grid of the same bits is not rounded again.
    """
    scales, bits = quantizers.activations, a_bits[site.layer_index]
    if scales is None or not site.has_input:
        return x
    quantized = quantize_input(site, x, bits, scales)
    if quantizers.stream is None or (point := source_of(network, site)) is None:
        return quantized
    return jnp.where(stream_bits(a_bits[point.layer_index]) == bits, x, quantized)


def run_quantized(
    network: Network,
    quantizers: Quantizers,
    w_bits: Int[Array, " layers"],
    a_bits: Int[Array, " layers"],
    inputs: PyTree,
    transform: Transform,
    params: PyTree | None = None,
    rule: Rule = bind,
) -> Any:
    """Run a network as `Network.run` does, and quantize what lies between its layers.

    The tensors of the stream are fake-quantized if the quantizers place activations there,
    and biases are rounded to int32 codes if the specification asks for it.
    """
    activations = quantizers.activations
    if activations is not None and activations.spec.int32_biases:

        def step(site: Site) -> Array | None:
            return product_steps(network, quantizers, w_bits, a_bits, site)

        transform, rule = with_integer_biases(network, inputs, step, transform, rule)
    if (scales := quantizers.stream) is None:
        return network.run(inputs, transform, params, rule)

    def visit(point: Point, x: Array) -> Array:
        return quantize_point(point, x, a_bits[point.layer_index], scales)

    return run_on_stream(network, inputs, transform, visit, params, rule)


def product_steps(
    network: Network,
    quantizers: Quantizers,
    w_bits: Int[Array, " layers"],
    a_bits: Int[Array, " layers"],
    site: Site,
) -> Array | None:
    """Scale of a site's products, input scale times kernel scale, per output feature.

    NaN unless both operands are plain integers. None if products that are summed have
    different scales.
    """
    weights, activations = quantizers.weights, quantizers.activations
    layer = site.layer_index
    if activations is None or not (weights.bits and activations.bits and site.has_input):
        return None
    scale, _ = activations.at(site.index, a_bits[layer])
    table = network.layers[layer]
    rows, columns = kernel_blocks(network, layer, weights)
    whole_rows = columns * table.output_features == table.parameters
    if scale.size != 1 or not whole_rows or rows not in (1, table.output_features):
        return None
    if quantizers.stream is not None and (point := source_of(network, site)) is not None:
        bits = stream_bits(a_bits[point.layer_index])
        shared, _ = quantizers.stream.at(point.index, bits)
        scale = jnp.where(bits == a_bits[layer], shared, scale)
    whole = (w_bits[layer] < FLOAT_BITS) & (a_bits[layer] < FLOAT_BITS)  # plain integers
    return jnp.where(whole, scale * weights.at(layer, w_bits[layer])[0], jnp.nan)


def input_grid(
    site: Site,
    shape: Sequence[Any],
    scale: Float[Array, " blocks"],
    zero_point: Float[Array, " blocks"],
) -> tuple[Array, Array]:
    """Scales and zero points of a site's input, shaped to broadcast against the input.

    Args:
        site: The site.
        shape: Shape of the input; the number of examples may be symbolic.
        scale: Scale of every block of features; blocks have equal size.
        zero_point: Zero point of every block.
    """
    rows, axes = site.features // max(scale.size, 1), site.feature_axes
    ones = [shape[a] if a in axes else 1 for a in range(len(shape))]

    def along(per_block: Float[Array, " blocks"]) -> Array:
        if per_block.size == 1:
            return per_block.reshape((1,) * len(shape))
        per_feature = jnp.repeat(per_block, rows, total_repeat_length=site.features)
        per_axis = per_feature.reshape([shape[a] for a in axes])
        return per_axis.transpose(np.argsort(axes).tolist()).reshape(ones)

    return along(scale), along(zero_point)


@check_kinds
def quantized_logits(
    network: Network,
    quantizers: Quantizers,
    w_bits: Int[Array, " layers"],
    a_bits: Int[Array, " layers"],
    inputs: PyTree,
    params: PyTree | None = None,
) -> Float[Array, "batch *output"]:
    """Logits of the quantized network under an allocation.

    Args:
        network: Float network.
        quantizers: Calibrated quantizers of the network.
        w_bits: Weight scheme numbers (bit-widths of plain integers), traced. 32 leaves a
            kernel unquantized. Bits that were not calibrated are not detected here: see
            `Quantizers.check`.
        a_bits: The same for the layers' inputs.
        inputs: One batch.
        params: Parameters in place of the network's own.
    """
    at_site = functools.partial(quantized_output, network, quantizers, w_bits, a_bits)
    return run_quantized(network, quantizers, w_bits, a_bits, inputs, at_site, params)


def quantized_output(
    network: Network,
    quantizers: Quantizers,
    w_bits: Int[Array, " layers"],
    a_bits: Int[Array, " layers"],
    site: Site,
    x: Array,
    op: Op,
) -> Array:
    """Output of a site under an allocation; a transform of `Network.run` in `site, x, op`."""
    layer = site.layer_index
    x = quantize_site_input(network, quantizers, a_bits, site, x)
    weights = quantizers.weights
    return op(x, quantize_kernel(network, layer, site.kernel, w_bits[layer], weights))
