"""Identification of layers, by their kernels, in a file that another program wrote.

Converters fuse later operations into a layer and invent names. The kernel remains, with each
output channel possibly multiplied by a factor (a normalisation after the layer).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jmpq.network.network import Network

ROUNDING = 1e-4  # relative: converters multiply in float32


def kernel_matrices(network: Network) -> list[Float[np.ndarray, "outputs inputs"]]:
    """Every layer's kernel as a matrix."""
    pairs = enumerate(network.kernels())
    return [np.asarray(network.to_matrix(i, kernel), np.float32) for i, kernel in pairs]


def find_layer(
    seen: Float[np.ndarray, "outputs inputs"],
    matrices: Sequence[Float[np.ndarray, "_ _"]],
) -> tuple[int, Float[np.ndarray, " outputs"]] | None:
    """Position of the layer with a given kernel, and the factor of each output channel.

    A channel whose weights are all zero has the factor 0. None if no layer has the kernel.
    """
    for layer, matrix in enumerate(matrices):
        if matrix.shape != seen.shape:
            continue
        square = np.einsum("oi,oi->o", matrix, matrix, dtype=np.float64)
        products = np.einsum("oi,oi->o", matrix, seen, dtype=np.float64)
        factor = products / np.where(square > 0, square, 1)
        error = np.abs(seen - factor[:, None] * matrix).max(initial=0)
        if error <= ROUNDING * np.abs(seen).max(initial=0):
            return layer, factor
    return None
