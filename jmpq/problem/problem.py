"""The allocation problem: a multiple-choice knapsack with several budgets. No JAX.

Minimise Σ_i losses[i, c_i] + Σ_{i<j} interactions[i, c_i, j, c_j] subject to
constants[k] + Σ_i costs[k][i, c_i] ≤ budgets[k] for every budget k, one allowed choice per
layer, one choice per group of tied layers. Most problems have no interactions.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.allocation import Allocation
from jmpq.formats import Choice, labels
from jmpq.kinds import check_kinds
from jmpq.problem.exact_sum import exact_sum
from jmpq.problem.interactions import (
    check_interactions,
    chosen_interactions,
    interactions_over_groups,
    mask,
)
from jmpq.problem.named_candidate import NamedCandidate
from jmpq.text import plural, printed, some

ROUNDING = 1e-12  # relative slack of limits on costs that are not integers


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Reduced:
    """The same problem over groups of tied layers, forbidden choices priced out.

    Attributes:
        losses: Summed over each group, with the cross terms of its members; +inf where a
            choice is not allowed.
        costs: Summed over each group, one table a budget; 0 where not allowed.
        limits: Budgets less the constants, rounding slack included.
        names: The budgets.
        groups: Group of every layer.
        interactions: Cross terms of every pair of groups, each unordered pair once;
            symmetric, 0 within a group and where not allowed. None without any.
    """

    losses: Float[np.ndarray, "groups choices"]
    costs: Float[np.ndarray, "budgets groups choices"]
    limits: Float[np.ndarray, " budgets"]
    names: tuple[str, ...]
    groups: Int[np.ndarray, " layers"]
    interactions: Float[np.ndarray, "groups choices groups choices"] | None = None

    @functools.cached_property
    def allowed(self) -> Bool[np.ndarray, "groups choices"]:
        """Which choices each group may take."""
        return np.isfinite(self.losses)

    def expand(self, columns: Int[np.ndarray, " groups"]) -> Int[np.ndarray, " layers"]:
        """Column of every layer from the column of every group."""
        return columns[self.groups]

    def collapse(self, columns: Int[np.ndarray, " layers"]) -> Int[np.ndarray, " groups"]:
        """Inverse of `expand`: tied layers have one choice, that of their first."""
        return columns[np.unique(self.groups, return_index=True)[1]]

    def used(self, columns: Int[np.ndarray, " groups"]) -> Float[np.ndarray, " budgets"]:
        """Costs of one allocation, each sum correctly rounded."""
        rows = np.arange(len(columns))
        return np.array([exact_sum(table[rows, columns]) for table in self.costs])

    def fits(self, columns: Int[np.ndarray, " groups"]) -> bool:
        """Whether one allocation meets every budget."""
        return bool((self.used(columns) <= self.limits).all())


@check_kinds
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """Choose bits for every layer; see the module for the program that this states.

    Attributes:
        layers: Names of the searched layers.
        choices: The candidates, columns of the tables.
        losses: Predicted loss increase, nats per example; may be negative.
        costs: Additive costs by name, unit in the name; not negative.
        budgets: Upper limits on the total of some of the costs, constants included.
        constants: Cost of what is outside the search, by name; 0 where absent.
        allowed: Choices that each layer may take.
        groups: Group of tied layers that each layer belongs to, numbered from 0 without gaps.
        asked: Budgets as the user asked for them, for reports.
        float_costs: Cost of the unquantized network by name, what ratios refer to.
        interactions: Cross-layer terms, nats per example, each unordered pair of layers
            counted once (see `jmpq.problem.interactions`); symmetric, a layer's block with
            itself zero. None for a loss that is a sum over layers.
        peaks: Costs of which the network's is the largest of its layers', constants included.
        ceilings: Upper limits on some of the peaks: `allowed` has no choice above them.
        ruled: Choices that the rules alone allow, where there are ceilings.
        ruled_by: Rule that decides what a layer may take, by layer, for messages.

    Raises:
        ValueError: If shapes disagree, an allowed loss or cost is NaN or infinite, a cost is
            negative, a layer or a group of tied layers has no choice, a budget has no
            cost, or the interactions are no such table. The message names the layer.
    """

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]
    losses: Float[np.ndarray, "_ _"]
    costs: dict[str, Float[np.ndarray, "_ _"]]
    budgets: dict[str, float]
    constants: dict[str, float]
    allowed: Bool[np.ndarray, "_ _"]
    groups: Int[np.ndarray, " _"]
    asked: dict[str, str] = dataclasses.field(default_factory=dict)
    float_costs: dict[str, float] = dataclasses.field(default_factory=dict)
    interactions: Float[np.ndarray, "_ _ _ _"] | None = None
    peaks: dict[str, Float[np.ndarray, "_ _"]] = dataclasses.field(default_factory=dict)
    ceilings: dict[str, float] = dataclasses.field(default_factory=dict)
    ruled: Bool[np.ndarray, "_ _"] | None = None
    ruled_by: dict[str, str] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        groups, budgets = len(set(self.groups.tolist())), []
        for name, limit in self.limits.items():
            asked = f" (asked {self.asked[name]})" if name in self.asked else ""
            budgets.append(f"budget {name} <= {limit:.6g}{asked}, {self.room(name)}")
        return printed(
            f"Problem: {plural(len(self.layers), 'layer')} in {plural(groups, 'group')} x "
            f"{plural(len(self.choices), 'choice')} ({some([c.label for c in self.choices])})",
            f"{int(self.allowed.sum())} of {self.allowed.size} choices allowed; losses "
            f"{self.losses[self.allowed].min():.3g} to {self.losses[self.allowed].max():.3g} a "
            f"layer, {'no' if self.interactions is None else 'with'} cross-layer terms",
            *(budgets or ["no budget"]),
            f"costs: {', '.join(self.costs) or 'none'}",
        )

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_choices_left()
        self._check_values("loss", self.losses, least=-math.inf)
        for name, table in self.costs.items():
            self._check_values(name, table, least=0.0)
        for name, table in self.peaks.items():
            self._check_values(name, table, least=0.0)
        for name in (*self.budgets, *self.constants):
            if name not in self.costs:
                raise ValueError(
                    f"Budget or constant {name!r} has no cost table: the costs are "
                    f"{', '.join(self.costs) or 'none'}."
                )
        for name, limit in self.budgets.items():
            if not math.isfinite(limit):
                raise ValueError(f"Budget {name}={limit}: give a number or leave it out.")
        for name, value in self.constants.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Constant {name}={value} must be finite and not negative.")
        if self.interactions is not None:
            check_interactions(self.layers, self.choices, self.allowed, self.interactions)

    @property
    def limits(self) -> dict[str, float]:
        """Limits of all costs, peaks too."""
        return {**self.budgets, **self.ceilings}

    def evaluate(
        self, allocation: Allocation | Int[np.ndarray, " _"]
    ) -> tuple[float, dict[str, float]]:
        """Loss and all costs of an allocation, each a correctly rounded sum.

        Independent of every solver; does not ask whether the budgets are met (`violated`).

        Args:
            allocation: The allocation, or its columns (`columns`).

        Returns:
            Loss, nats per example, and the total of every cost, constants included; of peaks
            those that are limited.

        Raises:
            ValueError: If a layer has no choice, one that is not allowed, or tied layers
                differ.
        """
        named = isinstance(allocation, Allocation)
        columns = self.columns(allocation) if named else allocation
        self._check_columns(columns)
        rows = np.arange(len(self.layers))
        terms = self.losses[rows, columns]
        if self.interactions is not None:
            terms = np.append(terms, chosen_interactions(self.interactions, columns))
        loss = exact_sum(terms)
        costs = {
            name: exact_sum(np.append(table[rows, columns], self.constants.get(name, 0.0)))
            for name, table in self.costs.items()
        }
        for name in self.ceilings:
            costs[name] = float(self.peaks[name][rows, columns].max())
        return loss, costs

    def violated(self, costs: dict[str, float]) -> dict[str, float]:
        """The budgets that these costs exceed, with the excess."""
        return {
            name: costs[name] - limit
            for name, limit in self.budgets.items()
            if costs[name] > limit + self.rounding(name)
        }

    def rounding(self, name: str) -> float:
        """What the total of a cost may exceed its budget by: nothing for integer costs."""
        limit = self.budgets[name]
        return 0.0 if name in self._whole and limit < 2**53 else ROUNDING * abs(limit)

    @functools.cached_property
    def _whole(self) -> frozenset[str]:
        """The budgets whose costs are integers, constants included."""
        every = self.allowed.all()
        return frozenset(
            name
            for name in self.budgets
            for table in [self.costs[name] if every else self.costs[name][self.allowed]]
            if float(self.constants.get(name, 0.0)).is_integer()
            and (table == np.floor(table)).all()
        )

    def range(self, name: str) -> tuple[float, float]:
        """Least and most of a cost over allowed allocations, other budgets ignored.

        Of a peak, over what the rules alone allow.
        """
        if name in self.peaks:
            return self._peak_range(name)
        table, allowed = self._over_groups(self.costs[name])
        constant = self.constants.get(name, 0.0)
        least = np.where(allowed, table, np.inf).min(axis=1)
        most = np.where(allowed, table, -np.inf).max(axis=1)
        return exact_sum(np.append(least, constant)), exact_sum(np.append(most, constant))

    def room(self, name: str) -> str:
        """Range of a limited cost in words, or that the limit does not bind."""
        least, most = self.range(name)
        if self.limits[name] >= most:
            return f"not binding: at most {most:.6g} possible"
        return f"{least:.6g} to {most:.6g} possible"

    def _peak_range(self, name: str) -> tuple[float, float]:
        allowed = self.allowed if self.ruled is None else self.ruled
        table = self.peaks[name]
        least = np.where(allowed, table, np.inf).min(axis=1)
        return float(least.max()), float(table[allowed].max())

    def uniform(self, choice: Choice) -> Int[np.ndarray, " layers"]:
        """Columns of the allocation nearest to one choice everywhere that the rules allow.

        A group that may not take it (a pinned layer) takes its dearest allowed choice with
        bits not above it, or else its first in order of bits.

        Raises:
            ValueError: If `choice` is not a candidate.
        """
        if choice not in self.choices:
            raise ValueError(
                f"{choice.label} is not a candidate: the candidates are {labels(self.choices)}."
            )
        _, allowed = self._over_groups(self.losses)
        order = sorted(range(len(self.choices)), key=lambda column: self.choices[column])
        own = self.choices.index(choice)
        picked = []
        for row in allowed:
            if row[own]:
                picked.append(own)
                continue
            open_ = [column for column in order if row[column]]
            # What a row never quantizes (keys and values have no weights) does not count.
            no_w = all(self.choices[column].weights.is_none for column in open_)
            no_a = all(self.choices[column].activations.is_none for column in open_)
            below = [
                column
                for column in open_
                if (no_w or self.choices[column].w_bits <= choice.w_bits)
                and (no_a or self.choices[column].a_bits <= choice.a_bits)
            ]
            picked.append(below[-1] if below else open_[0])
        return np.array(picked, dtype=np.int64)[self.groups]

    def separable(self) -> "Problem":
        """The same problem without its cross-layer terms: another loss."""
        return dataclasses.replace(self, interactions=None)

    def reduced(self, *, interactions: bool = False) -> Reduced:
        """The problem over groups, which is what solvers work on.

        Args:
            interactions: The caller handles cross-layer terms.

        Raises:
            ValueError: If there are cross-layer terms and the caller does not handle them.
        """
        losses, allowed = self._over_groups(self.losses)
        cross = None
        if self.interactions is not None:
            if not interactions:
                raise ValueError(
                    "The problem has cross-layer terms (`interactions`), which this solver "
                    "does not handle. Use LocalSearch, BranchAndBound or BruteForce, "
                    "or leave the terms out with `problem.separable()`."
                )
            cross, within = interactions_over_groups(
                mask(self.allowed, self.interactions), self.groups
            )
            cross, losses = mask(allowed, cross), losses + within
        tables = [self._over_groups(self.costs[name])[0] for name in self.budgets]
        if len(tables) == 1:  # no copy of a table that may be large
            costs = tables[0][None]
        else:
            costs = np.array(tables).reshape(len(tables), *losses.shape)
        limits = [
            limit + self.rounding(name) - self.constants.get(name, 0.0)
            for name, limit in self.budgets.items()
        ]
        return Reduced(
            losses=losses if allowed.all() else np.where(allowed, losses, np.inf),
            costs=costs,
            limits=np.array(limits, dtype=np.float64),
            names=tuple(self.budgets),
            groups=self.groups,
            interactions=cross,
        )

    def members(self, group: int) -> tuple[str, ...]:
        """Names of the layers of one group."""
        return tuple(self.layers[i] for i in np.flatnonzero(self.groups == group))

    def allocation(self, columns: Int[np.ndarray, " layers"]) -> Allocation:
        """The allocation that takes one column of the tables for every layer."""
        return Allocation.from_columns(self.layers, self.choices, columns)

    def columns(self, allocation: Allocation) -> Int[np.ndarray, " layers"]:
        """Inverse of `allocation`.

        Raises:
            ValueError: If a layer has no choice or one that is not a candidate, or the
                allocation names a layer that is not searched.
        """
        return allocation.columns(self.layers, self.choices)

    def _over_groups(
        self, table: Float[np.ndarray, "_ _"]
    ) -> tuple[Float[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"]]:
        """A table summed over each group, 0 where not allowed, and what a group may take.

        Where nothing is tied or forbidden this is the table itself: not to be changed.
        """
        if np.array_equal(self.groups, np.arange(len(self.layers))):  # no ties
            if self.allowed.all():
                return np.asarray(table, dtype=np.float64), self.allowed
            return np.where(self.allowed, table, 0.0), self.allowed
        shape = (int(self.groups.max()) + 1, len(self.choices))
        allowed = np.ones(shape, dtype=bool)
        np.logical_and.at(allowed, self.groups, self.allowed)
        total = np.zeros(shape)
        np.add.at(total, self.groups, np.where(self.allowed, table, 0.0))
        return np.where(allowed, total, 0.0), allowed

    def _check_shapes(self) -> None:
        shape = (len(self.layers), len(self.choices))
        if 0 in shape:
            raise ValueError(f"Nothing to choose: {shape[0]} layers and {shape[1]} choices.")
        for what, names in (("Layer", self.layers), ("Choice", self.choices)):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{what} {str(twice)!r} appears more than once.")
        tables = {"losses": self.losses, "allowed": self.allowed, **self.costs, **self.peaks}
        for name, table in tables.items():
            if table.shape != shape:
                raise ValueError(
                    f"{name} has shape {table.shape}: expected [layers, choices] = {shape}."
                )
        if self.groups.shape != shape[:1] or not np.array_equal(
            np.unique(self.groups), np.arange(len(np.unique(self.groups)))
        ):
            raise ValueError(
                "`groups` must give each layer a group, numbered from 0 without gaps; got "
                f"{self.groups.tolist()}."
            )

    def _check_choices_left(self) -> None:
        for i in np.flatnonzero(~self.allowed.any(axis=1))[:1]:
            raise ValueError(
                f"Layer {self.layers[i]!r} has no candidate choice: allow at least one."
            )
        _, allowed = self._over_groups(self.losses)
        for group in np.flatnonzero(~allowed.any(axis=1)):
            members = np.flatnonzero(self.groups == group)
            each = "; ".join(
                f"{self.layers[i]} allows "
                + labels(c for c, ok in zip(self.choices, self.allowed[i], strict=True) if ok)
                for i in members
            )
            raise ValueError(f"Tied layers have no choice in common: {each}.")

    def _check_values(self, name: str, table: Float[np.ndarray, "_ _"], least: float) -> None:
        bad = self.allowed & ~(np.isfinite(table) & (table >= least))
        for row, column in np.argwhere(bad)[:1]:
            expected = "finite" if least < 0 else "finite and not negative"
            raise ValueError(
                f"Layer {self.layers[row]!r} at {self.choices[column].label} has {name} "
                f"{table[row, column]}: expected {expected}. Check the layer's weights and "
                "the data, or exclude the layer."
            )

    def _reason(self, layer: int, column: int) -> str:
        """What forbids a choice of a layer: a limit on a peak, or the rule that decides it."""
        if self.ruled is not None and self.ruled[layer, column]:
            over = [
                n for n, most in self.ceilings.items() if self.peaks[n][layer, column] > most
            ]
            return f", by the budget on {' and '.join(over)}"
        rule = self.ruled_by.get(self.layers[layer])
        return "" if rule is None else f", by the rule {rule!r}"

    def _check_columns(self, columns: Int[np.ndarray, " _"]) -> None:
        if columns.shape != (len(self.layers),):
            raise ValueError(
                f"An allocation has one choice for each of the {len(self.layers)} layers, "
                f"got shape {columns.shape}."
            )
        outside = (columns < 0) | (columns >= len(self.choices))
        for i in np.flatnonzero(outside)[:1]:
            raise ValueError(
                f"Layer {self.layers[i]!r} has column {columns[i]}: expected 0 to "
                f"{len(self.choices) - 1}."
            )
        for i in np.flatnonzero(~self.allowed[np.arange(len(columns)), columns])[:1]:
            left = [c for c, ok in zip(self.choices, self.allowed[i], strict=True) if ok]
            raise ValueError(
                f"Layer {self.layers[i]!r} may not take {self.choices[columns[i]].label}: it "
                f"allows {labels(left)}{self._reason(int(i), int(columns[i]))}."
            )
        first = np.zeros(int(self.groups.max()) + 1, dtype=np.int64)
        first[self.groups[::-1]] = np.arange(len(columns))[::-1]  # the earliest member stays
        for i in np.flatnonzero(columns != columns[first[self.groups]])[:1]:
            raise ValueError(
                f"Layer {self.layers[i]!r} is tied to {self.layers[first[self.groups[i]]]!r} "
                "but takes another choice."
            )


def problem_of(
    losses: Float[np.ndarray, "_ _"],
    costs: dict[str, Float[np.ndarray, "_ _"]],
    budgets: dict[str, float],
    *,
    layers: Sequence[str] | None = None,
    choices: Sequence[Choice] | None = None,
    ties: Sequence[Sequence[int]] = (),
    allowed: Bool[np.ndarray, "_ _"] | None = None,
    constants: dict[str, float] | None = None,
    interactions: Float[np.ndarray, "_ _ _ _"] | None = None,
) -> Problem:
    """A problem from plain tables, where there is no layer table to build it from.

    Args:
        losses: Predicted loss increase, nats per example.
        costs: Additive costs by name.
        budgets: Limits by name of a cost.
        layers: Names; ``layer0``, ``layer1``, ... where not given.
        choices: Candidates; where not given, weights of 1, 2, ... bits, or names where there
            are more than 16.
        ties: Rows of layers that take the same choice.
        allowed: Choices that each layer may take; None for all.
        constants: Costs outside the search.
        interactions: Cross-layer terms; none where not given.
    """
    from jmpq.problem.rules import tie_groups

    num_layers, num_choices = losses.shape
    names = [f"layer{i}" for i in range(num_layers)] if layers is None else list(layers)
    if choices is None:
        numbers = range(1, num_choices + 1)
        choices = [
            Choice(k) if num_choices <= 16 else NamedCandidate(name=str(k)) for k in numbers
        ]
    groups = tie_groups(names, [[names[i] for i in tie] for tie in ties])
    return Problem(
        layers=tuple(names),
        choices=tuple(choices),
        losses=losses,
        costs=dict(costs),
        budgets=dict(budgets),
        constants=dict(constants or {}),
        allowed=np.ones(losses.shape, dtype=bool) if allowed is None else allowed,
        groups=np.array(groups, dtype=np.int64),
        interactions=interactions,
    )
