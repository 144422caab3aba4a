"""Continuous bits: the optimum where losses fall as 4^(−bits), a line to compare with."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from jmpq.formats import labels
from jmpq.problem.problem import Problem


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WaterFilling:
    """Real-valued bits of every layer, optimal for the model c·4^(−bits).

    No bound on integer allocations: the model fits the losses, it does not lie below them.

    Attributes:
        bits: Bits of every layer, between its least and most.
        loss: Σ c·4^(−bits), nats per example.
        cost: Σ cost_per_bit·bits + fixed.
        price: Loss saved by the last unit of cost; 0 where the budget does not bind.
    """

    bits: Float[np.ndarray, " layers"]
    loss: float
    cost: float
    price: float


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BitModel:
    """Losses c·4^(−bits) and costs linear in the bits, layer by layer.

    Attributes:
        layers: Names.
        coefficients: c, nats per example.
        cost_per_bit: Cost of one more bit.
        fixed_cost: Cost that is left at 0 bits, all layers and constants together.
        least: Fewest bits.
        most: Most bits.
    """

    layers: tuple[str, ...]
    coefficients: Float[np.ndarray, " layers"]
    cost_per_bit: Float[np.ndarray, " layers"]
    fixed_cost: float
    least: Float[np.ndarray, " layers"]
    most: Float[np.ndarray, " layers"]


def fit_bit_model(problem: Problem, name: str) -> BitModel:
    """Fit the model to a problem whose choices differ in their weight bits alone.

    log c is the mean of log(loss·4^bits) over the allowed choices (least squares on
    logarithms with the slope given); costs are fitted by least squares in the bits. Tied
    layers are treated one by one: the optimum is for free layers.

    Raises:
        ValueError: If choices differ in activation bits, a loss is not above 0, or the cost
            is unknown.
    """
    if len({choice.a_bits for choice in problem.choices}) > 1:
        raise ValueError(
            "Water-filling needs choices that differ in their weight bits alone, got "
            f"{labels(problem.choices)}."
        )
    if name not in problem.costs:
        raise ValueError(
            f"There is no cost {name!r}: expected one of {', '.join(problem.costs) or 'none'}."
        )
    for row, column in np.argwhere(problem.allowed & ~(problem.losses > 0))[:1]:
        raise ValueError(
            f"Layer {problem.layers[row]!r} at {problem.choices[column].label} has loss "
            f"{problem.losses[row, column]:g}: the model c·4^(−bits) needs losses above 0. "
            "Use a metric without a first-order term, or clip the losses."
        )
    bits = np.array([float(choice.w_bits) for choice in problem.choices])
    coefficients, slopes, fixed = [], [], [problem.constants.get(name, 0.0)]
    for losses, costs, row in zip(
        problem.losses, problem.costs[name], problem.allowed, strict=True
    ):
        b, cost = bits[row], costs[row]
        coefficients.append(np.exp(np.mean(np.log(losses[row]) + b * math.log(4.0))))
        centred = b - b.mean()
        spread = float(centred @ centred)
        slope = float(centred @ cost) / spread if spread else 0.0
        slopes.append(slope)
        fixed.append(float(cost.mean()) - slope * float(b.mean()))
    return BitModel(
        layers=problem.layers,
        coefficients=np.array(coefficients),
        cost_per_bit=np.array(slopes),
        fixed_cost=math.fsum(fixed),
        least=np.where(problem.allowed, bits, np.inf).min(axis=1),
        most=np.where(problem.allowed, bits, -np.inf).max(axis=1),
    )


def water_filling(model: BitModel, budget: float) -> WaterFilling:
    """Minimise Σ c·4^(−b) subject to Σ cost_per_bit·b + fixed ≤ budget and bits in range.

    Every layer between its limits has the same marginal loss per cost λ, so that
    b = log₄(c·ln 4/(λ·cost_per_bit)); what is spent falls piecewise linearly in log λ, and λ
    follows in closed form on the piece where the budget is met.

    Raises:
        ValueError: If the budget does not pay for the least bits, or a cost per bit or
            coefficient is not above 0.

    References:
        Cover, Thomas (2006), Elements of Information Theory, section 10.3.3 (reverse
        water-filling).
    """
    cost, least, most = model.cost_per_bit, model.least, model.most
    for i in np.flatnonzero(~((cost > 0) & (model.coefficients > 0)))[:1]:
        raise ValueError(
            f"Layer {model.layers[i]!r} has cost per bit {cost[i]:g} and coefficient "
            f"{model.coefficients[i]:g}: both must be above 0 (a pinned layer belongs to the "
            "fixed cost)."
        )
    room = budget - model.fixed_cost
    if room < (spent := math.fsum(cost * least)) * (1 - 1e-12):
        raise ValueError(
            f"The budget {budget:.10g} does not pay for the least bits of every layer, which "
            f"cost {model.fixed_cost + spent:.10g}."
        )
    if room >= math.fsum(cost * most):
        bits, price = most.copy(), 0.0
    else:
        top = np.log(model.coefficients * math.log(4.0) / cost)  # log λ at 0 bits
        starts, ends = top - least * math.log(4.0), top - most * math.log(4.0)
        edges = np.unique(np.concatenate([starts, ends]))
        clipped = np.clip((top[:, None] - edges) / math.log(4.0), least[:, None], most[:, None])
        piece = int(np.flatnonzero(cost @ clipped >= room)[-1]) if len(edges) else 0
        right = edges[min(piece + 1, len(edges) - 1)]
        middle = 0.5 * (edges[piece] + right)
        free = (ends < middle) & (middle < starts)
        at_end = np.where(middle >= starts, least, most)
        if free.any():
            taken = math.fsum(cost[~free] * at_end[~free])
            level = (math.fsum(cost[free] * top[free]) - (room - taken) * math.log(4.0)) / (
                math.fsum(cost[free])
            )
        else:
            level = edges[piece]
        bits = np.clip((top - level) / math.log(4.0), least, most)
        price = math.exp(level)
    return WaterFilling(
        bits=bits,
        loss=math.fsum(model.coefficients * 4.0**-bits),
        cost=model.fixed_cost + math.fsum(cost * bits),
        price=price,
    )
