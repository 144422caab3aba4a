"""Second moments of the layers' inputs: the Hessian of a layer's squared output error."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmpq.data.batches import check_finite
from jmpq.network.network import Network
from jmpq.network.patches import input_rows
from jmpq.network.precision import widened
from jmpq.network.sites import Op, Site

HESSIAN_BYTES = 2**30  # memory for the Hessians of one pass over the examples


def layer_hessians(
    network: Network, batches: Sequence[PyTree], *, most_bytes: int = HESSIAN_BYTES
) -> Iterator[tuple[int, Float[np.ndarray, "groups columns columns"]]]:
    """H = XᵀX of every layer that has an input; X are its input rows in the float network.

    If the kernel's matrix (`Network.to_matrix`) changes by Δ, the layer's output changes by
    XΔᵀ. So tr(ΔHΔᵀ) is the squared change of the output, summed over output features and
    positions and averaged over examples. The uses of a layer are summed. Embeddings are left
    out: their rows are looked up, not multiplied.

    Args:
        network: Float network.
        batches: Inputs, batch by batch, without padding.
        most_bytes: Memory for Hessians; layers whose Hessians fit share a pass over the
            examples.

    Yields:
        Layer and its Hessians, float64: one per group of the kernel's rows that has its own
        inputs (see `input_rows`), such as the groups of a grouped convolution.

    Raises:
        ValueError: If the batches hold no example, or a value that is not finite.
    """
    examples = 0
    for batch in batches:
        check_finite(batch, "the calibration inputs")
        examples += jax.tree.leaves(batch)[0].shape[0]
    if not examples:
        raise ValueError("The calibration batches hold no example: give one or more.")
    for layers in _passes(network, batches[0], most_bytes):
        sums: dict[int, np.ndarray] = {}
        for inputs in batches:
            for layer, hessian in _hessians(network, layers, inputs).items():
                sums[layer] = sums.get(layer, 0) + np.asarray(hessian, np.float64)
        for layer in layers:
            yield layer, sums.pop(layer) / examples


def _passes(network: Network, inputs: PyTree, most_bytes: int) -> list[tuple[int, ...]]:
    """Layers that have an input and a kernel, in parts whose Hessians fit in `most_bytes`."""
    layers = tuple(dict.fromkeys(s.layer_index for s in network.sites if s.has_both))
    shapes = jax.eval_shape(lambda x: _hessians(network, layers, x), inputs)
    parts: list[list[int]] = [[]]
    used = 0
    for layer in layers:
        size = 8 * shapes[layer].size
        if parts[-1] and used + size > most_bytes:
            parts.append([])
            used = 0
        parts[-1].append(layer)
        used += size
    return [tuple(part) for part in parts]


@functools.partial(jax.jit, static_argnums=1)
def _hessians(
    network: Network, layers: tuple[int, ...], inputs: PyTree
) -> dict[int, Float[Array, "groups columns columns"]]:
    """Sums over the examples of a batch."""
    sums: dict[int, Array] = {}

    def at_site(site: Site, x: Array, op: Op) -> Array:
        layer = site.layer_index
        if layer in layers and site.has_both:
            rows = input_rows(site, widened(x))
            product = jnp.einsum("gpc,gpd->gcd", rows, rows)
            sums[layer] = sums[layer] + product if layer in sums else product
        return op(x)

    network.run(inputs, at_site)
    return sums
