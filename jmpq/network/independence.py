"""Whether every example's output is its own: no row of the output depends on other examples.

Sensitivities are means over examples of what one example's loss does, so batch statistics, a
softmax or a mean over the batch make them wrong without an error. Nothing is evaluated: in the
function traced with two examples and with three, the axes whose lengths differ belong to the
batch. A value that depends on the inputs and has not exactly one such axis was made of several
examples. Permutations of the batch by an index are not seen.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend import core

from jmpq.network.walk import body, is_call, opened, scan_counts

# Along the axis of these parameters, every output element depends on several input elements.
ALONG = {
    "cumsum": "axis",
    "cumprod": "axis",
    "cummax": "axis",
    "cummin": "axis",
    "cumlogsumexp": "axis",
    "sort": "dimension",
    "rev": "dimensions",
}


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of a value.

    Attributes:
        data: Whether it depends on the inputs.
        mixed: Operation by which one example's part came to depend on others, if any.
    """

    data: bool = False
    mixed: str | None = None


FIXED = _Value()


def mixing(two: Any, three: Any, inputs: int) -> str | None:
    """The operation by which an output's row depends on other examples, or None.

    Args:
        two: Closed jaxpr of two examples.
        three: The same function's of three.
        inputs: Number of its last arguments that are examples.

    Raises:
        ValueError: If the function does not do the same for two examples and for three.
    """
    (one, _), (other, _) = opened(two), opened(three)
    args = [FIXED] * (len(one.invars) - inputs) + [_Value(data=True)] * inputs
    return next((x.mixed for x in _flow(one, other, args) if x.mixed), None)


def _flow(two: Any, three: Any, args: Sequence[_Value]) -> list[_Value]:
    env: dict[Any, _Value] = dict.fromkeys(two.constvars, FIXED)
    env.update(zip(two.invars, args, strict=True))

    def value(v: Any) -> _Value:
        return FIXED if isinstance(v, core.Literal) else env[v]

    names = [[eqn.primitive.name for eqn in jaxpr.eqns] for jaxpr in (two, three)]
    if names[0] != names[1]:
        raise ValueError(
            "The network computes something else for two examples than for three; it must not "
            "branch on the size of the batch."
        )
    for eqn, other in zip(two.eqns, three.eqns, strict=True):
        ins = [value(v) for v in eqn.invars]
        env.update(zip(eqn.outvars, _results(eqn, other, ins), strict=True))
    return [value(v) for v in two.outvars]


def _results(two: Any, three: Any, ins: Sequence[_Value]) -> list[_Value]:
    """Values at the outputs of an equation."""
    data = any(x.data for x in ins)
    mixed = next((x.mixed for x in ins if x.mixed), None)
    if not data:
        return [FIXED] * len(two.outvars)
    if is_call(two):
        return _flow(body(two)[0], body(three)[0], ins)
    if (inside := _bodies(two, three, ins)) is not None:
        results = [FIXED] * len(two.outvars)
        for values in inside:
            results = list(map(_merged, results, values))
        return results
    outs = zip(two.outvars, three.outvars, strict=True)
    return [_Value(data, mixed or _mixes(two, one, other)) for one, other in outs]


def _bodies(two: Any, three: Any, ins: Sequence[_Value]) -> list[list[_Value]] | None:
    """Results of the bodies of a loop or a branch; None for anything else."""
    params, others = two.params, three.params
    match two.primitive.name:
        case "scan" if params["length"] == others["length"]:
            jaxprs = opened(params["jaxpr"])[0], opened(others["jaxpr"])[0]
            first, carries = scan_counts(params)
            carry = list(ins[first : first + carries])
            outs: list[_Value] = []
            for _ in range(2):  # what the first step mixes, the second one reads
                args = [*ins[:first], *carry, *ins[first + carries :]]
                outs = _flow(*jaxprs, args)
                carry = list(map(_merged, carry, outs[:carries]))
            return [[*carry, *outs[carries:]]]
        case "while":
            first = params["cond_nconsts"]
            second = first + params["body_nconsts"]
            carry = list(ins[second:])
            for _ in range(2):
                step = opened(params["body_jaxpr"])[0], opened(others["body_jaxpr"])[0]
                carry = list(map(_merged, carry, _flow(*step, [*ins[first:second], *carry])))
            goes = opened(params["cond_jaxpr"])[0], opened(others["cond_jaxpr"])[0]
            (stop,) = _flow(*goes, [*ins[:first], *carry])
            # Mapped over examples, a loop has a predicate for each.
            mapped = goes[0].outvars[0].aval.shape != ()
            number = FIXED if mapped else _decided(stop, "`while`")
            return [carry, [number] * len(carry)]
        case "cond":
            branches = zip(params["branches"], others["branches"], strict=True)
            values = [
                _flow(opened(one)[0], opened(other)[0], ins[1:]) for one, other in branches
            ]
            return [*values, [_decided(ins[0], "`cond`")] * len(two.outvars)]
    return None


def _decided(scalar: _Value, name: str) -> _Value:
    """What a scalar decides for all examples at once."""
    return _Value(data=True, mixed=scalar.mixed or name) if scalar.data else FIXED


def _mixes(eqn: Any, two: Any, three: Any) -> str | None:
    """The name of an equation one of whose outputs is made of several examples."""
    shapes = two.aval.shape, three.aval.shape
    grown = [a for a, (m, n) in enumerate(zip(*shapes, strict=True)) if m != n]
    name = eqn.primitive.name
    along = eqn.params[ALONG[name]] if name in ALONG else ()
    along = along if isinstance(along, tuple) else (along,)
    if (
        len(grown) == 1
        and shapes[0][grown[0]] * 3 == shapes[1][grown[0]] * 2
        and grown[0] not in along
        and (name != "scan" or scan_counts(eqn.params)[1] == 0)  # over the batch itself
    ):
        return None
    where = str(eqn.source_info.name_stack)
    return f"`{name}`" + (f" in {where}" if where else "")


def _merged(one: _Value, other: _Value) -> _Value:
    return _Value(one.data or other.data, one.mixed or other.mixed)
