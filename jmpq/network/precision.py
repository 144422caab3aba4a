"""Precisions: networks in half precision, and products of a network in a lower one.

A network of bfloat16 or float16 parameters computes as its author wrote it, but is held and
measured in float32: scales, codes, losses and derivatives along moves lose nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jmpq.network.walk import Path, Rule, bind

PRODUCTS = ("conv_general_dilated", "dot_general")


def is_half(dtype: Any) -> bool:
    """Whether it is a floating type of less than 32 bits."""
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.dtype(dtype).itemsize < 4


def widened(x: Array) -> Array:
    """Half precision as float32, the same values; everything else as it is."""
    return x.astype(jnp.float32) if is_half(x.dtype) else x


def held_in_float32(
    apply: Callable[[PyTree, PyTree], PyTree], params: PyTree
) -> Callable[[PyTree, PyTree], PyTree]:
    """The same function of `widened` parameters, with widened outputs.

    The function itself gets its parameters in the types of `params`.
    """
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(params)]

    def held(params: PyTree, inputs: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten(params)
        own = [x.astype(dtype) for x, dtype in zip(leaves, dtypes, strict=True)]
        return jax.tree.map(widened, apply(jax.tree.unflatten(tree, own), inputs))

    return held


def products_in(dtype: Any) -> Rule:
    """A rule of `Network.run`: convolutions and matrix products take and give `dtype`.

    Their inputs are cast to it and their outputs back to what they were, so that parameters,
    scales, normalisation, activations, logits and all gradients but those inside products
    stay as precise as they were. Products inside loops (`scan`, `while`, `cond`) are left.
    """

    def rule(eqn: Any, ins: Sequence[Any], path: Path) -> list:
        if eqn.primitive.name not in PRODUCTS:
            return bind(eqn, ins)
        params = {**eqn.params, "preferred_element_type": jnp.dtype(dtype)}
        out = eqn.primitive.bind(*(x.astype(dtype) for x in ins), **params)
        return [out.astype(eqn.outvars[0].aval.dtype)]

    return rule
