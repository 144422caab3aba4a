"""From the layer table, a table of losses, rules and budgets to a `Problem`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from jmpq.formats import UNQUANTIZED, Choice, labels
from jmpq.kinds import check_kinds
from jmpq.network.layers import Layer
from jmpq.problem.budgets import with_budgets
from jmpq.problem.costs import COSTS, Cost, Overhead, additive_costs, costs_of_layers
from jmpq.problem.problem import Problem
from jmpq.problem.rules import Rule, apply_rules, of_kernels, tie_groups
from jmpq.quantizers.spec import KernelSpec


@runtime_checkable
class LossTable(Protocol):
    """What a sensitivity result offers: losses in nats per example, with their names."""

    @property
    def layers(self) -> tuple[str, ...]: ...
    @property
    def choices(self) -> tuple[Choice, ...]: ...
    @property
    def losses(self) -> Any: ...


@runtime_checkable
class CrossTable(LossTable, Protocol):
    """A sensitivity result that may know cross-layer terms as well."""

    @property
    def has_interactions(self) -> bool: ...
    def interactions(self) -> Any: ...


@runtime_checkable
class LayeredNetwork(Protocol):
    """What a `jmpq.Network` tells of its parameters."""

    @property
    def layers(self) -> tuple[Layer, ...]: ...
    @property
    def other_parameters(self) -> int: ...


@check_kinds
def build_problem(
    layers: Sequence[Layer] | LayeredNetwork,
    table: LossTable,
    *,
    overhead: Overhead | KernelSpec,
    rules: Sequence[Rule | str] = (),
    budgets: Sequence[str] | Mapping[str, float] = (),
    choices: Sequence[Choice] | None = None,
    unquantized_parameters: int | None = None,
    costs: Mapping[str, Cost] = COSTS,
    interactions: bool = False,
) -> Problem:
    """State the allocation problem of a network.

    Args:
        layers: The layer table, or the network that has it.
        table: Predicted losses; its rows and columns are found by name.
        overhead: Scales and zero points of every layer of `layers`, or the specification of
            the kernels' quantizers, which tells them.
        rules: Pins, exclusions, allowances and ties on layer names, as texts
            (``"pin stem=W8A8"``, see `rules.parse_rule`) or objects. None is added here.
        budgets: Limits as text (``"size_bytes=40%"``, see `budgets.parse_budget`) or as
            absolute numbers by name.
        choices: Candidates, a part of the table's; all of them where not given. Keys and
            values take those that leave weights unquantized, other layers the rest.
        unquantized_parameters: Parameters outside the layer table, 4 bytes each; by default
            those of the network, none where there is only a layer table.
        costs: Costs to tabulate, by name; `kv_bytes` comes by itself with rows of keys and
            values. Budgets on peaks allow or forbid choices.
        interactions: Take the table's cross-layer terms along (made symmetric: the mean of
            each and its mirror image).

    Raises:
        ValueError: If the loss table lacks a layer or a choice, a rule or a budget is wrong,
            or what they leave is no problem; the message names the layer. If interactions
            are asked of a table that has none.
    """
    if isinstance(layers, LayeredNetwork):
        if unquantized_parameters is None:
            unquantized_parameters = layers.other_parameters
        layers = layers.layers
    if isinstance(overhead, KernelSpec):
        overhead = Overhead.of(layers, overhead)
    choices = tuple(table.choices if choices is None else choices)
    if missing := [choice for choice in choices if choice not in table.choices]:
        raise ValueError(
            f"No losses for {labels(missing)}: the table has {labels(table.choices)}. Compute "
            "the sensitivities with these bits or leave them out."
        )
    names = [layer.name for layer in layers]
    ruling = apply_rules(rules, names, choices)
    searched = [layer for layer, out in zip(layers, ruling.excluded, strict=True) if not out]
    excluded = [layer for layer, out in zip(layers, ruling.excluded, strict=True) if out]
    if not searched:
        raise ValueError("Every layer is excluded: nothing is left to search.")
    if lost := [layer.name for layer in searched if layer.name not in table.layers]:
        raise ValueError(
            f"No losses for layer {lost[0]!r}: the table has {', '.join(table.layers)}. "
            "Compute the sensitivities of this network, or exclude the layer."
        )
    rows = [table.layers.index(layer.name) for layer in searched]
    columns = [table.choices.index(choice) for choice in choices]
    cross = _interactions(table, rows, columns) if interactions else None
    kept = overhead.part(np.flatnonzero(~ruling.excluded).tolist())
    costs = costs_of_layers(layers, costs)
    peaks = {name: cost for name, cost in costs.items() if cost.peak}
    costs = additive_costs(costs)
    others = unquantized_parameters or 0
    both = {**costs, **peaks}
    outside = {name: cost.constant(excluded, others) for name, cost in both.items()}
    tables = {name: cost.table(searched, choices, kept) for name, cost in both.items()}
    allowed = ruling.allowed[~ruling.excluded]
    if any(layer.kind == "cache" for layer in layers):
        allowed = allowed & _own_choices(searched, choices)
    for name, given in tables.items():
        if np.shape(given) != (len(searched), len(choices)):
            raise ValueError(
                f"Cost {name!r} has a table of shape {np.shape(given)}: expected [layers, "
                f"candidates], {(len(searched), len(choices))}."
            )
    for name in both:
        _check_known(name, tables[name], outside[name], allowed, searched, choices)
    full = {n: _unquantized(cost, outside[n], searched, kept) for n, cost in both.items()}
    problem = Problem(
        layers=tuple(layer.name for layer in searched),
        choices=choices,
        losses=np.asarray(table.losses, dtype=np.float64)[np.ix_(rows, columns)],
        costs={name: np.where(allowed, tables[name], 0.0) for name in costs},
        budgets={},
        constants={name: outside[name] for name in costs},
        allowed=allowed,
        groups=np.array(tie_groups([x.name for x in searched], ruling.ties), dtype=np.int64),
        float_costs={name: total for name, total in full.items() if not math.isnan(total)},
        interactions=cross,
        peaks={name: np.maximum(tables[name], outside[name]) for name in peaks},
        ruled_by={x.name: ruling.by[x.name] for x in searched if x.name in ruling.by},
    )
    return with_budgets(problem, budgets)


def _own_choices(
    searched: Sequence[Layer], choices: Sequence[Choice]
) -> Bool[np.ndarray, "layers choices"]:
    """Keys and values, which have no kernel, take no weights' bits; other layers the rest."""
    with_kernel = np.array([choice in of_kernels(choices) for choice in choices])
    without = np.array([choice.weights.is_none for choice in choices])
    return np.stack([without if x.kind == "cache" else with_kernel for x in searched])


def _check_known(
    name: str,
    table: Float[np.ndarray, "layers choices"],
    constant: float,
    allowed: Bool[np.ndarray, "layers choices"],
    searched: Sequence[Layer],
    choices: Sequence[Choice],
) -> None:
    """Raise `ValueError` where a cost is not known of a choice that a layer may take."""
    for row, column in np.argwhere(np.isnan(table) & allowed)[:1]:
        raise ValueError(
            f"The {name} of layer {searched[row].name!r} at {choices[column].label} is not in "
            "the table of measurements. Measure again with these candidates, add the row, or "
            "forbid the choice by a rule."
        )
    if math.isnan(constant):
        raise ValueError(
            f"The {name} of an excluded layer, which stays unquantized, is not in the table "
            "of measurements: add its row at W32, or do not exclude the layer."
        )


def _unquantized(
    cost: Cost, constant: float, searched: Sequence[Layer], kept: Overhead
) -> float:
    """Cost of the unquantized network; NaN where it is not known."""
    if cost.unquantized is not None:
        return cost.unquantized
    table = cost.table(searched, (UNQUANTIZED,), kept)
    if cost.peak:
        return float(table.max(initial=constant))
    return constant + float(table.sum())


def _interactions(
    table: LossTable, rows: Sequence[int], columns: Sequence[int]
) -> Float[np.ndarray, "layers choices layers choices"]:
    """The table's cross terms of these layers and choices, a layer's own block zero."""
    if not isinstance(table, CrossTable) or not table.has_interactions:
        raise ValueError(
            "The table of losses has no cross-layer terms: compute a metric that knows them "
            "(gauss_newton, hessian, empirical_fisher, measured_pairs_*), or leave out "
            "`interactions`."
        )
    cross = np.asarray(table.interactions(), dtype=np.float64)
    cross = cross[np.ix_(rows, columns, rows, columns)]
    cross = 0.5 * (cross + cross.transpose(2, 3, 0, 1))
    every = np.arange(len(rows))
    cross[every, :, every] = 0.0
    return cross
