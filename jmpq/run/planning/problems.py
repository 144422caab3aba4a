"""The allocation problem of a run: its layers and losses under rules and budgets."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from jmpq.allocation import Allocation
from jmpq.formats import UNQUANTIZED, Choice, labels
from jmpq.network.layers import TieKind
from jmpq.problem import (
    Cost,
    Exclude,
    Overhead,
    Pin,
    Problem,
    Tie,
    allocation_costs,
    build_problem,
    first_and_last,
    parse_rule,
)
from jmpq.problem.rules import Rule, apply_rules, literal, of_kernels, rules_from_json
from jmpq.run.folder import LAYERS, SENSITIVITY, RunFolder
from jmpq.run.options import Solve
from jmpq.sensitivity.table import Sensitivity
from jmpq.text import did_you_mean

Budgets = Sequence[str] | Mapping[str, float]


def run_problem(
    folder: RunFolder,
    table: Sensitivity,
    *,
    rules: Sequence[Rule],
    budgets: Budgets,
    interactions: bool = False,
    costs: Mapping[str, Cost] | None = None,
) -> Problem:
    """The problem of one metric.

    Args:
        folder: The run folder, with layers and sensitivities.
        table: The metric's losses.
        rules: Rules for layers.
        budgets: Limits by cost, or budgets as text.
        interactions: Whether the cross-layer terms count.
        costs: Costs by name; those of the folder by default.
    """
    return build_problem(
        folder.layers.layers,
        table,
        overhead=Overhead.of(folder.layers.layers, folder.sensitivities.kernels),
        rules=tuple(rules),
        budgets=dict(budgets) if isinstance(budgets, Mapping) else tuple(budgets),
        unquantized_parameters=folder.layers.other_parameters,
        costs=folder.costs if costs is None else costs,
        interactions=interactions,
    )


def run_costs(folder: RunFolder, allocation: Allocation) -> dict[str, float]:
    """Every cost of any allocation of the network, whatever the candidates are."""
    layers = folder.layers
    return allocation_costs(
        layers.layers,
        allocation,
        Overhead.of(layers.layers, folder.sensitivities.kernels),
        unquantized_parameters=layers.other_parameters,
        costs=folder.costs,
    )


def planned_problem(
    folder: RunFolder,
    table: Sensitivity,
    budgets: Mapping[str, float],
    *,
    interactions: bool = False,
) -> Problem:
    """The problem that the plan was made of, by one metric and under given limits."""
    rules = rules_from_json(folder.plan.rules)
    return run_problem(
        folder,
        table,
        rules=rules,
        budgets=budgets,
        interactions=interactions,
        costs=folder.costs_of(folder.plan),
    )


def chosen_tables(folder: RunFolder, options: Solve) -> dict[str, Sensitivity]:
    """The sensitivities to solve with, by metric, the leading one first.

    Raises:
        ValueError: If a metric was not computed.
    """
    names = options.metrics or folder.sensitivities.tables
    chosen = {name: table_named(folder, name) for name in names}
    if options.first_order:
        return {k: dataclasses.replace(v, use_first=True) for k, v in chosen.items()}
    return chosen


def table_named(folder: RunFolder, metric: str) -> Sensitivity:
    """The sensitivities of a metric.

    Raises:
        ValueError: If it was not computed.
    """
    tables = folder.sensitivities.tables
    if metric not in tables:
        raise ValueError(
            f"Metric {metric!r} is not in {folder.path / SENSITIVITY}, which has "
            f"{', '.join(tables)}.{did_you_mean(metric, tables)} Compute it with "
            "`jmpq sensitivity`."
        )
    return tables[metric]


def planned_tables(folder: RunFolder) -> dict[str, Sensitivity]:
    """The sensitivities by metric, with first-order terms where the plan counts them."""
    tables = folder.sensitivities.tables
    if not folder.plan.options.get("first_order", False):
        return dict(tables)
    return {k: dataclasses.replace(table, use_first=True) for k, table in tables.items()}


def table_of(folder: RunFolder, metric: str | None) -> Sensitivity:
    """The sensitivities behind an allocation's metric, which may name a prediction.

    The leading ones where there are none of that name.
    """
    tables = planned_tables(folder)
    plain = re.sub("_(full|kl|loss)$", "", metric or "")
    return next(
        (tables[n] for n in (metric, plain) if n in tables), next(iter(tables.values()))
    )


def all_rules(folder: RunFolder, options: Solve, choices: Sequence[Choice]) -> tuple[Rule, ...]:
    """The rules asked for, in order: the user's, first and last layer, ready-made ties.

    Raises:
        ValueError: If one cannot be read, or does not fit the layers and the candidates.
    """
    rules = tuple(parse_rule(text) for text in options.rule)
    if options.first_last_bits:
        rules += _first_and_last(folder.layers.names, options.first_last_bits, choices)
    return (*rules, *_ready_made(folder, options.tie, rules, choices))


def _first_and_last(
    names: Sequence[str], bits: int, choices: Sequence[Choice]
) -> tuple[Rule, ...]:
    rules = first_and_last(names, choices, bits=bits)
    if not all(isinstance(rule, Pin) and rule.choice in choices for rule in rules):
        raise ValueError(
            f"The first and last layer are to have {bits} bits, which is none of "
            f"{labels(choices)}. Choose with --first-last-bits, 0 to search these layers too."
        )
    return rules


def _ready_made(
    folder: RunFolder,
    kinds: Sequence[TieKind],
    rules: Sequence[Rule],
    choices: Sequence[Choice],
) -> Iterator[Rule]:
    """The ties asked for, of layers that no pin and no exclusion decides.

    Raises:
        ValueError: If there is none of a kind.
    """
    ruling = apply_rules(rules, folder.layers.names, choices)
    apart = {
        name
        for rule, row in zip(rules, ruling.rows, strict=True)
        if isinstance(rule, Pin | Exclude)
        for name in row
    }
    ties = folder.layers.ties
    for kind in dict.fromkeys(kinds):
        groups = [[name for name in group if name not in apart] for group in ties[kind]]
        groups = [group for group in groups if len(group) > 1]
        if not groups:
            known = ", ".join(k for k, made in ties.items() if made) or "no ready-made ties"
            raise ValueError(
                f"There is nothing to tie by {kind!r} in this network, pinned and excluded "
                f"layers apart; it has {known} ({folder.path / LAYERS})."
            )
        for group in groups:
            yield Tie(tuple(map(literal, group)))


def default_budgets(choices: Sequence[Choice]) -> tuple[str, ...]:
    """Size and, with quantized activations, bit operations of the candidate next to W4A4.

    Where keys and values have candidates, also their bytes, at the one next to 4 bits.
    """
    own = of_kernels(choices)
    nearest = min(own, key=lambda c: (abs(c.w_bits - 4), abs(c.a_bits - 4)))
    costs = ["size_bytes"] * (nearest != UNQUANTIZED)
    costs += ["bops"] * any(not c.activations.is_none for c in own)
    budgets = [f"{cost}={nearest.label}" for cost in costs]
    if kept := [c for c in choices if c not in own and c != UNQUANTIZED]:
        budgets.append(f"kv_bytes={min(kept, key=lambda c: abs(c.a_bits - 4)).label}")
    return tuple(budgets)
