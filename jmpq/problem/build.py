"""From the layer table, a table of losses, rules and budgets to a `Problem`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from jmpq.formats import UNQUANTIZED, Choice, labels
from jmpq.network.layers import Layer
from jmpq.problem.budgets import with_budgets
from jmpq.problem.costs import COSTS, Cost, Overhead, additive_costs
from jmpq.problem.problem import Problem
from jmpq.problem.rules import Rule, apply_rules, tie_groups
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


def build_problem(
    layers: Sequence[Layer] | LayeredNetwork,
    table: LossTable,
    *,
    overhead: Overhead | KernelSpec,
    rules: Sequence[Rule] = (),
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
        rules: Pins, exclusions, allowances and ties on layer names. None is added here.
        budgets: Limits as text (``"size_bytes=40%"``, see `budgets.parse_budget`) or as
            absolute numbers by name.
        choices: Candidates, a part of the table's; all of them where not given.
        unquantized_parameters: Parameters outside the layer table, 4 bytes each; by default
            those of the network, none where there is only a layer table.
        costs: Costs to tabulate, by name; peaks are left out.
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
    costs = additive_costs(costs)
    others = unquantized_parameters or 0
    constants = {name: cost.constant(excluded, others) for name, cost in costs.items()}
    full = {n: cost.table(searched, (UNQUANTIZED,), kept) for n, cost in costs.items()}
    problem = Problem(
        layers=tuple(layer.name for layer in searched),
        choices=choices,
        losses=np.asarray(table.losses, dtype=np.float64)[np.ix_(rows, columns)],
        costs={name: cost.table(searched, choices, kept) for name, cost in costs.items()},
        budgets={},
        constants=constants,
        allowed=ruling.allowed[~ruling.excluded],
        groups=np.array(tie_groups([x.name for x in searched], ruling.ties), dtype=np.int64),
        float_costs={name: constants[name] + float(full[name].sum()) for name in costs},
        interactions=cross,
    )
    return with_budgets(problem, budgets)


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
