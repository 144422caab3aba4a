"""The recommendation: one allocation of a plan, its costs, how sure it is, what else there is.

Chosen on calibration examples; the evaluation split only tells what the choice is worth. Pure,
no JAX: everything follows from a plan and, where there is one, its evaluation.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.problem import Plan, PlannedAllocation
from jmpq.problem.costs import known_costs
from jmpq.problem.shown import Shown, shown_prediction
from jmpq.problem.solution import OPTIMALITY
from jmpq.text import plural

ERRORS = 2.0  # standard errors of a difference within which two allocations are level
REMAINS = 0.1  # part of the float network's accuracy above chance that a destroyed one keeps

PROOF = "Proof, of the prediction alone"
NAMED = 12  # layers at most that the answer names

Verdict = Literal["same", "better", "worse", "level", "unknown"]
Json = Mapping[str, Any]


@runtime_checkable
class Measurements(Protocol):
    """What an evaluation tells of a plan, as `jmpq.run.Evaluation` does."""

    @property
    def float(self) -> Mapping[str, Json]: ...
    @property
    def splits(self) -> Mapping[str, Json]: ...
    @property
    def measured(self) -> Mapping[str, Mapping[str, Json]]: ...
    @property
    def reference(self) -> str | None: ...
    @property
    def differences(self) -> Mapping[str, Json]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What one allocation did to one split; NaN where it was not recorded.

    Attributes:
        increase: Mean loss less the float network's, nats per example.
        increase_sem: Standard error of `increase`, from differences example by example.
        kl: Mean KL divergence from the float network, nats per example.
        kl_sem: Standard error of `kl`.
        top1: Fraction of examples classified correctly.
        top1_sem: Standard error of `top1`.
    """

    increase: float
    increase_sem: float
    kl: float
    kl_sem: float
    top1: float
    top1_sem: float

    @classmethod
    def read(cls, row: Json, reference: Json) -> "Measured":
        """From an outcome, and that of the float network, as an evaluation writes them."""
        values = {f.name: _number(row.get(f.name)) for f in dataclasses.fields(cls)}
        values["increase"] = _number(row.get("loss")) - _number(reference.get("loss"))
        return cls(**values)

    @property
    def damage(self) -> tuple[float, float]:
        """KL divergence, or the loss increase where there is none, with its error."""
        if math.isfinite(self.kl):
            return self.kl, self.kl_sem
        return self.increase, self.increase_sem

    @property
    def quantity(self) -> str:
        """Name of `damage`."""
        return "KL divergence" if math.isfinite(self.kl) else "loss increase"

    @property
    def finite(self) -> bool:
        """Whether the network's outputs are numbers at all."""
        return math.isfinite(self.damage[0])

    def __str__(self) -> str:
        parts = []
        if math.isfinite(self.top1):
            parts.append(f"top-1 {_plus_minus(100 * self.top1, 100 * self.top1_sem, 2)} %")
        if math.isfinite(self.kl):
            parts.append(f"KL divergence {_plus_minus(self.kl, self.kl_sem)} nats")
        if math.isfinite(self.increase):
            parts.append(f"loss increase {_plus_minus(self.increase, self.increase_sem)} nats")
        return ", ".join(parts) or "no finite numbers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rival:
    """An allocation that the recommended one is compared with.

    Attributes:
        name: Name in the plan.
        allocation: Choice of every layer.
        costs: Total of every cost.
        predicted: Predicted damage, in the unit of the recommendation; None where unknown.
        measured: Outcome on the evaluation split; None where it was not measured.
        verdict: Whether the recommended allocation is ``better`` or ``worse`` in KL divergence
            (in loss where that is unknown) by more than two standard errors of the difference,
            paired by example, or ``level``. ``same`` is the same allocation.
        difference: Damage less that of the recommended allocation, nats per example; NaN where
            unknown.
        difference_sem: Standard error of `difference`, from differences example by example.
    """

    name: str
    allocation: Allocation
    costs: dict[str, float]
    predicted: float | None
    measured: Measured | None
    verdict: Verdict
    difference: float
    difference_sem: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The allocation of a plan to use, and what is known of it; `str` is the answer in lines.

    Attributes:
        name: Name in the plan.
        aliases: Other names of the same allocation in the plan.
        allocation: Choice of every layer.
        costs: Total of every cost.
        budgets: Limits of the plan, by cost.
        candidates: Number of different solutions within the budgets that it was chosen among.
        chosen_by: Quantity that was smallest; empty for the first in the plan.
        predictor: Predictor of `predicted`; None without predictions.
        predicted: Predicted damage; None where unknown.
        metric: Metric that the proof speaks of; without one, the objective of the search.
        gap: Relative distance of its predicted loss from the proven bound; None without one.
        examples: Number of evaluation examples; 0 before evaluation.
        measured: Outcome on the evaluation split; None where it was not measured.
        float_top1: Top-1 of the float network on the same examples; NaN where unknown.
        chance: Share of the most frequent class, what guessing comes to; NaN where unknown.
        destroyed: Whether at most a tenth of the float network's accuracy above chance is
            left, where it has some, or outputs are not finite.
        remedy: Name of the cheapest measured baseline that is not destroyed; None where there
            is none, or none is needed.
        uniform: Best uniform allocation within the budgets; None without one.
        runner_up: Next best solution that is another allocation; None without one.
    """

    name: str
    aliases: tuple[str, ...]
    allocation: Allocation
    costs: dict[str, float]
    budgets: dict[str, float]
    candidates: int
    chosen_by: str
    predictor: Shown | None
    predicted: float | None
    metric: str | None
    gap: float | None
    examples: int
    measured: Measured | None
    float_top1: float
    chance: float
    destroyed: bool
    remedy: str | None
    uniform: Rival | None
    runner_up: Rival | None

    @property
    def lines(self) -> tuple[str, ...]:
        """The answer in four to seven sentences, one a line."""
        return tuple(line for line in _lines(self) if line)

    @property
    def against_uniform(self) -> str:
        """One sentence: how the best uniform allocation compares; empty where none does."""
        return _against_uniform(self)

    @property
    def against_next(self) -> str:
        """One sentence: how the next best solution compares; empty without a measurement."""
        return _against_next(self) if self.runner_up and self.measured else ""

    @property
    def warning(self) -> str:
        """One sentence: that the network is destroyed, and what to do; empty if it is not."""
        return _destroyed(self) if self.destroyed else ""

    @property
    def proof(self) -> str:
        """One sentence: what was proven."""
        return _proof(self)

    @property
    def choice(self) -> str:
        """One sentence: among how many it was chosen, and by what."""
        return _choice(self)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def recommend(plan: Plan, evaluation: Measurements | None = None) -> Recommendation | None:
    """The allocation of a plan to use; None if no solution meets the budgets.

    Before evaluation the solution of which the leading metric predicts least, after it the one
    with the smallest measured KL divergence (loss, where there is none) on the calibration
    examples. The evaluation split never chooses.

    Args:
        plan: The plan.
        evaluation: Outcomes of the plan.
    """
    solutions = [
        a for a in plan.allocations if a.role == "solution" and not plan.exceeded(a.costs)
    ]
    if not solutions:
        return None
    look = _Look(plan, evaluation)
    by_measurement = any(look.calibrated(a) < math.inf for a in solutions)
    key = look.calibrated if by_measurement else look.led
    ranked: dict[Allocation, PlannedAllocation] = {}
    for each in sorted(solutions, key=key):  # stable: the first of the plan leads
        ranked.setdefault(each.allocation, each)
    best, *others = ranked.values()
    uniform = [
        a for a in plan.allocations if a.asked == "uniform" and not plan.exceeded(a.costs)
    ]
    uniform = sorted(uniform, key=lambda a: (key(a), -a.costs.get("size_bytes", 0.0)))
    measured, chance = look.measured(best), look.chance
    destroyed = measured is not None and look.is_destroyed(measured)
    proof = min(
        (a for a in solutions if a.allocation == best.allocation and a.gap is not None),
        key=lambda a: (a.metric != best.metric, a.gap or 0.0),
        default=None,
    )
    return Recommendation(
        name=best.name,
        aliases=tuple(
            a.name
            for a in plan.allocations
            if a.allocation == best.allocation
            and a.name != best.name
            and a.role in ("solution", "baseline")
        ),
        allocation=best.allocation,
        costs=dict(best.costs),
        budgets={name: budget.limit for name, budget in plan.budgets.items()},
        candidates=len(ranked),
        chosen_by=look.by_calibration(best) if by_measurement else look.by_prediction,
        predictor=look.predictor,
        predicted=look.predicted(best),
        metric=proof.metric if proof else best.objective or best.asked,
        gap=proof.gap if proof else None,
        examples=look.examples if measured else 0,
        measured=measured,
        float_top1=look.float_top1,
        chance=chance,
        destroyed=destroyed,
        remedy=look.remedy() if destroyed else None,
        uniform=look.rival(best, uniform[0]) if uniform else None,
        runner_up=look.rival(best, others[0]) if others else None,
    )


class _Look:
    """Looks numbers of a plan's allocations up."""

    def __init__(self, plan: Plan, evaluation: Measurements | None) -> None:
        self.plan, self.evaluation = plan, evaluation
        self.predictor = shown_prediction(
            [a.predictions for a in plan.allocations if a.role in ("solution", "baseline")]
        )
        first = plan.allocations[0].predictions if plan.allocations else {}
        self.lead = next(iter(first), None)
        splits = evaluation.splits if evaluation else {}
        self.examples = int(splits.get("evaluation", {}).get("examples", 0))
        self.chance = _number(splits.get("evaluation", {}).get("chance"))
        self._float = evaluation.float if evaluation else {}
        self._reference = evaluation.reference if evaluation else None
        self._differences = evaluation.differences if evaluation else {}
        self.float_top1 = _number(self._float.get("evaluation", {}).get("top1"))
        self._calibrating = splits.get("calibration", {}).get("examples", "the")
        self.by_prediction = f"prediction by {self.lead}" if self.lead else ""

    def led(self, a: PlannedAllocation) -> float:
        """Prediction of the leading metric."""
        value = _number(a.predictions.get(self.lead or ""))
        return math.inf if math.isnan(value) else value

    def calibrated(self, a: PlannedAllocation) -> float:
        """Measured damage on the calibration split; infinite where unknown."""
        outcome = self._outcome(a, "calibration")
        value = outcome.damage[0] if outcome else math.nan
        return value if math.isfinite(value) else math.inf

    def by_calibration(self, a: PlannedAllocation) -> str:
        """Name of the measured quantity that chooses."""
        outcome = self._outcome(a, "calibration")
        assert outcome is not None
        return f"{outcome.quantity} on {self._calibrating} calibration examples"

    def measured(self, a: PlannedAllocation) -> Measured | None:
        """Outcome on the evaluation split."""
        return self._outcome(a, "evaluation")

    def predicted(self, a: PlannedAllocation) -> float | None:
        """Prediction of the shown predictor."""
        return a.predictions.get(self.predictor.name) if self.predictor else None

    def rival(self, best: PlannedAllocation, other: PlannedAllocation) -> Rival:
        """The comparison with another allocation."""
        ours, theirs = self.measured(best), self.measured(other)
        difference = sem = math.nan
        if ours is not None and theirs is not None and self._reference == best.name:
            row = self._differences.get(other.name, {})
            key = "kl" if math.isfinite(ours.kl) else "increase"
            difference, sem = _number(row.get(key)), _number(row.get(f"{key}_sem"))
        return Rival(
            name=other.name,
            allocation=other.allocation,
            costs=dict(other.costs),
            predicted=self.predicted(other),
            measured=theirs,
            verdict=(
                "same"
                if best.allocation == other.allocation
                else _verdict(ours, theirs, difference, sem)
            ),
            difference=difference,
            difference_sem=sem,
        )

    def is_destroyed(self, outcome: Measured) -> bool:
        """Whether the network is of no use any more."""
        return is_destroyed(outcome, self.float_top1, self.chance)

    def remedy(self) -> str | None:
        """The cheapest measured baseline that is not destroyed."""
        whole = [
            a
            for a in self.plan.allocations
            if a.role in ("baseline", "sweep")
            and (outcome := self.measured(a)) is not None
            and not self.is_destroyed(outcome)
        ]
        cheapest = min(whole, key=lambda a: a.costs.get("size_bytes", 0.0), default=None)
        return cheapest.name if cheapest else None

    def _outcome(self, a: PlannedAllocation, split: str) -> Measured | None:
        if self.evaluation is None:
            return None
        row = self.evaluation.measured.get(a.name, {}).get(split)
        return None if row is None else Measured.read(row, self._float.get(split, {}))


def is_destroyed(outcome: Measured, float_top1: float, chance: float) -> bool:
    """Whether a network is of no use any more.

    Args:
        outcome: Outcome of the network.
        float_top1: Top-1 of the float network; NaN where unknown.
        chance: Top-1 of guessing; NaN where unknown.
    """
    if not outcome.finite:
        return True
    guessed = 0.0 if math.isnan(chance) else chance
    above = float_top1 - guessed
    return above > 0 and outcome.top1 - guessed <= REMAINS * above


def _verdict(
    ours: Measured | None, theirs: Measured | None, difference: float, sem: float
) -> Verdict:
    """Two standard errors of the paired difference; not finite is worse than anything."""
    if ours is None or theirs is None:
        return "unknown"
    if ours.finite != theirs.finite:
        return "better" if ours.finite else "worse"
    if math.isnan(difference) or math.isnan(sem):
        return "unknown"
    if abs(difference) <= ERRORS * sem:
        return "level"
    return "better" if difference > 0 else "worse"


def _lines(r: Recommendation) -> Iterator[str]:
    also = f" (the same as {_some(r.aliases)})" if r.aliases else ""
    yield f"Use {r.name}{also}: {_costs(r.costs, r.budgets, limits=True)}."
    yield _layers(r.allocation)
    if r.measured is None:
        yield _predicted(r)
    else:
        reference = "" if math.isnan(r.float_top1) else (
            f" (float network: top-1 {100 * r.float_top1:.2f} %)")  # fmt: skip
        yield (
            f"Measured on {r.examples} evaluation examples, ± one standard error: "
            f"{r.measured}{reference}."
        )
    yield _against_uniform(r)
    if r.destroyed:
        yield _destroyed(r)
    elif r.runner_up is not None and r.measured is not None:
        yield _against_next(r)
    yield _proof(r)
    yield _choice(r)


def _choice(r: Recommendation) -> str:
    among = f"Chosen among {r.candidates} different answers of solvers within the budgets"
    if r.candidates == 1:
        among = "It is the only answer of solvers within the budgets"
    elif r.chosen_by:
        among += f" for the smallest {r.chosen_by}"
    if r.measured is None:
        return f"{among}. Nothing is measured yet: run `jmpq evaluate`."
    return f"{among}; the evaluation examples had no part in it."


def _layers(allocation: Allocation) -> str:
    """The layers of every choice, by name where they are few."""
    by_choice: dict[Choice, list[str]] = {}
    for layer, choice in allocation.items():
        by_choice.setdefault(choice, []).append(layer)
    if len(allocation) > NAMED:
        mix = ", ".join(f"{len(by_choice[c])} {c.label}" for c in sorted(by_choice))
        return f"Layers by bits of weights (W) and inputs (A): {mix}."
    mix = "; ".join(f"{c.label} {', '.join(by_choice[c])}" for c in sorted(by_choice))
    return f"Layers by bits of weights (W) and inputs (A): {mix}."


def _costs(used: Mapping[str, float], budgets: Mapping[str, float], *, limits: bool) -> str:
    parts = []
    costs = known_costs()
    names = dict.fromkeys((*budgets, "size_bytes", "average_bits"))
    for name in names:
        if name not in used:
            continue
        cost = costs[name]
        text = f"{cost.title} {cost.text(used[name])}"
        if limits and name in budgets:
            text += f" (budget {cost.text(budgets[name])})"
        parts.append(text)
    return ", ".join(parts)


def _predicted(r: Recommendation) -> str:
    if r.predictor is None or r.predicted is None:
        return "Nothing is predicted of it."
    return f"Predicted, not measured: {r.predictor.text(r.predicted)}."


def _against_uniform(r: Recommendation) -> str:
    if (other := r.uniform) is None:
        return "No uniform allocation is within the budgets." if r.budgets else ""
    label = other.name.replace("/", " ")
    label = f"{label[:1].upper()}{label[1:]}"
    label += f"{_exceptions(other.allocation)}, the best uniform allocation within the budgets"
    if other.verdict == "same":
        return f"{label}, is the same allocation."
    label += f" ({_costs(other.costs, r.budgets, limits=False)})"
    if other.measured is None or r.measured is None:
        if r.predictor is None or other.predicted is None:
            return ""
        return f"{label}: {r.predictor.text(other.predicted)}."
    words = {
        "better": "the recommended one is better",
        "worse": f"it is better: use {other.name} instead",
        "level": f"not distinguishable from the recommended one, {_saving(r, other)}",
        "unknown": "the measurements do not tell which is better",
    }
    return f"{label}: {other.measured}; {words[other.verdict]}{_test(other)}."


def _exceptions(allocation: Allocation) -> str:
    """The layers that do not have the choice of most: pins, the first and the last layer."""
    ((most, _),) = Counter(allocation.values()).most_common(1)
    others = {layer: choice for layer, choice in allocation.items() if choice != most}
    if len(others) > 3:
        return f" but for {plural(len(others), 'layer')} that may not take it"
    named = ", ".join(f"{layer} ({choice.label})" for layer, choice in others.items())
    return f" but for {named}" if named else ""


def _saving(r: Recommendation, other: Rival) -> str:
    """How much less the recommended allocation takes."""
    costs, saved = known_costs(), []
    for name in dict.fromkeys(("size_bytes", *r.budgets)):
        ours, theirs = r.costs.get(name, 0.0), other.costs.get(name, 0.0)
        if ours < theirs * (1 - 5e-4):
            saved.append(f"{100 * (1 - ours / theirs):.1f} % less {costs[name].title}")
    return f"which takes {' and '.join(saved)}" if saved else "which takes no less: use either"


def _against_next(r: Recommendation) -> str:
    other = r.runner_up
    assert other is not None
    if other.measured is None:
        return f"The next solution, {other.name}, was not measured on these examples."
    words = {
        "same": "is the same allocation",
        "better": "is worse",
        "worse": "is better on these examples, which may not choose",
        "level": "is not distinguishable from the recommended one",
        "unknown": "cannot be told from it by these measurements",
    }
    return f"The next solution, {other.name}, {words[other.verdict]}{_test(other)}."


def _test(other: Rival) -> str:
    if math.isnan(other.difference) or other.measured is None:
        return ""
    found = _plus_minus(abs(other.difference), other.difference_sem)
    side = "lower" if other.difference < 0 else "higher"
    return (
        f" ({other.measured.quantity} {found} {side} for {other.name}, paired by example; two "
        "standard errors tell apart)"
    )


def _destroyed(r: Recommendation) -> str:
    chance = "" if math.isnan(r.chance) else f" ({100 * r.chance:.1f} %)"
    text = f"This network is destroyed: its accuracy is near chance{chance}. Do not use it: "
    if r.remedy is not None:
        text += f"{r.remedy} is the cheapest measured allocation that is not; "
    return text + "raise the budgets, allow more bits, or retrain with `jmpq finetune`."


def _proof(r: Recommendation) -> str:
    loss = f"predicted loss by {r.metric}"
    if r.gap is None:
        return f"{PROOF}: none; it was found by a search that minimises {r.metric}."
    if r.gap <= OPTIMALITY:
        return f"{PROOF}: no allocation within the budgets has a smaller {loss}."
    part = f"{100 * r.gap:.2g} %"
    return f"{PROOF}: at most {part} of its {loss} could still be saved within the budgets."


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _plus_minus(value: float, sem: float, decimals: int | None = None) -> str:
    if decimals is not None:
        text = f"{value:.{decimals}f}"
        return f"{text} ± {sem:.{decimals}f}" if math.isfinite(sem) else text
    text = f"{value:.3g} ± {sem:.1g}" if math.isfinite(sem) else f"{value:.3g}"
    return text.replace("-", "−")


def _number(value: float | int | None) -> float:
    """A JSON number as a float; NaN for null or absent."""
    return math.nan if value is None else float(value)
