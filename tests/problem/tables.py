"""A small layer table with numbers that are easy to check by hand."""

import dataclasses
import math

import numpy as np

from jmpq.formats import Choice, choice_grid
from jmpq.network.layers import Layer


def conv(name, inputs, outputs, kernel=3, side=4):
    shape = (kernel, kernel, inputs, outputs)
    parameters = kernel * kernel * inputs * outputs
    return Layer(
        name=name,
        kind="conv",
        kernel=f"{name}/kernel",
        kernel_shape=shape,
        output_axes=(3,),
        input_axes=(2,),
        parameters=parameters,
        macs=parameters * side * side,
        input_shape=(side, side, inputs),
        output_shape=(side, side, outputs),
    )


def dense(name, inputs, outputs):
    return Layer(
        name=name,
        kind="dense",
        kernel=f"{name}/kernel",
        kernel_shape=(inputs, outputs),
        output_axes=(1,),
        input_axes=(0,),
        parameters=inputs * outputs,
        macs=inputs * outputs,
        input_shape=(inputs,),
        output_shape=(outputs,),
    )


def embedding(name, rows, features):
    return Layer(
        name=name,
        kind="embedding",
        kernel=f"{name}/embedding",
        kernel_shape=(rows, features),
        output_axes=(0,),
        input_axes=(1,),
        parameters=rows * features,
        macs=0,
        input_shape=(7,),
        output_shape=(7, features),
    )


LAYERS = (
    conv("stem/conv", 3, 4),  # 108 weights, 1728 MACs
    conv("block0/conv1", 4, 4),  # 144 weights, 2304 MACs
    conv("block0/down", 4, 4, kernel=1),  # 16 weights, 256 MACs
    conv("block1/conv1", 4, 5),  # 180 weights, 2880 MACs
    dense("head", 5, 3),  # 15 weights, 15 MACs
)
NAMES = tuple(layer.name for layer in LAYERS)
GRID = choice_grid([2, 4, 8], [4, 8])


def reference_costs(bits, overhead, unquantized_parameters):
    """Every cost of an allocation, summed layer by layer without a table."""
    size = 4 * unquantized_parameters
    searched_bits, searched_weights, operations, peak = 0, 0, 0, 0
    for layer, scales in zip(LAYERS, overhead.num_scales, strict=True):
        choice = bits.get(layer.name, Choice(32, 32))
        stored = 4 * layer.parameters
        if choice.w_bits < 32:
            stored = math.ceil(layer.parameters * choice.w_bits / 8) + 4 * scales
            stored += math.ceil(scales * choice.w_bits / 8) if overhead.zero_points else 0
        size += stored
        if layer.name in bits:
            searched_bits += 8 * stored
            searched_weights += layer.parameters
        operations += layer.macs * choice.w_bits * choice.a_bits
        ends = (math.prod(layer.input_shape), math.prod(layer.output_shape))
        peak = max(peak, sum(math.ceil(elements * choice.a_bits / 8) for elements in ends))
    return {
        "size_bytes": size,
        "average_bits": searched_bits / searched_weights,
        "bops": operations,
        "activation_bytes": peak,
    }


@dataclasses.dataclass(frozen=True)
class Losses:
    """Stands for a sensitivity result."""

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]
    losses: np.ndarray


def losses_of(choices=GRID, names=NAMES):
    bits = np.array([4.0**-c.w_bits + 4.0**-c.a_bits for c in choices])
    return Losses(tuple(names), tuple(choices), np.arange(1, len(names) + 1)[:, None] * bits)
