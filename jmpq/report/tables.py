"""The tables behind the figures: plain rows, as CSV and as text for the page."""

import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jmpq.allocation import Allocation
from jmpq.formats import FLOAT_BITS, Choice
from jmpq.network.layers import Layer, LayerType, layer_type, types_of
from jmpq.problem.costs import COSTS
from jmpq.problem.shown import DIVERGENCES, shown_as
from jmpq.report.contents import Contents, Json, relative_metrics
from jmpq.report.figure_finetuning import STAGES
from jmpq.report.measured import (
    Group,
    Split,
    Target,
    compare,
    gap_rows,
    kind,
    metrics_of,
    number,
    outcome,
    within_budgets,
)
from jmpq.sensitivity.table import Sensitivity

Row = dict[str, Any]
UNQUANTIZED = Choice(FLOAT_BITS)
Format = Literal["text", "number", "percent", "cost", "loss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table in the page: key of the rows, heading with unit, format.

    `sem` is the key of the standard error that is written behind the value, `divisor` what
    values are divided by, as the heading says.
    """

    key: str
    heading: str
    format: Format = "text"
    sem: str | None = None
    divisor: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with a name; the CSV has every row and key, the page `columns` of `shown`."""

    name: str
    title: str
    note: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    shown: Sequence[Row]


def allocation_rows(
    plan: Json, evaluation: Json, *, relative: Collection[str] = ()
) -> list[Row]:
    """Every allocation of the plan: costs, predictions, bound, gap, what was measured.

    `gap` is the plan's, against the solver's own bound; `measured_over_predicted` the
    measured loss increase on the calibration split over the loss predicted by the
    allocation's own metric (none for a metric in `relative`, which is not in nats). Numbers
    that are unknown are None; losses in nats per example, top-1 a fraction.
    """
    rows = []
    known = [name for name in COSTS if any(name in a["costs"] for a in plan["allocations"])]
    for allocation in plan["allocations"]:
        predicted = number(allocation.get("predicted_loss"))
        costs = allocation["costs"]
        row: Row = {
            "name": allocation["name"],
            "kind": kind(allocation),
            "asked": allocation.get("asked"),
            "metric": allocation.get("metric"),
            "status": allocation.get("status"),
            "seed": allocation.get("seed"),
            "within_budgets": within_budgets(allocation, plan),
            "predicted_loss": predicted,
            "bound": number(allocation.get("bound")),
            "gap": number(allocation.get("gap")),
            "wall_s": number(allocation.get("wall_s")),
            **{name: number(costs.get(name)) for name in known},
            **{
                key: number(allocation.get("predictions", {}).get(key))
                for key in dict.fromkeys((*metrics_of(plan), *DIVERGENCES))
            },
        }
        for split in ("calibration", "evaluation"):
            found = outcome(evaluation, allocation["name"], split)
            values = dataclasses.asdict(found) if found else {}
            for key in ("increase", "increase_sem", "kl", "kl_sem", "top1", "top1_sem"):
                row[f"{key}_{split}"] = values.get(key, math.nan)
        usable = predicted > 0 and allocation.get("metric") not in relative
        row["measured_over_predicted"] = (
            row["increase_calibration"] / predicted if usable else math.nan
        )
        rows.append({key: _known(value) for key, value in row.items()})
    return rows


def bits_rows(plan: Json, types: Mapping[str, LayerType]) -> list[Row]:
    """One row a layer: its type, and its choice in every solution and baseline."""
    chosen = [a for a in plan["allocations"] if a["role"] in ("solution", "baseline")]
    return [
        {
            "layer": layer,
            "type": types.get(layer),
            **{a["name"]: a["allocation"].get(layer) for a in chosen},
        }
        for layer in plan["layers"]
    ]


def type_rows(plan: Json, layers: Sequence[Layer]) -> list[Row]:
    """One row a type of layer: mean weight bits of its parameters in every solution."""
    chosen = [a for a in plan["allocations"] if a["role"] in ("solution", "baseline")]
    bits = {a["name"]: Allocation.from_json(a["allocation"]) for a in chosen}
    groups: dict[LayerType, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer_type(layer), []).append(layer)
    rows = []
    for shared, group in groups.items():
        row: Row = {"type": shared, "layers": len(group)}
        row["parameters"] = sum(layer.parameters for layer in group)
        for name, allocation in bits.items():
            used = sum(
                layer.parameters * allocation.get(layer.name, UNQUANTIZED).w_bits
                for layer in group
            )
            row[name] = used / row["parameters"]
        rows.append(row)
    return rows


def sensitivity_rows(
    sensitivities: Mapping[str, Sensitivity], types: Mapping[str, LayerType]
) -> list[Row]:
    """One row for each metric, layer and choice: loss and standard error, nats per example."""
    return [
        {"metric": metric, "layer": layer, "type": types.get(layer), "choice": choice.label,
         "loss": float(np.asarray(result.losses)[i, j]),
         "sem": float(np.asarray(result.sem)[i, j])}
        for metric, result in sensitivities.items()
        for i, layer in enumerate(result.layers)
        for j, choice in enumerate(result.choices)
    ]  # fmt: skip


def correlation_rows(
    plan: Json, evaluation: Json, *, relative: Collection[str] = ()
) -> list[Row]:
    """Rank correlation and calibration ratio of every metric, group, target and split."""
    rows = []
    groups: tuple[Group, ...] = ("single", "joint")
    targets: tuple[Target, ...] = ("increase", "kl")
    splits: tuple[Split, ...] = ("calibration", "evaluation")
    for key in itertools.product(metrics_of(plan), groups, targets, splits):
        metric, group, target, split = key
        found = compare(
            plan,
            evaluation,
            metric=metric,
            group=group,
            target=target,
            split=split,
            relative=relative,
        )
        rows.append(
            {
                "metric": metric,
                "allocations": group,
                "measured": "loss increase" if target == "increase" else "KL",
                "split": split,
                "points": int(found.counted.sum()),
                "spearman": _known(found.rho),
                "median_measured_over_predicted": _known(found.ratio),
            }
        )
    return rows


def provenance_rows(contents: Contents) -> list[Row]:
    """Splits, hashes, versions, quantizers and rules, as name and value."""
    plan, evaluation = contents.plan, contents.evaluation
    rows: list[Row] = []
    for split, facts in evaluation.get("splits", {}).items():
        for key, value in facts.items():
            rows.append({"of": f"{split} split", "name": key, "value": _text(value)})
        reference = evaluation["float"].get(split, {})
        for key, value in reference.items():
            rows.append({"of": f"float network, {split} split", "name": key, "value": value})
    for source, name in ((plan, "plan"), (evaluation, "evaluation")):
        skipped = ("layers", "choices", "allocations", "measured", "splits", "float", "budgets")
        for key, value in source.items():
            if key not in skipped:
                rows.append({"of": name, "name": key, "value": _text(value)})
    for key, value in dataclasses.asdict(contents.layers.network).items():
        rows.append({"of": "network", "name": key, "value": _text(value)})
    return rows


def finetuning_rows(finetuning: Json) -> list[Row]:
    """Float, post-training and fine-tuned on the evaluation split: what was measured."""
    return [
        {"name": STAGES[name], **{k: number(v) for k, v in outcome.items()}}
        for name in STAGES
        if (outcome := finetuning["outcomes"].get(name)) is not None
    ]


def _finetuning_table(finetuning: Json) -> Table:
    rows, method = finetuning_rows(finetuning), finetuning["config"]["method"]
    epochs = finetuning["config"]["training"]["epochs"]
    return Table(
        name="finetuning",
        title="Post-training against fine-tuned",
        note=f"T7. Allocation {finetuning['name']}, evaluation split; {method}, {epochs} "
        f"epochs, {finetuning['steps']} steps in {finetuning['seconds']:.0f} s. KL to the "
        "float network; ± is one standard error.",
        rows=rows,
        columns=(
            Column(key="name", heading="network"),
            Column(key="loss", heading="loss", format="loss", sem="loss_sem"),
            Column(key="kl", heading="KL", format="loss", sem="kl_sem"),
            Column(key="top1", heading="top-1 (%)", format="percent", sem="top1_sem"),
            Column(key="agreement", heading="agrees with float (%)", format="percent"),
        ),
        shown=rows,
    )


def _correlation_table(correlations: Sequence[Row]) -> Table:
    return Table(
        name="correlations",
        title="Predicted against measured",
        note="Spearman's rank correlation, and the median of measured/predicted, by "
        "metric; joint: over the random allocations drawn without a budget (all joint "
        "ones where fewer than three were measured).",
        rows=correlations,
        columns=(
            Column(key="metric", heading="metric"),
            Column(key="allocations", heading="allocations"),
            Column(key="measured", heading="measured"),
            Column(key="split", heading="split"),
            Column(key="points", heading="points", format="number"),
            Column(key="spearman", heading="rank correlation", format="number"),
            Column(key="median_measured_over_predicted", heading="measured / predicted",
                   format="number"),
        ),
        shown=[row for row in correlations if row["points"]],
    )  # fmt: skip


def all_tables(contents: Contents) -> tuple[Table, ...]:
    """The tables of the report, in order."""
    plan, evaluation = contents.plan, contents.evaluation
    relative = relative_metrics(contents.sensitivities)
    allocations = allocation_rows(plan, evaluation, relative=relative)
    main = _merged(plan, [r for r in allocations if r["kind"] not in _UNSHOWN])
    layers = contents.layers.layers
    bits = bits_rows(plan, types_of(layers))
    by_type = type_rows(plan, layers)
    few = [a["name"] for a in plan["allocations"] if a["role"] == "solution"][:8]
    provenance = provenance_rows(contents)
    correlations = correlation_rows(plan, evaluation, relative=relative)
    gaps = gap_rows(plan)
    return (
        Table(
            name="allocations",
            title="Solutions and baselines",
            note="Names of one allocation share a row. A score has no unit: only the order "
            "tells something. Gap: loss by the solution's own metric above the solver's lower "
            "bound, in percent of that loss. Ratio: measured loss increase on the calibration "
            "split over the one predicted by its own metric. ± is one standard error. The CSV "
            "has the single-layer, random and other-budget allocations too, and every "
            "allocation's loss and bound by its own metric.",
            rows=allocations,
            columns=_allocation_columns(plan, main, evaluated=contents.evaluated),
            shown=main,
        ),
        *([_finetuning_table(contents.finetuning)] if contents.finetuning else []),
        *([_correlation_table(correlations)] if contents.evaluated else []),
        Table(
            name="bits",
            title="Bits per layer",
            note="W: weight bits, A: activation bits; 32 is unquantized. The CSV has the "
            "baselines too.",
            rows=bits,
            columns=[Column(key="layer", heading="layer"), Column(key="type", heading="type"),
                     *(Column(key=name, heading=name) for name in few)],
            shown=bits,
        ),
        Table(
            name="types",
            title="Bits by type of layer",
            note="Mean weight bits over the parameters of all layers of a type; 32 is "
            "unquantized. The CSV has the baselines too.",
            rows=by_type,
            columns=[Column(key="type", heading="type"),
                     Column(key="layers", heading="layers"),
                     Column(key="parameters", heading="parameters"),
                     *(Column(key=name, heading=name, format="number") for name in few)],
            shown=by_type,
        ),
        Table(
            name="gaps",
            title="Optimality gaps",
            note="Predicted loss above the best lower bound that any solver proved for the "
            "same metric and budgets, in percent of that loss; the CSV has both.",
            rows=gaps,
            columns=(
                Column(key="name", heading="allocation"),
                Column(key="metric", heading="metric"),
                Column(key="gap", heading="gap (%)", format="percent"),
                Column(key="wall_s", heading="wall time (s)", format="number"),
            ),
            shown=gaps,
        ),
        Table(
            name="provenance",
            title="Splits and provenance",
            note="Where the numbers come from.",
            rows=provenance,
            columns=(
                Column(key="of", heading="of"),
                Column(key="name", heading="name"),
                Column(key="value", heading="value"),
            ),
            shown=provenance,
        ),
    )  # fmt: skip


_UNSHOWN = ("sweep", "single", "random")  # kinds of which the page shows only figures


def _merged(plan: Json, rows: Sequence[Row]) -> list[Row]:
    """One row an allocation, with all its names and the best that was proven of it."""
    values = {a["name"]: Allocation.from_json(a["allocation"]) for a in plan["allocations"]}
    groups: dict[Allocation, list[Row]] = {}
    for row in rows:
        groups.setdefault(values[row["name"]], []).append(row)
    merged = []
    for group in groups.values():
        proven = min(group, key=lambda row: math.inf if row["gap"] is None else row["gap"])
        names = " = ".join(row["name"] for row in group)
        merged.append(
            {**group[0], "name": names, "status": proven["status"], "gap": proven["gap"]}
        )
    return merged


_PROOF_COLUMNS = (
    Column(key="status", heading="proof"),
    Column(key="gap", heading="gap (%)", format="percent"),
)
_MEASURED_COLUMNS = (
    Column(key="kl_calibration", heading="KL, calibration (nats)", format="loss",
           sem="kl_sem_calibration"),
    Column(key="increase_calibration", heading="loss increase, calibration (nats)",
           format="loss", sem="increase_sem_calibration"),
    Column(key="measured_over_predicted", heading="ratio", format="number"),
    Column(key="increase_evaluation", heading="loss increase, evaluation (nats)",
           format="loss", sem="increase_sem_evaluation"),
    Column(key="kl_evaluation", heading="KL, evaluation (nats)", format="loss",
           sem="kl_sem_evaluation"),
    Column(key="top1_evaluation", heading="top-1 (%), evaluation", format="percent",
           sem="top1_sem_evaluation"),
)  # fmt: skip


def _allocation_columns(
    plan: Json, rows: Sequence[Row], *, evaluated: bool
) -> Sequence[Column]:
    """One quantity a column: who, every cost, the leading and joint predictions, measured."""
    main = [a for a in plan["allocations"] if kind(a) not in _UNSHOWN]
    predictions = [a.get("predictions", {}) for a in main]
    names: list[str] = [name for row in predictions[:1] for name in row][:1]  # that leads
    names += [name for name in DIVERGENCES if any(name in row for row in predictions)]
    return (
        Column(key="name", heading="allocation"),
        Column(key="within_budgets", heading="within budgets"),
        *_cost_columns(rows),
        *_PROOF_COLUMNS,
        *(
            Column(key=name, heading=shown_as(name, predictions).heading, format="loss")
            for name in dict.fromkeys(names)
        ),
        *(_MEASURED_COLUMNS if evaluated else ()),
    )


def _cost_columns(rows: Sequence[Row]) -> Iterator[Column]:
    """One column for every cost that rows have, in the unit of its largest."""
    for name, cost in COSTS.items():
        if values := [row[name] for row in rows if row.get(name) is not None]:
            divisor, _ = cost.scale(max(values))
            yield Column(
                key=name, heading=cost.label(max(values)), format="cost", divisor=divisor
            )


def cell(row: Mapping[str, Any], column: Column) -> str:
    """A value as it stands in the page; an en dash where it is unknown."""
    value = row.get(column.key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) or column.format == "text":
        return str(value)
    scale, spec = _FORMATS[column.format]
    scale /= column.divisor
    text = format(value * scale, spec)
    sem = row.get(column.sem) if column.sem else None
    if sem is not None and math.isfinite(sem):
        text += f" ± {format(sem * scale, '.2f' if column.format == 'percent' else '.1g')}"
    return text.replace("-", "−")


_FORMATS: dict[str, tuple[float, str]] = {
    "number": (1.0, ".3g"),
    "percent": (100.0, ".2f"),
    "cost": (1.0, ".4g"),
    "loss": (1.0, ".3g"),
}


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a heading; unknown values are empty. Keys may differ by row."""
    buffer = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(buffer, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: _known(v) for k, v in row.items()} for row in rows])
    return buffer.getvalue()


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
