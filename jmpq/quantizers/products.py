"""Products of two activations: the queries, keys and values of attention.

They have no kernel, so a layer table has no row for them. `quantize_products` puts both
operands of all of them on one integer grid. `with_cache` makes rows of keys and values, which
a decoder that generates text keeps from token to token (the KV cache): their formats are chosen
with those of kernels and inputs, under the same budgets, and have a cost, `kv_bytes`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.kinds import check_kinds
from jmpq.network.layers import Layer, layer_type
from jmpq.network.network import Network
from jmpq.network.sites import Cached, Operation, Product, Site
from jmpq.network.tap import Tap
from jmpq.network.walk import Path, bind
from jmpq.quantizers.uniform import fake_quantize, scale_of_range


@check_kinds
def quantize_products(network: Network, bits: int) -> Network:
    """The network with both operands of every product of two activations quantized.

    In attention these products are query times key and probabilities times value. They have no
    kernel, so they are not layers and have no choice: their loss is part of the network that
    is analysed afterwards. Keys and values that are rows of the table (`with_cache`) are left
    to their choice. Each operand is rounded to nearest on the affine grid between its minimum
    and maximum, separately for every batched slice (example and head). Gradients are
    straight-through. Products inside loops (``scan``) are left as they are.

    Args:
        network: Float network; it is not changed.
        bits: Bits of the operands, 1 to 16.

    Raises:
        ValueError: If the bits are out of range, or nothing multiplies two activations.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"{bits} bits of products: expected 1 to 16.")
    products: set[Path] = set()

    def apply(params: PyTree, inputs: PyTree) -> Array:
        places = network.tap.traced(inputs)[2]

        def rule(eqn: Any, ins: Sequence[Any], path: Path) -> list:
            known = [isinstance(x, _Data) for x in ins]
            values = [x.value if isinstance(x, _Data) else x for x in ins]
            if eqn.primitive.name == "dot_general" and all(known):
                products.add(path)
                chosen = 1 - places[path].operand if path in places else None
                axes = eqn.params["dimension_numbers"][1]
                values = [
                    x if i == chosen else _rounded(x, bits, kept)
                    for i, (x, kept) in enumerate(zip(values, axes, strict=True))
                ]
            outs = bind(eqn, values)
            return [_Data(x) for x in outs] if any(known) else outs

        wrapped = jax.tree.map(_Data, inputs)
        return network.tap.run(params, wrapped, rule=rule, enter_all=True).value

    old = network.tap
    tap = Tap(apply, old.params, old.inputs, old.pieces, old.cached)
    if not products:
        raise ValueError("Nothing in the network multiplies two activations.")
    assert not old.cached or len(tap.products) == len(old.products)
    return dataclasses.replace(network, apply=apply, tap=tap)


@dataclasses.dataclass(frozen=True, eq=False)
class _Data:
    """A value that depends on the inputs; JAX sees it as a leaf."""

    value: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> Any:
        return self.value.dtype


def _rounded(
    x: Float[Array, "*shape"], bits: int, kept: Sequence[int]
) -> Float[Array, "*shape"]:
    """Fake-quantize every slice along the axes `kept` on its own affine grid."""
    others = tuple(axis for axis in range(x.ndim) if axis not in kept)
    still = jax.lax.stop_gradient(x)
    low, high = still.min(others, keepdims=True), still.max(others, keepdims=True)
    scale, zero_point = scale_of_range(low, high, jnp.array(bits), "affine")
    rounded = fake_quantize(still, scale, zero_point, jnp.array(bits), "affine")
    return x + jax.lax.stop_gradient(rounded - x)  # straight-through at the ends too


@check_kinds
def with_cache(network: Network) -> Network:
    """The network with a row of the layer table for the keys and the values of every attention.

    The function and the parameters stay. A row is called ``LAYER:keys`` or ``LAYER:values``
    after the layer that they come from, and behaves as a layer with an input and no kernel:
    the input, as it enters the product (after rotary positions), has moves and formats of its
    own; a choice leaves its weights at 32 bits. Features are those of one token, all heads in
    a row.

    Values are told by what they are multiplied with, which has passed the product of queries
    and keys. Keys are told from queries by the name of their layer (``k_proj``, ``key``, ...).

    Args:
        network: Network; it is not changed.

    Raises:
        ValueError: If the network keeps no keys and values, has rows of them already, or keys
            cannot be told from queries.
    """
    if network.tap.caches:
        raise ValueError("The network has rows of keys and values already.")
    site_at = {site.operation.path: site for site in network.sites}
    found: list[tuple[Cached, Site]] = []
    for number, product in enumerate(network.tap.products):
        if sum(product.passed) != 1:
            continue
        own = product.passed.index(False)
        scores = _scores(network.tap.products[:number], product.origins[1 - own])
        if scores is None or len(product.origins[own]) != 1:
            continue
        keys = _keys(scores, network.tap.products[scores], site_at)
        (path,) = product.origins[own]
        if path in site_at:
            found += [keys, (Cached(number, own, "values"), site_at[path])]
    if not found:
        raise ValueError(
            "The network keeps no keys and values: nowhere is a product of two activations "
            "multiplied with the output of a layer, as in attention."
        )
    old, cached = network.tap, tuple(dict.fromkeys(kept for kept, _ in found))
    sources = {kept: site for kept, site in found}
    tap = Tap(old.apply, old.params, old.inputs, old.pieces, cached)
    rows = _rows(network, tap, [sources[kept] for kept in cached])
    order: dict[int, int] = {}
    for position, operation in enumerate(tap.every):
        order.setdefault(operation.leaf, position)  # of the first use
    layers = [*zip(network.leaves, network.layers, strict=True), *rows]
    layers.sort(key=lambda row: order[row[0][0]])
    return dataclasses.replace(
        network,
        tap=tap,
        layers=tuple(layer for _, layer in layers),
        leaves=tuple(group for group, _ in layers),
    )


def _scores(before: tuple[Product, ...], origins: frozenset) -> int | None:
    """Position of the product of queries and keys that an operand has passed."""
    for number in reversed(range(len(before))):
        one, other = before[number].origins
        if not any(before[number].passed) and one and other and one | other <= origins:
            return number
    return None


def _keys(number: int, product: Product, site_at: dict) -> tuple[Cached, Site]:
    """Which operand of a product has the keys, and the layer that they come from."""
    sites = [
        site_at[path] if len(own) == 1 and (path := next(iter(own))) in site_at else None
        for own in product.origins
    ]
    types = ["" if site is None else layer_type(site.layer) for site in sites]
    for operand, site in enumerate(sites):
        if site is not None and types[operand] == "k" and types[1 - operand] != "k":
            return Cached(number, operand, "keys"), site
    names = ", ".join(repr(site.name) for site in sites if site is not None) or "several layers"
    raise ValueError(
        f"Keys cannot be told from queries: both come from {names}. A layer of its own whose "
        "name ends in 'k_proj', 'key' or 'k' has to make the keys."
    )


def _rows(
    network: Network, tap: Tap, sources: list[Site]
) -> list[tuple[tuple[int, ...], Layer]]:
    """Rows of the table, each with the number that stands for its kernel."""
    rows, used = [], set[str]()
    for kept, operation, source in zip(tap.cached, tap.caches, sources, strict=True):
        name = f"{source.name}:{kept.role}"
        name = next(n for i in range(1, len(tap.cached) + 1)
                    if (n := name if i == 1 else f"{name}#{i}") not in used)  # fmt: skip
        used.add(name)
        layer = Layer(
            name=name,
            kind="cache",
            kernel="",
            kernel_shape=operation.kernel_shape,
            output_axes=operation.output_axes,
            input_axes=operation.input_axes,
            parameters=0,
            macs=operation.macs,
            input_shape=_token_shape(operation),
            output_shape=operation.output_shape,
        )
        rows.append(((operation.leaf,), layer))
    return rows


def _token_shape(operation: Operation) -> tuple[int, ...]:
    """Shape of one example's input, positions first, then what one token has."""
    shape = operation.eqn.invars[1 - operation.operand].aval.shape
    features = [shape[axis] for axis in operation.feature_axes]
    heads = [operation.repeat] if operation.repeat > 1 else []
    positions = math.prod(operation.input_shape) // math.prod((*features, *heads))
    return positions, *heads, *features
