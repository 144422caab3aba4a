"""Products of two activations on integer grids: the queries, keys and values of attention."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jmpq.network.network import Network
from jmpq.network.tap import Tap
from jmpq.network.walk import Path, bind
from jmpq.quantizers.uniform import fake_quantize, scale_of_range


def quantize_products(network: Network, bits: int) -> Network:
    """The network with both operands of every product of two activations quantized.

    In attention these are query and key, and probabilities and value: no kernel, so no layer
    of the table and no choice; what they lose is part of the network that is then analysed.
    Operands are rounded to nearest on the affine grid that spans their least and greatest
    value, for every example (and head: every batched slice) by itself, with straight-through
    gradients. Products inside loops (``scan``) stay.

    Args:
        network: Not changed.
        bits: Bits of the operands, 1 to 16.

    Raises:
        ValueError: If the bits do not exist on the grid, or nothing multiplies activations.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"{bits} bits of products: expected 1 to 16.")
    products: set[Path] = set()

    def rule(eqn: Any, ins: Sequence[Any], path: Path) -> list:
        known = [isinstance(x, _Data) for x in ins]
        values = [x.value if isinstance(x, _Data) else x for x in ins]
        if eqn.primitive.name == "dot_general" and all(known):
            products.add(path)
            axes = eqn.params["dimension_numbers"][1]
            values = [_rounded(x, bits, kept) for x, kept in zip(values, axes, strict=True)]
        outs = bind(eqn, values)
        return [_Data(x) for x in outs] if any(known) else outs

    def apply(params: PyTree, inputs: PyTree) -> Array:
        wrapped = jax.tree.map(_Data, inputs)
        return network.tap.run(params, wrapped, rule=rule, enter_all=True).value

    tap = Tap(apply, network.tap.params, network.tap.inputs, network.tap.pieces)
    if not products:
        raise ValueError("Nothing in the network multiplies two activations.")
    return dataclasses.replace(network, apply=apply, tap=tap)


@dataclasses.dataclass(frozen=True, eq=False)
class _Data:
    """A value that depends on the inputs; a leaf to JAX."""

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
    """On the grid of every slice along the axes `kept`."""
    others = tuple(axis for axis in range(x.ndim) if axis not in kept)
    still = jax.lax.stop_gradient(x)
    low, high = still.min(others, keepdims=True), still.max(others, keepdims=True)
    scale, zero_point = scale_of_range(low, high, jnp.array(bits), "affine")
    rounded = fake_quantize(still, scale, zero_point, jnp.array(bits), "affine")
    return x + jax.lax.stop_gradient(rounded - x)  # at the ends of the range too
