"""Products of a network in a lower precision, everything else as it is."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jmpq.network.walk import Path, Rule, bind

PRODUCTS = ("conv_general_dilated", "dot_general")


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
