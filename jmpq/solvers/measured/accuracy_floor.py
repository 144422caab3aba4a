"""The cheapest allocation whose measured quality stays above a floor."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jmpq.allocation import Allocation
from jmpq.solvers.knapsack.pareto import Hull
from jmpq.solvers.measured.objective_search import Measurement


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CheapestAbove:
    """The cheapest allocation above a floor, by bisection along the hull.

    Attributes:
        point: The cheapest point of the hull that measured at least the floor.
        allocation: Its allocation.
        cost: Its cost.
        quality: Its measured quality.
        floor: What it had to stay above.
        measured: Every measured point and its quality, in the order of measuring.
        bracketed: Whether the measured point below it fell short; False where the cheapest
            point of all is good enough.
    """

    point: int
    allocation: Allocation
    cost: float
    quality: float
    floor: float
    measured: tuple[tuple[int, float], ...]
    bracketed: bool


def cheapest_above(
    hull: Hull,
    evaluate: Measurement,
    floor: float,
    *,
    limit: float | None = None,
    steps: int = 8,
    progress: Callable[[int, float], None] = lambda point, quality: None,
) -> CheapestAbove:
    """Bisect the model's trade-offs of loss and cost by real measurements.

    The measured quality need not rise from point to point: what comes back measured at least
    the floor, and a cheaper point, `steps` halvings away, did not. Points in between were
    not measured.

    Args:
        hull: Trade-offs by the model, by rising cost.
        evaluate: Measured quality (accuracy, say) of allocations, greater is better.
        floor: Least quality accepted.
        limit: Most cost; the whole hull where not given.
        steps: Halvings of the bracket; log2 of the points is enough to end at two neighbours.
        progress: Called with (point, quality) after every measurement.

    Raises:
        ValueError: If the dearest point within the limit measures below the floor, or a
            measurement is not a number.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one halving is needed.")
    known: dict[int, float] = {}

    def quality(point: int) -> float:
        if point not in known:
            values: Float[np.ndarray, " one"] = np.asarray(
                evaluate([hull.allocation(point)]), np.float64
            )
            if values.shape != (1,) or np.isnan(values[0]):
                raise ValueError(f"The evaluation must return one number, got {values}.")
            known[point] = float(values[0])
            progress(point, known[point])
        return known[point]

    low, high = 0, len(hull.costs) - 1 if limit is None else hull.within(limit)
    if quality(high) < floor:
        raise ValueError(
            f"The dearest allocation within {hull.costs[high]:.10g} {hull.name} measures "
            f"{known[high]:.6g}, below the floor of {floor:.6g}. Lower the floor, or allow "
            "more cost or more bits."
        )
    if quality(low) >= floor:
        high = low
    for _ in range(steps):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        low, high = (low, middle) if quality(middle) >= floor else (middle, high)
    return CheapestAbove(
        point=high,
        allocation=hull.allocation(high),
        cost=float(hull.costs[high]),
        quality=known[high],
        floor=floor,
        measured=tuple(known.items()),
        bracketed=high > 0,
    )
