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
        point: Cheapest point of the hull that measured at least the floor.
        allocation: Allocation of that point.
        cost: Cost of that point, in the cost's unit.
        quality: Measured quality of that point.
        floor: Least quality that was accepted.
        measured: Every measured point and its quality, in the order of measuring.
        bracketed: Whether a cheaper point was measured below the floor; False if the cheapest
            point of all meets the floor.
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

    The measured quality may not rise monotonically along the hull. The result measured at least
    the floor, and a cheaper point, `steps` halvings away, measured below it. Points in between
    were not measured.

    Args:
        hull: Trade-offs by the model, by rising cost.
        evaluate: Function from allocations to measured quality, such as accuracy; greater is
            better.
        floor: Least quality accepted.
        limit: Largest cost, in the cost's unit; None for the whole hull.
        steps: Halvings of the bracket; log2 of the number of points ends at two neighbours.
        progress: Callback ``(point, quality)`` after every measurement.

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
