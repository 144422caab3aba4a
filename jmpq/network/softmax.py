"""Whether a network ends in a softmax: its outputs are then probabilities, not logits."""

from collections.abc import Sequence
from typing import Any

from jmpq.network.tap import Tap
from jmpq.network.walk import LAYOUT, Path, walk

_Part = tuple[str, Path] | None  # "exp", "sum" or "softmax", and where the exponential is


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
