"""The prices of several budgets that maximise the Lagrangian bound: the Lagrangian dual.

The best multipliers are the dual values of the linear relaxation

    min Σ losses·x   with   Σ_j x[i, j] = 1,   Σ costs[k]·x + s[k] = limits[k],   x, s ≥ 0.

A general LP code sees one row per group. But the groups' rows share no option, so a primal-dual
interior point method can eliminate them one by one. The remaining linear system has one
equation per budget, and a step costs a few passes over the tables. The method ends after 10 to
50 steps for any number of groups.

The result need not be exact, because any multipliers prove a bound (`lagrangian_bound`). These
give the best bound to about ten digits of the loss above the groups' least losses.

References:
    Mehrotra (1992), On the implementation of a primal-dual interior point method; Gondzio
    (1996), Multiple centrality corrections in a primal-dual method for linear programming;
    Todd (1988), Exploiting special structure in Karmarkar's linear programming algorithm, for
    the elimination of generalized upper bounds.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.problem.problem import Reduced

_STEPS = 100  # of the interior point method: twice what the worst of our tables took
_TOLERANCE = 1e-10  # duality gap, relative to the loss above the least
_TINY = 1e-3  # what counts as such a loss at least, in units of the mean range of a group
_IDLE = 15  # steps without a better bound before giving up
_START = 0.1  # multipliers and complementary products, in the units of `_Program`
_SLOWEST, _CLIP, _CORRECTIONS = 0.02, 10.0, 3  # see `_interior_point`
_TO_BOUNDARY = 0.995  # part of the way to the boundary that a step may take
_LEAST = 1e-16  # reduced cost
_MANY, _PART = 8192, 8  # groups beyond which a part of them is solved first

Multipliers = Float[np.ndarray, " budgets"]


def dual_multipliers(reduced: Reduced) -> Multipliers:
    """Multipliers of the best Lagrangian bound, up to rounding.

    They are zero if no budget can bind. If the budgets cannot be met, they are the ones that
    gave the highest bound.
    """
    least = reduced.losses.argmin(axis=1)
    if reduced.fits(least) or not len(reduced.limits):
        return np.zeros(len(reduced.limits))
    program = _Program.of(reduced)
    solve = _sifted if len(program.losses) > _MANY else _interior_point
    with np.errstate(all="ignore"):  # where the budgets cannot be met, prices overflow
        prices = solve(program)
    return prices * program.loss_unit / program.cost_units


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Program:
    """The linear relaxation, counted from the groups' least losses and costs, and scaled.

    Attributes:
        losses: Losses above the group's least, in units of the groups' mean range.
        costs: Costs above the group's cheapest, in units of the budget's room per group.
        room: Room of the budgets above the cheapest choices, in the same units: usually the
            number of groups.
        allowed: Options that exist; the tables hold 0 elsewhere.
        loss_unit: Unit of losses, nats per example.
        cost_units: Unit of each cost, in the cost's own unit.
    """

    losses: Float[np.ndarray, "groups choices"]
    costs: Float[np.ndarray, "budgets groups choices"]
    room: Float[np.ndarray, " budgets"]
    allowed: Bool[np.ndarray, "groups choices"]
    loss_unit: float
    cost_units: Float[np.ndarray, " budgets"]

    @classmethod
    def of(cls, reduced: Reduced) -> "_Program":
        allowed = reduced.allowed
        least = np.where(allowed, reduced.costs, np.inf).min(axis=2)
        costs = np.where(allowed, reduced.costs - least[:, :, None], 0.0)
        room = reduced.limits - least.sum(axis=1)
        spread = costs.max(axis=2).sum(axis=1)
        # A budget without room gets a trace of it: the relaxation keeps an interior.
        units = np.maximum(room, 1e-9 * spread) / len(allowed)
        units = np.where(units > 0, units, 1.0)
        losses = reduced.losses - reduced.losses.min(axis=1, keepdims=True)
        losses = np.where(allowed, losses, 0.0)
        loss_unit = float(losses.max(axis=1).mean()) or 1.0
        return cls(
            losses=losses / loss_unit,
            costs=costs / units[:, None, None],
            room=np.maximum(room, 0.0) / units,
            allowed=allowed,
            loss_unit=loss_unit,
            cost_units=units,
        )

    def part(
        self, groups: Int[np.ndarray, " part"] | slice, room: Float[np.ndarray, " budgets"]
    ) -> "_Program":
        """The program of some groups, with another room."""
        return dataclasses.replace(
            self,
            losses=self.losses[groups],
            costs=self.costs[:, groups],
            allowed=self.allowed[groups],
            room=room,
        )

    def priced(self, prices: Multipliers) -> Float[np.ndarray, "groups choices"]:
        """Loss plus price of every option; +inf where there is none."""
        priced = self.losses + np.tensordot(prices, self.costs, axes=1)
        return priced if self.allowed.all() else np.where(self.allowed, priced, np.inf)


def _sifted(program: _Program) -> Multipliers:
    """The multipliers of very many groups, of which the method sees only a part.

    Prices from a sample of groups determine the best choice of nearly all groups. The groups
    with the widest margins are fixed at that choice, and the program is solved for the others.
    Fixed groups that would choose differently at the new prices are released, and the program
    is solved again. If there are none, the prices are optimal for all groups, because the
    Lagrangian of the fixed groups is linear between the old and the new prices.
    """
    groups = len(program.losses)
    # Every so many groups in the order of their size: small and large ones in proportion.
    order = np.argsort(program.costs.max(axis=2).sum(axis=0), kind="stable")
    stride = -(-groups // (_MANY // 2))
    part = order[stride // 2 :: stride]
    prices = _interior_point(program.part(part, program.room * len(part) / groups))
    count = groups // _PART
    while 2 * count < groups:
        priced = program.priced(prices)
        choice = priced.argmin(axis=1)
        margin = np.partition(priced, 1, axis=1)[:, 1] - priced.min(axis=1)
        held = np.ones(groups, dtype=bool)
        held[np.argpartition(margin, count)[:count]] = False
        while 2 * held.sum() > groups:
            kept = np.flatnonzero(held)
            used = program.costs[:, kept, choice[kept]].sum(axis=1)
            rest = program.part(np.flatnonzero(~held), program.room - used)
            prices = _interior_point(rest)
            differs = held & (program.priced(prices).argmin(axis=1) != choice)
            if not differs.any():
                return prices
            if differs.sum() > count:  # the prices were too far off to tell whom to hold
                break
            held &= ~differs
        count *= 2
    return _interior_point(program)


class _Point(NamedTuple):
    """A point of the interior point method, or a step from one.

    Attributes:
        x: Share of each option, summing to 1 per group; 0 where there is none.
        slack: Unused part of the budgets.
        prices: Multipliers of the budgets.
        values: Multipliers of the groups.
        z: Reduced cost of each option, complementary to `x`; 1 where there is none.
    """

    x: Float[np.ndarray, "groups choices"]
    slack: Float[np.ndarray, " budgets"]
    prices: Multipliers
    values: Float[np.ndarray, " groups"]
    z: Float[np.ndarray, "groups choices"]


def _interior_point(program: _Program) -> Multipliers:
    """The prices with the highest Lagrangian among all iterates.

    The method is Mehrotra's predictor-corrector. With losses over many powers of ten, as in
    networks, its steps stall, because the products x·z of small and large groups diverge. So
    the target never falls below `_SLOWEST` of the mean product, the second-order term is
    clipped to `_CLIP` times the target, and up to `_CORRECTIONS` of Gondzio's corrections
    pull back outliers among the products.
    """
    point = _centred(program)
    best, prices, idle = -np.inf, point.prices, 0
    dearest = 1.0 + 2.0 * float(program.losses.max(axis=1).sum())
    size, groups = int(program.allowed.sum()) + len(program.room), len(program.losses)
    for _ in range(_STEPS):
        lagrangian = float(program.priced(point.prices).min(axis=1).sum())
        lagrangian -= float(point.prices @ program.room)
        if not np.isfinite(lagrangian):
            break
        if lagrangian > dearest:  # than any allocation loses: none meets the budgets
            return point.prices
        idle = 0 if lagrangian - best > _TOLERANCE * abs(lagrangian) else idle + 1
        if lagrangian > best:
            best, prices = lagrangian, point.prices
        if idle == _IDLE:
            break
        system = _System.of(program, point)
        gap = float((program.losses * point.x).sum()) - best
        enough = _TOLERANCE * max(abs(best), _TINY * groups)
        if gap <= enough and np.abs(system.over).max() <= 1e-9 * groups:
            break
        products, slack_products = point.x * point.z, point.slack * point.prices
        mean = float(products.sum() + slack_products.sum()) / size
        try:
            step = system.solve(-products, -slack_products)
            after = _moved(point, step, *_lengths(point, step))
            mean_after = float((after.x * after.z).sum() + after.slack @ after.prices) / size
            aim = mean * max((mean_after / mean) ** 3, _SLOWEST)
            most = _CLIP * aim
            step = system.solve(
                np.where(
                    program.allowed,
                    aim - products - np.clip(step.x * step.z, -most, most),
                    0.0,
                ),
                aim - slack_products - np.clip(step.slack * step.prices, -most, most),
            )
            step, lengths = _corrected(system, point, step, aim)
        except np.linalg.LinAlgError:  # rounding has the last word
            break
        point = _moved(point, step, *(_TO_BOUNDARY * length for length in lengths))
        point = _with_exact_reduced_costs(program, point)
    return prices


def _centred(program: _Program) -> _Point:
    """A central point: all products x·z and slack·price equal, shares summing to 1.

    At given prices the value v of a group solves Σ_j μ/(priced_j − v) = 1. Newton's method for
    least − v starts from μ, where the sum is at least 1, and stays left of the root, because
    the sum is convex.
    """
    prices = np.full(len(program.room), _START)
    priced = program.priced(prices)
    least = priced.min(axis=1)
    above, below = priced - least[:, None], np.full(len(least), _START)
    for _ in range(50):
        shares = _START / (above + below[:, None])
        error = shares.sum(axis=1) - 1.0
        if error.max() <= 1e-12:
            break
        below = below + error * _START / (shares**2).sum(axis=1)
    z = np.where(program.allowed, above + below[:, None], 1.0)
    return _Point(
        x=np.where(program.allowed, _START / z, 0.0),
        slack=_START / prices,
        prices=prices,
        values=least - below,
        z=z,
    )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _System:
    """Newton's equations at a point, with the groups eliminated.

    With θ = x/z, the equation of group i gives the group's multiplier from the prices. Inserted
    into the budgets' equations, it leaves the matrix
    Σ_i Σ_j θ_ij (c_ij − c̄_i)(c_ij − c̄_i)ᵀ + diag(slack/price) for the prices, where c̄_i is
    the θ-weighted mean of the costs of group i.

    Attributes:
        program: The program.
        point: Current point.
        theta: Ratio x/z of every option.
        weight: Sum of `theta` over each group.
        mean: Mean costs of each group, weighted by `theta`.
        matrix: Positive definite matrix of the equations for the prices.
        over: Residuals of the budgets' equations.
        short: Residuals of the groups' equations.
    """

    program: _Program
    point: _Point
    theta: Float[np.ndarray, "groups choices"]
    weight: Float[np.ndarray, " groups"]
    mean: Float[np.ndarray, "budgets groups"]
    matrix: Float[np.ndarray, "budgets budgets"]
    over: Float[np.ndarray, " budgets"]
    short: Float[np.ndarray, " groups"]

    @classmethod
    def of(cls, program: _Program, point: _Point) -> "_System":
        theta, costs = point.x / point.z, program.costs
        weight = theta.sum(axis=1)
        mean = (costs * theta).sum(axis=2) / weight
        centred = (costs - mean[:, :, None]).reshape(len(costs), -1)
        matrix = (centred * theta.ravel()) @ centred.T + np.diag(point.slack / point.prices)
        used = costs.reshape(len(costs), -1) @ point.x.ravel()
        return cls(
            program=program,
            point=point,
            theta=theta,
            weight=weight,
            mean=mean,
            matrix=matrix,
            over=program.room - used - point.slack,
            short=1.0 - point.x.sum(axis=1),
        )

    def solve(
        self,
        products: Float[np.ndarray, "groups choices"],
        slack_products: Float[np.ndarray, " budgets"],
        *,
        feasibility: float = 1.0,
    ) -> _Point:
        """The step that changes the products by given amounts, to first order.

        Args:
            products: Change of every product x·z.
            slack_products: Change of every product slack·price.
            feasibility: Fraction of the residuals that the step removes.
        """
        point, costs = self.point, self.program.costs
        change = products / point.z
        rest = feasibility * self.short - change.sum(axis=1)
        right = costs.reshape(len(costs), -1) @ change.ravel() + self.mean @ rest
        right += slack_products / point.prices - feasibility * self.over
        prices = np.linalg.solve(self.matrix, right)
        values = rest / self.weight + prices @ self.mean
        z = np.tensordot(prices, costs, axes=1) - values[:, None]
        z = np.where(self.program.allowed, z, 0.0)
        return _Point(
            x=change - self.theta * z,
            slack=(slack_products - point.slack * prices) / point.prices,
            prices=prices,
            values=values,
            z=z,
        )


def _corrected(
    system: _System, point: _Point, step: _Point, aim: float
) -> tuple[_Point, tuple[float, float]]:
    """The step with Gondzio's corrections, added while they lengthen it, and its lengths."""
    lengths = _lengths(point, step)
    for _ in range(_CORRECTIONS):
        longer = [min(1.0, length + 0.3) for length in lengths]
        after = _moved(point, step, *longer)
        inside = np.where(system.program.allowed, _towards(after.x * after.z, aim), 0.0)
        correction = system.solve(
            inside, _towards(after.slack * after.prices, aim), feasibility=0.0
        )
        better = _Point(*(a + b for a, b in zip(step, correction, strict=True)))
        now = _lengths(point, better)
        if sum(now) <= 1.02 * sum(lengths):
            break
        step, lengths = better, now
    return step, lengths


def _towards(products: Float[np.ndarray, "..."], aim: float) -> Float[np.ndarray, "..."]:
    """Change that brings products into [aim/10, 10·aim]; large decreases are limited."""
    return np.maximum(np.clip(products, 0.1 * aim, 10 * aim) - products, -10 * aim)


def _lengths(point: _Point, step: _Point) -> tuple[float, float]:
    """Largest primal and dual step lengths that keep all variables nonnegative."""

    def length(*pairs: tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]) -> float:
        ratios = [1.0 / _TO_BOUNDARY]
        for value, change in pairs:
            falls = change < 0
            ratios.append(float((value[falls] / -change[falls]).min(initial=np.inf)))
        return min(ratios)

    primal = length((point.x, step.x), (point.slack, step.slack))
    return primal, length((point.z, step.z), (point.prices, step.prices))


def _moved(point: _Point, step: _Point, primal: float, dual: float) -> _Point:
    return _Point(
        x=point.x + primal * step.x,
        slack=point.slack + primal * step.slack,
        prices=point.prices + dual * step.prices,
        values=point.values + dual * step.values,
        z=point.z + dual * step.z,
    )


def _with_exact_reduced_costs(program: _Program, point: _Point) -> _Point:
    """The point with reduced costs recomputed from the prices, without accumulated rounding."""
    priced = program.priced(point.prices)
    values = np.minimum(point.values, priced.min(axis=1))
    z = np.maximum(priced - values[:, None], _LEAST)
    z = np.where(program.allowed, z, 1.0)
    return point._replace(values=values, z=z)
