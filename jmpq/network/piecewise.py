"""What a traced network tells of its curvature and its output before it is evaluated.

Whether it is piecewise linear between its kernels (no curvature but by products), whether it
has derivatives in reverse mode alone, whether it ends in a softmax.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmpq.network.tap import Tap
from jmpq.network.walk import LAYOUT, Path, equations, walk

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
_Part = tuple[str, Path] | None  # "exp", "sum" or "softmax", and where the exponential is


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


def ends_in_softmax(tap: Tap) -> bool:
    """Whether the output is exponentials over their sum along the last axis.

    Nothing is evaluated. Conservative: probabilities that are made in another way are not seen.
    """

    def part(eqn: Any, ins: Sequence[_Part], path: Path) -> list[_Part]:
        name, found = eqn.primitive.name, None
        if name == "exp":
            found = ("exp", path)
        elif name in LAYOUT or name == "stop_gradient":
            found = ins[0]
        elif name == "reduce_sum" and ins[0] is not None and ins[0][0] == "exp":
            if tuple(eqn.params["axes"]) == (eqn.invars[0].aval.ndim - 1,):
                found = ("sum", ins[0][1])
        elif name == "div" and ins[0] is not None and ins[1] == ("sum", ins[0][1]):
            found = ("softmax", ins[0][1])
        return [found] * len(eqn.outvars)

    (output,) = walk(
        tap.jaxpr, tap.consts, [None] * len(tap.jaxpr.invars), part, constant=lambda array: None
    )
    return output is not None and output[0] == "softmax"


def _is_piecewise(name: str, ins: Sequence[bool]) -> bool:
    if name in PRODUCTS:
        return sum(ins) == 1
    if name == "div":
        return not ins[1]
    if name in ("gather", "dynamic_slice"):
        return not any(ins[1:])
    return name in PIECEWISE
