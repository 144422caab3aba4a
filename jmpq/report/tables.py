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
from jmpq.problem.costs import known_costs
from jmpq.problem.shown import DIVERGENCES, shown_prediction
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
from jmpq.run.planning.recommendation import is_destroyed
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
    every = plan["allocations"]
    known = [name for name in known_costs() if any(name in a["costs"] for a in every)]
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
        title="Before and after fine-tuning",
        note=f"Allocation {finetuning['name']}, evaluation split; {method}, {epochs} "
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
        title="Rank correlation of predictions",
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


def export_rows(exports: Json) -> list[Row]:
    """One row a file and runtime; a file that was not checked has one too."""
    return [
        row for name in exports["files"] for row in _export_rows(name, exports["files"][name])
    ]


def _export_rows(name: str, file: Json) -> Iterator[Row]:
    whole = {
        "name": f"{name}, of an earlier plan" if file["earlier_plan"] else name,
        "placement": file["placement"],
        "size_bytes": file["size_bytes"],
        "payload_bytes": file["payload_bytes"],
        "file_bytes": file["file_bytes"],
        "widened_bytes": file["widened_bytes"],
    }
    for runtime, found in file["checks"].items():
        row = {**whole, "runtime": f"{runtime} {found['version']}", **found["agreement"]}
        for size, times in found["cpu_ms"].items():
            row[f"ms_{size}"], row[f"float_ms_{size}"] = times["exported"], times["float"]
            row[f"speedup_{size}"] = times["float"] / times["exported"]
        yield row
    if not file["checks"]:
        yield {**whole, "runtime": "not run"}


def _export_table(exports: Json) -> Table:
    rows = export_rows(exports)
    return Table(
        name="exports",
        title="Files for other programs",
        note="T10. Each file in its own runtime beside jmpq's evaluation of the same "
        "allocation; processor time of one thread, medians of calls that took turns with the "
        f"float network in the same format, on {exports['device']}. The CSV has batch sizes "
        "and bytes in full.",
        rows=rows,
        columns=(
            Column(key="name", heading="file"),
            Column(key="placement", heading="activations"),
            Column(key="runtime", heading="runtime"),
            Column(key="file_bytes", heading="file (bytes)", format="text"),
            Column(key="size_bytes", heading="size_bytes", format="text"),
            Column(key="same_class", heading="same class (%)", format="percent"),
            Column(key="top1", heading="top-1 (%)", format="percent"),
            Column(key="top1_jmpq", heading="jmpq's top-1 (%)", format="percent"),
            Column(key="mean", heading="mean difference of logits", format="number"),
            Column(key="largest", heading="largest", format="number"),
            Column(key="ms_1", heading="batch 1 (ms)", format="number"),
            Column(key="float_ms_1", heading="float (ms)", format="number"),
            Column(key="speedup_1", heading="faster by", format="number"),
        ),
        shown=rows,
    )


def all_tables(contents: Contents) -> tuple[Table, ...]:
    """The tables of the report, in order."""
    plan, evaluation = contents.plan, contents.evaluation
    relative = relative_metrics(contents.sensitivities)
    allocations = allocation_rows(plan, evaluation, relative=relative)
    main = main_rows(contents, allocations)
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
            note="Equal allocations share a row; the recommended one comes first. Measured on "
            "evaluation examples, ± one standard error. Gap: predicted loss above the best "
            "proven bound, in percent of that loss. Click a heading to sort. The CSV has every "
            "allocation and every number.",
            rows=allocations,
            columns=allocation_columns(plan, main, evaluated=contents.evaluated),
            shown=main,
        ),
        *([_finetuning_table(contents.finetuning)] if contents.finetuning else []),
        *([_export_table(contents.exports)] if contents.exports else []),
        *([_correlation_table(correlations)] if contents.evaluated else []),
        Table(
            name="bits",
            title="Bits per layer, as a table",
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
            title="Distance from the proven optimum, as a table",
            note="Predicted loss above the best lower bound that any solver proved for the "
            "same metric and budgets, in percent of that loss; the CSV has both.",
            rows=gaps,
            columns=(
                Column(key="name", heading="allocation"),
                Column(key="metric", heading="metric"),
                Column(key="gap", heading="gap (%)", format="percent"),
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


def main_rows(contents: Contents, rows: Sequence[Row]) -> list[Row]:
    """One row an allocation with all its names, the recommended one first.

    `proven_gap` is the gap to the best bound of any solver, `mark` what a reader must know of
    the row: ``recommended``, ``destroyed``, ``over budget`` or nothing. Random baselines are
    one row, their mean.
    """
    plan, lead = contents.plan, contents.recommendation
    values = {a["name"]: Allocation.from_json(a["allocation"]) for a in plan["allocations"]}
    gaps = {row["name"]: row["gap"] for row in gap_rows(plan)}
    groups: dict[Allocation, list[Row]] = {}
    for row in rows:
        if row["kind"] not in _UNSHOWN:
            groups.setdefault(values[row["name"]], []).append(row)
    merged = []
    for value, group in groups.items():
        names = [row["name"] for row in group]
        known = [gap for name in names if not math.isnan(gap := gaps.get(name, math.nan))]
        recommended = lead is not None and value == lead.allocation
        if lead is not None:
            names.sort(key=lambda name: name != lead.name)
        row = {**group[0], "name": " = ".join(names), "recommended": recommended}
        row["proven_gap"] = min(known, default=None)
        row["mark"] = _mark(contents, group[0], recommended=recommended)
        merged.append(row)
    randoms = [row for row in merged if row["kind"] == "random baseline"]
    merged = [row for row in merged if row["kind"] != "random baseline"]
    if randoms:
        merged.append(_mean(randoms))
    return sorted(merged, key=lambda row: not row["recommended"])


def _mean(rows: Sequence[Row]) -> Row:
    """Means of the numbers of some rows, where all of them have one; without errors."""
    row: Row = {"name": f"random, mean of {len(rows)}", "recommended": False, "mark": ""}
    for key, value in rows[0].items():
        values = [other[key] for other in rows]
        numbers = isinstance(value, float) and None not in values
        if key not in row and numbers and "_sem" not in key:
            row[key] = float(np.mean(values))
    return row


def _mark(contents: Contents, row: Row, *, recommended: bool) -> str:
    facts = contents.evaluation["splits"].get("evaluation", {})
    floats = contents.evaluation["float"].get("evaluation", {})
    found = outcome(contents.evaluation, row["name"], "evaluation")
    if found and is_destroyed(found, number(floats.get("top1")), number(facts.get("chance"))):
        return "destroyed"
    if not row["within_budgets"]:
        return "over budget"
    return "recommended" if recommended else ""


def allocation_columns(plan: Json, rows: Sequence[Row], *, evaluated: bool) -> Sequence[Column]:
    """One quantity a column: who, what it costs, what it measures, one prediction, the gap."""
    main = [a for a in plan["allocations"] if kind(a) not in _UNSHOWN]
    shown = shown_prediction([a.get("predictions", {}) for a in main])
    costs = [n for n in known_costs() if n in plan["budgets"] or n == "size_bytes"]
    return (
        Column(key="name", heading="allocation"),
        Column(key="mark", heading=""),
        *(column for column in _cost_columns(rows) if column.key in costs),
        *(_MEASURED_COLUMNS if evaluated else ()),
        *([Column(key=shown.name, heading=shown.heading, format="loss")] if shown else []),
        Column(key="proven_gap", heading="gap (%)", format="percent"),
    )


_MEASURED_COLUMNS = (
    Column(key="kl_evaluation", heading="KL (nats)", format="loss", sem="kl_sem_evaluation"),
    Column(key="top1_evaluation", heading="top-1 (%)", format="percent",
           sem="top1_sem_evaluation"),
)  # fmt: skip


def _cost_columns(rows: Sequence[Row]) -> Iterator[Column]:
    """One column for every cost that rows have, in the unit of its largest."""
    for name, cost in known_costs().items():
        if values := [row[name] for row in rows if row.get(name) is not None]:
            divisor, unit = cost.scale(max(values))
            heading = f"{cost.title} ({unit})" if unit else cost.title
            yield Column(key=name, heading=heading, format="cost", divisor=divisor)


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
