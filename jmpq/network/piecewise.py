"""Whether a network is piecewise linear between its kernels: no curvature but by products."""

from collections.abc import Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jmpq.network.tap import CUSTOM_RULES, INLINED, Path, Tap, sub_jaxpr

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
    """Whether everything between the sites of the tap is piecewise linear.

    Then every second derivative stems from products of kernels and inputs at the sites; the
    activation functions have none (almost everywhere). Convolutions, dense layers, frozen
    batch statistics, ReLU, pooling and shortcuts are; softmax, GELU, layer normalisation and
    attention are not. Said only of what is known: a primitive not listed here counts as
    curved.
    """
    leaves = jax.tree.leaves(tap.params)
    moving = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in tap.jaxpr.invars]
    moving[: len(leaves)] = [False] * len(leaves)
    return _walk(tap.jaxpr, moving, (), {site.path for site in tap.sites}) is not None


def _walk(jaxpr: Any, moving: Sequence[bool], at: Path, sites: Set[Path]) -> list[bool] | None:
    """Which outputs have a derivative along the data or a kernel; None where one is curved."""
    reached = {v for v, m in zip(jaxpr.invars, moving, strict=True) if m}
    reads = lambda v: not isinstance(v, core.Literal) and v in reached  # noqa: E731
    for index, eqn in enumerate(jaxpr.eqns):
        path, ins = (*at, index), [reads(v) for v in eqn.invars]
        name = eqn.primitive.name
        if path in sites:
            outs = [True]
        elif name in INLINED or name in CUSTOM_RULES:
            outs = _walk(sub_jaxpr(eqn)[0], ins, path, sites)
        elif not any(ins) or name in STEPS:
            outs = [False] * len(eqn.outvars)
        elif _is_piecewise(name, ins):
            outs = [True] * len(eqn.outvars)
        else:
            outs = None
        if outs is None:
            return None
        reached |= {v for v, m in zip(eqn.outvars, outs, strict=True) if m}
    return [reads(v) for v in jaxpr.outvars]


def _is_piecewise(name: str, ins: Sequence[bool]) -> bool:
    if name in PRODUCTS:
        return sum(ins) == 1
    if name == "div":
        return not ins[1]
    if name in ("gather", "dynamic_slice"):
        return not any(ins[1:])
    return name in PIECEWISE
