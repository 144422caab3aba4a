"""Budgets as people ask for them, and the absolute limits they come to."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from jmpq.formats import FLOAT_BITS, Choice, labels
from jmpq.problem.costs import COSTS
from jmpq.problem.problem import Problem
from jmpq.text import did_you_mean

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_NUMBER = re.compile(
    r"(?P<value>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"\s*(?:(?P<sign>[x%])|(?P<unit>Ki|Mi|Gi|[kKMGT])?(?P<bytes>B)?)"
)
_UNIFORM = re.compile(r"[Ww]\d+(?:[Aa]\d+)?")
_ACCEPTED = (
    "a number (120000, 1.2G), bytes with a unit (120kB, 0.27MB = 10^6 bytes, 1MiB = 2^20), a "
    "ratio to the unquantized network (0.13x), a fraction of the way from the cheapest to the "
    "dearest allocation (40%), or a uniform allocation (W4A4, W4)"
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """One budget as asked.

    Attributes:
        name: Name of the cost.
        asked: The text behind ``NAME=``.
        kind: How to read `value`: ``absolute`` in the cost's unit, ``ratio`` to the
            unquantized network, ``fraction`` from cheapest to dearest allowed (0.4 for 40%),
            ``uniform`` with `choice`.
        value: The number; 0 for a uniform allocation.
        choice: The uniform choice; `a_bits` 32 where the text names weights only.
    """

    name: str
    asked: str
    kind: Literal["absolute", "ratio", "fraction", "uniform"]
    value: float = 0.0
    choice: Choice | None = None


def parse_budget(text: str) -> Budget:
    """Read ``NAME=VALUE``.

    >>> parse_budget("size_bytes=0.27MB").value
    270000.0
    >>> parse_budget("bops=40%").kind, parse_budget("bops=W4A4").kind
    ('fraction', 'uniform')

    Raises:
        ValueError: If the text is no budget; the message lists what is accepted.
    """
    name, equals, asked = (part.strip() for part in text.partition("="))
    if not (name and equals and asked):
        raise ValueError(f"{text!r} is no budget: expected NAME=VALUE, VALUE {_ACCEPTED}.")
    if _UNIFORM.fullmatch(asked):
        return Budget(name, asked, "uniform", choice=Choice.parse(asked))
    if (match := _NUMBER.fullmatch(asked)) is None:
        raise ValueError(f"Budget {text!r} cannot be read: expected {_ACCEPTED}.")
    value = float(match["value"])
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"Budget {text!r} must be finite and not negative.")
    if match["sign"] == "x":
        return Budget(name, asked, "ratio", value)
    if match["sign"] == "%":
        return Budget(name, asked, "fraction", value / 100)
    unit = match["unit"] or ""
    if unit in _BINARY and not match["bytes"]:
        raise ValueError(
            f"Budget {text!r}: write {unit}B for bytes, or k, M, G for powers of ten."
        )
    if match["bytes"] and name in COSTS and COSTS[name].unit != "bytes":
        raise ValueError(
            f"Budget {text!r} is given in bytes, but {name} is not: leave the B out."
        )
    return Budget(name, asked, "absolute", value * {**_DECIMAL, **_BINARY}[unit])


def parse_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Read several texts ``NAME=VALUE``.

    Raises:
        ValueError: If one is not a budget, or a name is given twice.
    """
    parsed = tuple(parse_budget(text) for text in texts)
    names = [budget.name for budget in parsed]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"Budget {twice[0]!r} is given more than once: keep one of them.")
    return parsed


def check_cost(budget: Budget, known: Collection[str]) -> None:
    """Raise `ValueError` where a budget is on none of the `known` costs."""
    if budget.name not in known:
        raise ValueError(
            f"Budget '{budget.name}={budget.asked}' is on an unknown cost."
            f"{did_you_mean(budget.name, known)} Expected one of {', '.join(known)}."
        )


def limit_of(budget: Budget, problem: Problem) -> float:
    """The absolute limit a budget comes to, in the unit of its cost, constants included.

    The limit may lie below what can be met; solvers then say what could be.

    Raises:
        ValueError: If the problem has no such cost, does not know the unquantized network's
            cost, or the uniform choice is not a candidate.
    """
    name = budget.name
    check_cost(budget, problem.costs)
    if budget.kind == "absolute":
        return budget.value
    if budget.kind == "ratio":
        if name not in problem.float_costs:
            raise ValueError(
                f"Budget '{name}={budget.asked}' is a ratio to the unquantized network, whose "
                f"{name} is not known here: give a number."
            )
        return budget.value * problem.float_costs[name]
    if budget.kind == "fraction":
        least, most = problem.range(name)
        return least + budget.value * (most - least)
    assert budget.choice is not None
    choice = _candidate(budget, budget.choice, problem.choices)
    return problem.evaluate(problem.uniform(choice))[1][name]


def with_budgets(problem: Problem, budgets: Sequence[str] | Mapping[str, float]) -> Problem:
    """The same problem under other budgets.

    Args:
        problem: Whose budgets are replaced, all of them.
        budgets: Texts ``NAME=VALUE``, or absolute limits by name.

    Raises:
        ValueError: If a budget is wrong or its name is given twice.
    """
    if isinstance(budgets, Mapping):
        limits = {name: float(limit) for name, limit in budgets.items()}
        asked = {name: f"{limit:.17g}" for name, limit in limits.items()}
        return dataclasses.replace(problem, budgets=limits, asked=asked)
    parsed = parse_budgets(budgets)
    return dataclasses.replace(
        problem,
        budgets={budget.name: limit_of(budget, problem) for budget in parsed},
        asked={budget.name: budget.asked for budget in parsed},
    )


def _candidate(budget: Budget, choice: Choice, choices: Sequence[Choice]) -> Choice:
    """The candidate a uniform budget means: itself, or the only one with its weight bits."""
    if choice in choices:
        return choice
    same = [c for c in choices if c.w_bits == choice.w_bits]
    if choice.a_bits == FLOAT_BITS and len(same) == 1:
        return same[0]
    raise ValueError(
        f"Budget '{budget.name}={budget.asked}' is the cost of a uniform allocation that is "
        f"not a candidate: the candidates are {labels(choices)}."
    )
