"""The walk over a jaxpr: everything that reads or evaluates a traced function is a rule of it.

A jaxpr is a list of equations. The walk visits them in order, hands each to a rule with the
values at its inputs, and keeps the values that the rule returns for its outputs. What the
values are is the rule's choice: arrays evaluate the function, arrays beside tangents
differentiate it, sets of sites tell what feeds what.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval

Path = tuple[int, ...]  # position of an equation: one index per level of nesting
Rule = Callable[[Any, Sequence[Any], Path], list]  # (equation, inputs, path) -> outputs

# Primitives that only call their body.
INLINED = {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"}
CUSTOM_RULES = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
# Primitives that only rearrange or cast elements, where the element count stays.
LAYOUT = {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "reshape",
    "rev",
    "squeeze",
    "transpose",
}


def is_call(eqn: Any, path: Path = ()) -> bool:
    """Whether an equation does nothing but call its body once: ``jit``, ``remat``, a function
    with a custom derivative. Loops and branches do more.
    """  # noqa: D205
    return eqn.primitive.name in INLINED or eqn.primitive.name in CUSTOM_RULES


def walk(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    rule: Rule,
    *,
    at: Path = (),
    enter: Callable[[Any, Path], bool] = is_call,
    constant: Callable[[Any], Any] = lambda array: array,
    read: Callable[[Any, int], Any] = lambda value, uses: value,
) -> list:
    """Visit the equations of a jaxpr in the order of execution.

    Args:
        jaxpr: Open jaxpr.
        consts: Arrays of ``jaxpr.constvars``.
        args: Values of ``jaxpr.invars``; any type that the rule understands.
        rule: Function that returns the values at an equation's outputs; `bind` evaluates the
            equation.
        at: Path of the equation whose body the jaxpr is.
        enter: Whether the walk goes on in the body of an equation, called with the equation
            and its path, instead of handing the equation to the rule. A body's equations get
            the path of the caller, then their own index.
        constant: Value of an array that the jaxpr holds (a constant or a literal).
        read: Value that a reader of a variable gets, called with the variable's value and the
            number of times that its jaxpr reads the variable (an output of the jaxpr counts).

    Returns:
        Values of ``jaxpr.outvars``.
    """
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    uses = collections.Counter(
        v
        for variables in (*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars)
        for v in variables
        if not isinstance(v, core.Literal)
    )

    def value(v: Any) -> Any:
        return constant(v.val) if isinstance(v, core.Literal) else read(env[v], uses[v])

    for index, eqn in enumerate(jaxpr.eqns):
        path, ins = (*at, index), [value(v) for v in eqn.invars]
        if enter(eqn, path):
            outs = walk(
                *body(eqn), ins, rule, at=path, enter=enter, constant=constant, read=read
            )
        else:
            outs = rule(eqn, ins, path)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [value(v) for v in jaxpr.outvars]


def bind(eqn: Any, ins: Sequence[Any], path: Path = ()) -> list:
    """Evaluate an equation on arrays: the rule of a plain evaluation."""
    outs = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]


def body(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """Jaxpr and constants that an equation calls (`is_call`)."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return opened(eqn.params[name])
    raise NotImplementedError(
        f"`{eqn.primitive.name}` keeps its body where JAX never did before."
    )


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Jaxpr and constants, of a closed or an open one (one class since JAX 0.12)."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def without_dead_code(closed: Any) -> Any:
    """A closed jaxpr without what none of its outputs needs, in bodies too; inputs stay."""
    jaxpr, consts = opened(closed)
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return core.ClosedJaxpr(live, consts)


def scan_counts(params: Any) -> tuple[int, int]:
    """Constants and carried values of a ``scan``, which its operands begin with."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since JAX 0.12
    return len(consts), len(carry)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations at any depth, those of loops and branches too, each body once."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)
