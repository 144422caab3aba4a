"""Budgets as people ask for them, and the absolute limits they come to."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from jmpq.formats import Choice, is_name, labels
from jmpq.kinds import check_kinds
from jmpq.problem.costs import known_costs
from jmpq.problem.problem import Problem
from jmpq.problem.solution import Infeasible
from jmpq.text import did_you_mean

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_NUMBER = re.compile(
    r"(?P<value>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"\s*(?:(?P<sign>[x%])|(?P<time>ms|us|µs|s)|(?P<unit>Ki|Mi|Gi|[kKMGT])?(?P<bytes>B)?)"
)
_UNIFORM = re.compile(r"[Ww]\S+")
_ACCEPTED = (
    "a number (120000, 1.2G), bytes with a unit (120kB, 0.27MB = 10^6 bytes, 1MiB = 2^20), "
    "time with a unit (2.5ms), a ratio to the unquantized network (0.13x), a fraction of the "
    "way from the cheapest to the dearest allocation (40%), or a uniform allocation (W4A4, W4, "
    "Wmxfp4A8, nvfp4)"
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """One budget as asked.

    Attributes:
        name: Name of the cost.
        asked: The text behind ``NAME=``.
        kind: Meaning of `value`: ``absolute`` in the cost's unit, ``ratio`` to the
            unquantized network, ``fraction`` from cheapest to dearest allowed (0.4 for 40%),
            ``uniform`` with `choice`.
        value: The number; 0 for a uniform allocation.
        choice: The uniform choice; activations unquantized where the text names weights only.
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
        ValueError: If the text is not a budget; the message lists what is accepted.
    """
    name, equals, asked = (part.strip() for part in text.partition("="))
    if not (name and equals and asked):
        raise ValueError(
            f"{text!r} is not a valid budget: expected NAME=VALUE, VALUE {_ACCEPTED}."
        )
    if _UNIFORM.fullmatch(asked) or is_name(asked):
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
    if match["bytes"] and _unit(name) != "bytes":
        raise ValueError(
            f"Budget {text!r} is given in bytes, but {name} is not: leave the B out."
        )
    if match["time"]:
        if _unit(name) != "s":
            raise ValueError(
                f"Budget {text!r} is given in {match['time']}, but {name} is not a time: leave "
                f"the {match['time']} out."
            )
        return Budget(name, asked, "absolute", value * _SECONDS[match["time"]])
    return Budget(name, asked, "absolute", value * {**_DECIMAL, **_BINARY}[unit])


def _unit(name: str) -> str:
    """Unit of a cost; of one that only a run has, what its name ends with."""
    cost = known_costs().get(name)
    if cost is not None:
        return cost.unit
    return next((unit for unit in ("bytes", "s") if f"_{name}".endswith(f"_{unit}")), "")


@check_kinds
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
    check_cost(budget, (*problem.costs, *problem.peaks))
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
    columns = problem.uniform(choice)
    if name in problem.peaks:
        return float(problem.peaks[name][np.arange(len(columns)), columns].max())
    return problem.evaluate(columns)[1][name]


@check_kinds
def with_budgets(problem: Problem, budgets: Sequence[str] | Mapping[str, float]) -> Problem:
    """The same problem under other budgets.

    Args:
        problem: Whose budgets are replaced, all of them.
        budgets: Texts ``NAME=VALUE``, or absolute limits by name. A limit on a peak forbids
            every choice above it, by itself.

    Raises:
        ValueError: If a budget is wrong or its name is given twice.
        Infeasible: If all choices of a layer are above a limit on a peak.
    """
    if problem.ruled is not None:  # without the limits on peaks before
        allowed = problem.ruled
        problem = dataclasses.replace(problem, ceilings={}, allowed=allowed, ruled=None)
    if isinstance(budgets, Mapping):
        limits = {name: float(limit) for name, limit in budgets.items()}
        asked = {name: f"{limit:.17g}" for name, limit in limits.items()}
        return _limited(problem, limits, asked)
    parsed = parse_budgets(budgets)
    return _limited(
        problem,
        {budget.name: limit_of(budget, problem) for budget in parsed},
        {budget.name: budget.asked for budget in parsed},
    )


def _limited(problem: Problem, limits: dict[str, float], asked: dict[str, str]) -> Problem:
    """The problem with absolute limits, those on peaks as what they allow."""
    ceilings = {name: limit for name, limit in limits.items() if name in problem.peaks}
    budgets = {name: limit for name, limit in limits.items() if name not in ceilings}
    if not ceilings:
        return dataclasses.replace(problem, budgets=budgets, asked=asked)
    allowed = problem.allowed.copy()
    for name, limit in ceilings.items():
        if not math.isfinite(limit):
            raise ValueError(f"Budget {name}={limit}: give a number or leave it out.")
        allowed &= problem.peaks[name] <= limit
        for row in np.flatnonzero(~allowed.any(axis=1))[:1]:
            least = np.where(problem.allowed[row], problem.peaks[name][row], np.inf).min()
            who = f"layer {problem.layers[row]!r}"
            raise _peak_too_high(name, limit, who, float(least), problem)
    return dataclasses.replace(
        problem,
        budgets=budgets,
        asked=asked,
        ceilings=ceilings,
        allowed=allowed,
        ruled=problem.allowed,
    )


def _peak_too_high(
    name: str, limit: float, who: str, least: float, problem: Problem
) -> Infeasible:
    return Infeasible(
        f"Budget {name}={limit:.10g} cannot be met: {who} needs {least:.10g} at least. Raise "
        "the budget or allow formats of fewer bits for its inputs.",
        budgets={name: limit},
        ranges={name: problem.range(name)},
        cheapest={},
    )


def _candidate(budget: Budget, choice: Choice, choices: Sequence[Choice]) -> Choice:
    """The candidate a uniform budget means: itself, or the only one with its weights."""
    if choice in choices:
        return choice
    same = [c for c in choices if c.weights == choice.weights]
    if choice.activations.is_none and len(same) == 1:
        return same[0]
    raise ValueError(
        f"Budget '{budget.name}={budget.asked}' is the cost of a uniform allocation that is "
        f"not a candidate: the candidates are {labels(choices)}."
    )
