"""The first screen, and the run in a few sentences: network, budget, examples."""

import dataclasses
import math
from collections.abc import Sequence

from jmpq.allocation import Allocation
from jmpq.report.contents import Contents, Json
from jmpq.report.measured import evaluated, kind, number
from jmpq.report.style import cost_named
from jmpq.report.tables import Column, Row, allocation_columns, allocation_rows, cell, main_rows
from jmpq.run.planning.recommendation import Recommendation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a reader wants to know first.

    Attributes:
        title: Advice in a few words.
        destroyed: Whether the recommended network is of no use.
        columns: The recommended allocation, the best uniform one, and the float network.
        rows: Quantity that is compared, then a cell for each of `columns`.
        sentences: Meaning of the numbers, in reading order.
    """

    title: str
    destroyed: bool
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    sentences: tuple[str, ...]


def answer(contents: Contents) -> Answer | None:
    """The answer of a run; None where no solution is within the budgets."""
    lead = contents.recommendation
    if lead is None:
        return None
    plan, evaluation = contents.plan, contents.evaluation
    every = main_rows(contents, allocation_rows(plan, evaluation))
    shown = [
        column
        for column in allocation_columns(plan, every, evaluated=contents.evaluated)
        if column.key not in ("name", "mark", "proven_gap")
    ]
    if contents.evaluated:
        sem = "increase_sem_evaluation"
        loss = Column(
            key="increase_evaluation", heading="loss increase (nats)", format="loss", sem=sem
        )
        shown.insert(-1, loss)
    first = every[0]
    compared = {"take this": first}
    values = {a["name"]: Allocation.from_json(a["allocation"]) for a in plan["allocations"]}
    if (uniform := lead.uniform) is not None and values[uniform.name] != lead.allocation:
        row = next(r for r in every if uniform.name in r["name"].split(" = "))
        compared[uniform.name.replace("/", " ")] = row
    if contents.evaluated:
        compared["float"] = _float_row(contents)
    gap = first["proven_gap"]
    proven = lead if gap is None or lead.gap is None else dataclasses.replace(lead, gap=gap)
    title = f"Take {lead.name}"
    if lead.destroyed:
        title = f"Do not deploy {lead.name}: the network is destroyed"
    said = [lead.warning, _verdict(lead), proven.proof, lead.against_next, lead.choice]
    if lead.examples:
        said.append(f"Measured on {lead.examples:,} examples; ± is one standard error.")
    return Answer(
        title=title,
        destroyed=lead.destroyed,
        columns=tuple(compared),
        rows=tuple(
            (column.heading, tuple(cell(row, column) for row in compared.values()))
            for column in shown
        ),
        sentences=tuple(sentence for sentence in said if sentence),
    )


def _verdict(lead: Recommendation) -> str:
    """How the best uniform allocation compares, in one sentence without its numbers."""
    other = lead.uniform
    if other is None or other.measured is None or lead.measured is None:
        return lead.against_uniform
    quantity = lead.measured.quantity
    error = f"two standard errors of the difference in {quantity}"
    return {
        "same": lead.against_uniform,
        "better": f"It loses less than the best uniform allocation, by more than {error}.",
        "worse": f"Use {other.name}: it loses less, by more than {error}.",
        "level": f"It is level with the best uniform allocation, within {error}.",
        "unknown": "The measurements do not tell it from the best uniform allocation.",
    }[other.verdict]


def _float_row(contents: Contents) -> Row:
    """The float network as a row of the table of allocations."""
    floats = contents.evaluation["float"].get("evaluation", {})
    names = [layer.parameters for layer in contents.layers.layers]
    row: Row = {"size_bytes": 4.0 * (sum(names) + contents.layers.other_parameters)}
    row |= {"top1_evaluation": number(floats.get("top1"))}
    row |= {"top1_sem_evaluation": number(floats.get("top1_sem"))}
    return row | {"kl_evaluation": math.nan}


def summary(contents: Contents) -> list[tuple[str, str]]:
    """Heading and sentences about the run, in reading order."""
    plan, evaluation = contents.plan, contents.evaluation
    found = [("Network", _network(contents)), ("Budget", _budgets(plan))]
    if contents.evaluated:
        found.append(("Examples", _examples(evaluation)))
    if contents.evaluated and (missing := unmeasured(plan, evaluation)):
        text = f"{len(missing)} of {len(plan['allocations'])} allocations were not evaluated "
        text += f"and are left out where a measurement is needed: {_some(missing)}."
        found.append(("Not measured", text))
    return [(heading, text) for heading, text in found if text]


def is_partial(plan: Json, evaluation: Json) -> bool:
    """Whether a solution or a uniform allocation lacks a measurement, as after a stop."""
    lacking = set(unmeasured(plan, evaluation))
    return any(
        a["name"] in lacking
        for a in plan["allocations"]
        if a["role"] == "solution" or kind(a) == "uniform"
    )


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


def _examples(evaluation: Json) -> str:
    parts = []
    for split, facts in evaluation.get("splits", {}).items():
        source = facts.get("source", "unknown source")
        note = f"; {facts['note']}" if facts.get("note") else ""
        parts.append(f"{split} split: {facts.get('examples', '?')} examples ({source}{note})")
    return _capital("; ".join(parts)) + "." if parts else ""


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
