"""What a function will cost, read from its jaxpr before anything is compiled or run."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

# Results without memory of their own: views, and what XLA fuses into its reader.
VIEWS = {
    "reshape",
    "squeeze",
    "broadcast_in_dim",
    "expand_dims",
    "optimization_barrier",
    "copy",
}
VIEWS |= {"gt", "ge", "lt", "le", "eq", "ne", "convert_element_type"}
VIRTUAL = {"iota"}
LOOPS = {"scan", "while"}
# Whatever else has more than one reader or is not elementwise is written to memory.
WRITTEN = {
    "conv_general_dilated",
    "dot_general",
    "transpose",
    "concatenate",
    "gather",
    "scatter",
    "scatter-add",
    "sort",
    "reduce_sum",
    "reduce_max",
    "reduce_window",
    "rev",
    "pad",
    "slice",
    "dynamic_slice",
    "dynamic_update_slice",
}


class ProgramCost(NamedTuple):
    """Of one call of a function on one device."""

    bytes: int  # peak of intermediate results and outputs, without the arguments
    operations: int  # multiplications and additions of convolutions and matrix products


def program_cost(function: Callable[..., Any], *args: Any) -> ProgramCost:
    """Peak memory and operations of a function by a walk through its jaxpr.

    Every result lives from its equation to its last use, equations run in order; views are
    free, and an elementwise result takes the place of an operand that dies with it. XLA fuses
    and reorders, and convolutions have work space: its own figure may be several times as high.

    Args:
        function: Any function that JAX can trace.
        args: Arrays, or their shapes and dtypes (`jax.ShapeDtypeStruct`).
    """
    return _walk(jax.make_jaxpr(function)(*args).jaxpr)


def _walk(jaxpr: Any) -> ProgramCost:
    owner: dict[Any, Any] = {}  # of a view: the result whose memory it shows

    def base(var: Any) -> Any:
        while var in owner:
            var = owner[var]
        return var

    last: dict[Any, int] = {}  # equation that uses a result or one of its views last
    for i, eqn in enumerate(jaxpr.eqns):
        inputs = _variables(eqn.invars)
        if eqn.primitive.name in VIEWS:
            owner.update(zip(eqn.outvars, inputs, strict=False))
        last.update({base(v): i for v in inputs})
    last.update({base(v): len(jaxpr.eqns) for v in _variables(jaxpr.outvars)})

    live: dict[Any, int] = {}
    now = peak = operations = 0
    for i, eqn in enumerate(jaxpr.eqns):
        inner = _inside(eqn)
        operations += inner.operations
        if eqn.primitive.name in VIEWS | VIRTUAL:
            made = {}
        else:
            made = {v: _bytes(v) for v in eqn.outvars}
        dying = {base(v) for v in _variables(eqn.invars) if last[base(v)] == i} & live.keys()
        reused = 0
        if eqn.primitive.name not in WRITTEN and not _bodies(eqn):
            reused = min(sum(made.values()), max((live[v] for v in dying), default=0))
        peak = max(peak, now + max(inner.bytes, sum(made.values()) - reused))
        now -= sum(live.pop(v) for v in dying)
        kept = {v: size for v, size in made.items() if last.get(v, i) > i}
        live |= kept
        now += sum(kept.values())
    return ProgramCost(peak, operations)


def _inside(eqn: Any) -> ProgramCost:
    """Of one equation: what its bodies take, or its multiplications and additions."""
    match eqn.primitive.name:
        case "conv_general_dilated":
            kernel = eqn.invars[1].aval
            outputs = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            return ProgramCost(
                0, 2 * eqn.outvars[0].aval.size * (kernel.size // max(outputs, 1))
            )
        case "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            along = math.prod(eqn.invars[0].aval.shape[a] for a in contract)
            return ProgramCost(0, 2 * eqn.outvars[0].aval.size * along)
    found = [_walk(body) for body in _bodies(eqn)]
    if not found:
        return ProgramCost(0, 0)
    if eqn.primitive.name == "cond":
        return ProgramCost(*(max(costs) for costs in zip(*found, strict=True)))
    held = sum(_bytes(v) for v in eqn.outvars) if eqn.primitive.name in LOOPS else 0
    runs = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    return ProgramCost(
        held + max(cost.bytes for cost in found), runs * sum(cost.operations for cost in found)
    )


def _bodies(eqn: Any) -> list[Any]:
    """Jaxprs that run inside an equation; of a custom derivative only the function itself."""
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr", "branches")
    found = [eqn.params[name] for name in names if name in eqn.params][:1]
    bodies = found[0] if found and isinstance(found[0], tuple) else found
    return [getattr(body, "jaxpr", body) for body in bodies]


def _variables(values: Any) -> list[Any]:
    return [v for v in values if not isinstance(v, core.Literal)]


def _bytes(var: Any) -> int:
    aval = var.aval
    size = getattr(aval, "size", 0)
    return size * getattr(getattr(aval, "dtype", None), "itemsize", 0)
