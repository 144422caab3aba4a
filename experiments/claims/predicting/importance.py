"""Importance is not fragility: what ranks the layers of ResNet-20, rounded alone."""

from collections.abc import Mapping

import numpy as np

from experiments.claims.claim import Claim, Json, Made, Path
from experiments.figures.perturbation import TRACE, ranks, ratios

NAME = "importance"
MADE = {
    NAME: Made(
        sha256="b2aebed7296dbeb2",
        modules=("experiments.perturbation.importance",),
        stale="Cells measured by the code of commit 9876730, whose configuration named three "
        "networks and whose tables were transposed.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims; every statistic is that of the worst draw."""
    result = results[NAME]
    bits = list(result["config"]["w_bits"])
    more = [i for i, b in enumerate(bits) if b >= 3]
    rho = {rounding: ranks(result, rounding) for rounding in ("nearest", "gptq")}
    scale = {rounding: ratios(result, rounding) for rounding in ("nearest", "gptq")}

    def decides(metric: str, rounding: str, width: int = 4) -> Path:
        """The losses of all layers in one draw at one bit-width."""
        (cell,) = (i for i, c in enumerate(result["cells"])
                   if (c["draw"], c["rounding"]) == (0, rounding))  # fmt: skip
        return (NAME, "cells", cell, "losses", metric, bits.index(width))

    def both(of: dict[str, dict[str, np.ndarray]], name: str) -> np.ndarray:
        return np.stack([of["nearest"][name], of["gptq"][name]])

    direction, size = both(scale, "gauss_newton"), scale["gptq"]["hawq_trace"][:, more]
    fisher = both(scale, "empirical_fisher")
    return [
        Claim(
            id="importance.direction",
            says="Gauss-Newton, which knows the direction, ranks the layers by their damage: ρ "
            "is at least 0.8 at 2 bits and 0.85 from 3 bits on, with both roundings.",
            value=min(
                both(rho, "gauss_newton").min() / 0.8,
                both(rho, "gauss_newton")[..., more].min() / 0.85,
            ),
            least=1,
            decides=decides("gauss_newton", "nearest"),
        ),
        Claim(
            id="importance.direction_scale",
            says="Its scale is right: the median of predicted over measured is 0.8 to 1.2.",
            value=max(direction.max() / 1.2, 0.8 / direction.min()),
            most=1,
            decides=decides("gauss_newton", "gptq"),
        ),
        Claim(
            id="importance.trace",
            says="The trace alone ranks them with a ρ of 0.25 to 0.75 rounded to nearest.",
            value=abs(rho["nearest"][TRACE] - 0.5).max(),
            most=0.25,
            decides=decides("hawq_trace", "nearest"),
        ),
        Claim(
            id="importance.trace_gptq",
            says="Rounded by Hessians, from 3 bits on, the trace alone has a ρ of 0.2 at most.",
            value=rho["gptq"][TRACE][:, more].max(),
            most=0.2,
            decides=decides("squared_error", "gptq"),
        ),
        Claim(
            id="importance.size",
            says="Times the squared error, as in HAWQ-V2, it has a ρ of 0.55 to 0.95 rounded "
            "to nearest.",
            value=abs(rho["nearest"]["hawq_trace"] - 0.75).max(),
            most=0.2,
            decides=decides("hawq_trace", "nearest"),
        ),
        Claim(
            id="importance.size_gptq",
            says="Rounded by Hessians, from 3 bits on, that product has a ρ of 0.3 to 0.65.",
            value=abs(rho["gptq"]["hawq_trace"][:, more] - 0.475).max(),
            most=0.175,
            decides=decides("hawq_trace", "gptq"),
        ),
        Claim(
            id="importance.size_gptq_scale",
            says="It is then 6 to 12 times too large, in the median.",
            value=max(size.max() / 12, 6 / size.min()),
            most=1,
            decides=decides("hawq_trace", "gptq"),
        ),
        Claim(
            id="importance.fisher",
            says="The empirical Fisher ranks with a ρ of at least 0.7, and is 1.9 to 5.5 times "
            "too large.",
            value=max(
                0.7 / both(rho, "empirical_fisher").min(),
                fisher.max() / 5.5,
                1.9 / fisher.min(),
            ),
            most=1,
            decides=decides("empirical_fisher", "gptq"),
        ),
    ]
