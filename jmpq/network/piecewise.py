"""Whether a network is piecewise linear between its kernels: no curvature but by products."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmpq.network.tap import Tap
from jmpq.network.walk import Path, equations, walk

# Linear in all operands together, or piecewise so (max, select, clamp, sort).
PIECEWISE = {
    "abs",
    "add",
    "add_any",
    "broadcast_in_dim",
    "clamp",
    "concatenate",
    "convert_element_type",
    "copy",
    "cumsum",
    "expand_dims",
    "max",
    "min",
    "neg",
    "pad",
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "reduce_window_max",
    "reduce_window_min",
    "reduce_window_sum",
    "reshape",
    "rev",
    "select_n",
    "slice",
    "sort",
    "split",
    "squeeze",
    "stop_gradient",
    "sub",
    "transpose",
}
# Linear in each operand: at most one of them may depend on the data.
PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}
# Constant almost everywhere: what is computed from them has no derivative.
STEPS = {"eq", "ne", "ge", "gt", "le", "lt", "sign", "floor", "ceil", "round", "is_finite"}


def piecewise_linear(tap: Tap) -> bool:
    """Whether everything between the operations of the tap is piecewise linear.

    Then every second derivative stems from products of kernels and inputs; the activation
    functions have none (almost everywhere). Convolutions, dense layers, frozen batch
    statistics, ReLU, pooling and shortcuts are; softmax, GELU, layer normalisation and
    attention are not. Conservative: a primitive not listed here counts as curved, as does one
    whose derivative is the user's own (`reverse_only`).
    """
    paths = {operation.path for operation in tap.operations}
    curved: set[str] = set()

    def moves(eqn: Any, ins: Sequence[bool], path: Path) -> list[bool]:
        """Which outputs have a derivative along the data or a kernel."""
        name = eqn.primitive.name
        if path in paths:
            return [True]
        if not any(ins) or name in STEPS:
            return [False] * len(eqn.outvars)
        if not _is_piecewise(name, ins):
            curved.add(name)
        return [True] * len(eqn.outvars)

    count = len(tap.jaxpr.invars) - len(jax.tree.leaves(tap.inputs))
    moving = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in tap.jaxpr.invars]
    moving[:count] = [False] * count
    walk(tap.jaxpr, tap.consts, moving, moves, constant=lambda array: False)
    return not curved and not reverse_only(tap)


def reverse_only(tap: Tap) -> bool:
    """Whether the function can be differentiated in reverse mode alone.

    That is so where a part of it has a derivative rule of its own for reverse mode
    (``jax.custom_vjp``), to which JAX applies no other; its body may tell another derivative.
    """
    return any(eqn.primitive.name.startswith("custom_vjp_call") for eqn in equations(tap.jaxpr))


def _is_piecewise(name: str, ins: Sequence[bool]) -> bool:
    if name in PRODUCTS:
        return sum(ins) == 1
    if name == "div":
        return not ins[1]
    if name in ("gather", "dynamic_slice"):
        return not any(ins[1:])
    return name in PIECEWISE
