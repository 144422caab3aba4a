"""The run in a few sentences: what was quantized, under which budget, what won."""

import math
from collections.abc import Sequence
from typing import Any

from jmpq.problem.shown import shown_as
from jmpq.report.contents import Contents, Json
from jmpq.report.measured import (
    evaluated,
    kind,
    metrics_of,
    number,
    outcome,
    within_budgets,
)
from jmpq.report.style import cost_named, metric_name


def summary(contents: Contents) -> list[tuple[str, str]]:
    """Heading and sentences for the top of the page, in reading order."""
    plan, evaluation = contents.plan, contents.evaluation
    found = [
        ("Network", _network(contents)),
        ("Budget", _budgets(plan)),
        ("By prediction", _predicted(plan)),
    ]
    if not contents.evaluated:
        return found
    found += [
        ("By measurement", _measured(plan, evaluation)),
        ("Accuracy", _accuracy(plan, evaluation)),
        ("Examples", _examples(evaluation)),
    ]
    if missing := unmeasured(plan, evaluation):
        text = f"{len(missing)} of {len(plan['allocations'])} allocations were not evaluated"
        text += f" and are left out where a measurement is needed: {_some(missing)}."
        found.append(("Not measured", text))
    return [(heading, text) for heading, text in found if text]


def unmeasured(plan: Json, evaluation: Json) -> list[str]:
    """Names of the plan's allocations that lack a measurement on the evaluation split."""
    done = set(evaluated(plan, evaluation, "evaluation"))
    return [a["name"] for a in plan["allocations"] if a["name"] not in done]


def _network(contents: Contents) -> str:
    plan = contents.plan
    table = {layer.name: layer for layer in contents.layers.layers}
    weights = sum(table[layer].parameters for layer in plan["layers"])
    model = contents.layers.network.model
    text = f"{len(plan['layers'])} layers of {model} with {weights:,} weights were quantized; "
    text += f"candidates for each: {', '.join(plan['choices'])}."
    if others := [name for name in table if name not in set(plan["layers"])]:
        text += f" Not searched: {_some(others)}."
    if rules := plan.get("rules"):
        text += f" Rules: {'; '.join(str(rule) for rule in rules)}."
    return text


def _budgets(plan: Json) -> str:
    parts = []
    for name, budget in plan["budgets"].items():
        cost = cost_named(name)
        text = f"{cost.title} at most {cost.text(float(budget['limit']))}"
        if budget.get("asked") is not None:
            text += f", asked as {budget['asked']}"
        if budget.get("least") is not None and budget.get("most") is not None:
            most = float(budget["most"])
            least = cost.text(float(budget["least"]), largest=most)
            text += f" (reachable: {least} to {cost.text(most)})"
        parts.append(text)
    return "; ".join(parts) + "." if parts else "No budget."


def _candidates(plan: Json) -> list[Json]:
    """Solutions and baselines that meet the plan's budgets."""
    return [
        a
        for a in plan["allocations"]
        if a["role"] in ("solution", "baseline") and within_budgets(a, plan)
    ]


def _predicted(plan: Json) -> str:
    sentences = []
    solved = {a["metric"] for a in plan["allocations"] if a["role"] == "solution"}
    for metric in [m for m in metrics_of(plan) if m in solved]:
        rows = [a for a in _candidates(plan) if metric in a.get("predictions", {})]
        if not rows:
            continue
        best = min(rows, key=lambda a: (a["predictions"][metric], a["metric"] != metric))
        shown = shown_as(metric, [a["predictions"] for a in rows])
        text = f"{metric_name(metric)} ranks {best['name']} first, predicted {shown.quantity} "
        text += shown.value(best["predictions"][metric])
        sentences.append(text + _proof(best, metric) + ".")
    return " ".join(_capital(sentence) for sentence in sentences)


def _proof(allocation: Json, metric: str) -> str:
    if allocation["metric"] != metric:
        return ""
    gap = number(allocation.get("gap"))
    if allocation.get("status") == "optimal":
        return " (proven optimal for this metric and budget)"
    if math.isnan(gap):
        return " (no bound proven)"
    return f" (gap {100 * gap:.2g} %: at most this part of it could still be saved)"


def _measured(plan: Json, evaluation: Json) -> str:
    rows = [(a, outcome(evaluation, a["name"], "evaluation")) for a in _candidates(plan)]
    known = [(a, o) for a, o in rows if o is not None and math.isfinite(o.increase)]
    if not known:
        return "No solution or baseline within the budget was measured."
    best, found = min(known, key=lambda pair: pair[1].increase)
    text = f"{best['name']} has the smallest loss increase on the evaluation split of the "
    text += f"{len(known)} solutions and baselines within the budget: "
    text += f"{_plus_minus(found.increase, found.increase_sem)} nats per example"
    if math.isfinite(found.kl):
        text += f", KL divergence {_plus_minus(found.kl, found.kl_sem)}"
    uniform = [pair for pair in known if kind(pair[0]) == "uniform"]
    if uniform:
        other, value = min(uniform, key=lambda pair: pair[1].increase)
        if other["name"] != best["name"]:
            text += f"; the best uniform one, {other['name']}, has "
            text += _plus_minus(value.increase, value.increase_sem)
    return text + ". Differences below about two standard errors are not resolved."


def _accuracy(plan: Json, evaluation: Json) -> str:
    rows = [(a, outcome(evaluation, a["name"], "evaluation")) for a in _candidates(plan)]
    known = [(a, o) for a, o in rows if o is not None and math.isfinite(o.top1)]
    if not known:
        return ""
    parts = []
    reference = evaluation["float"].get("evaluation", {}).get("top1")
    if reference is not None:
        parts.append(f"float network {100 * reference:.2f} %")
    parts += [f"{a['name']} {_percent(o)}" for a, o in known if a["role"] == "solution"]
    for name in ("uniform", "reversed"):
        group = [(a, o) for a, o in known if kind(a) == name]
        if group:
            best, found = max(group, key=lambda pair: pair[1].top1)
            parts.append(f"{best['name']} {_percent(found)}")
    randoms = [o.top1 for a, o in known if kind(a) == "random baseline"]
    if randoms:
        mean = 100 * sum(randoms) / len(randoms)
        parts.append(f"random (mean of {len(randoms)} seeds) {mean:.2f} %")
    return f"Top-1 on the evaluation split: {'; '.join(parts)}."


def _examples(evaluation: Json) -> str:
    parts = []
    for split, facts in evaluation.get("splits", {}).items():
        source = facts.get("source", "unknown source")
        note = f"; {facts['note']}" if facts.get("note") else ""
        parts.append(f"{split} split: {facts.get('examples', '?')} examples ({source}{note})")
    return _capital("; ".join(parts)) + "." if parts else ""


def _percent(found: Any) -> str:
    text = f"{100 * found.top1:.2f}"
    return f"{text} ± {100 * found.top1_sem:.2f} %" if math.isfinite(found.top1_sem) else (
        f"{text} %")  # fmt: skip


def _plus_minus(value: float, sem: float) -> str:
    text = f"{value:.3g} ± {sem:.1g}" if math.isfinite(sem) else f"{value:.3g}"
    return text.replace("-", "−")


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
