"""What steps return, as tables on the terminal."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from jmpq.allocation import Allocation
from jmpq.latency.record import (
    LatencyCheck,
    LatencyRecord,
    TimedAllocation,
    TimedNetwork,
)
from jmpq.network.layers import layer_type
from jmpq.problem import Plan, PlannedAllocation
from jmpq.problem.costs import known_costs
from jmpq.problem.shown import shown_prediction
from jmpq.problem.solution import OPTIMALITY
from jmpq.run.artifacts import Export, LayerTable
from jmpq.run.planning.recommendation import Recommendation
from jmpq.text import plural


def show_layers(layers: LayerTable) -> None:
    """Every layer, and their sums."""
    table = Table("layer", "type", "kernel", "parameters", "MACs", "input")
    for layer in layers.layers:
        kernel, given = ("x".join(map(str, s)) for s in (layer.kernel_shape, layer.input_shape))
        if layer.kind == "cache":
            kernel = "-"
        counts = (f"{layer.parameters:,}", f"{layer.macs:,}")
        table.add_row(layer.name, layer_type(layer), kernel, *counts, given)
    console = _printed(table)
    parameters = sum(layer.parameters for layer in layers.layers)
    macs = sum(layer.macs for layer in layers.layers)
    console.print(
        f"{len(layers.layers)} layers, {parameters:,} parameters, {macs:,} MACs per "
        f"example; {layers.other_parameters:,} other parameters stay unquantized."
    )
    if layers.unused:
        console.print(f"Unused, they do not reach the output: {', '.join(layers.unused)}.")
    if layers.data_note:
        console.print(layers.data_note)
    if layers.equalized:
        pairs = ", ".join(f"{one} - {two}" for one, two in layers.equalized)
        console.print(f"Ranges equalised: {pairs}.")


def show_export(export: Export) -> None:
    """Bytes, agreement with the evaluation, and processor time of an exported file."""
    table = Table("", export.name, "jmpq", "float", box=box.SIMPLE, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    if export.payload_bytes:
        sizes = f"{export.payload_bytes:,}", f"{export.size_bytes:,}"
        table.add_row("payload, bytes", *sizes, "")
    table.add_row("file, bytes", f"{export.file_bytes:,}", "", "")
    for runtime, found in export.checks.items():
        checked = found.agreement
        table.add_section()
        table.add_row(f"in {runtime} {found.version}")
        if checked["top1"] is not None:
            top1 = (f"{100 * (checked[key] or 0):.2f}" for key in ("top1", "top1_jmpq"))
            table.add_row("top-1, %", *top1, "")
        same = 100 * (checked["same_class"] or 0)
        table.add_row("same class as jmpq, %", f"{same:.2f}", "", "")
        for key in ("mean", "largest"):
            table.add_row(f"{key} difference of logits", f"{checked[key]:.2g}", "", "")
        for size, times in found.cpu_ms.items():
            one, other = (f"{times[key]:.3g}" for key in ("exported", "float"))
            table.add_row(f"CPU time, batch {size}, ms", one, "", other)
    console = _printed(table)
    for found in list(export.checks.values())[:1]:
        examples = f"{int(found.agreement['examples'] or 0):,} evaluation examples"
        console.print(f"Run on {examples}, one thread. Activations: {export.placement}.")
    if export.widened:
        stored = ", ".join(f"{name} at {bits}" for name, bits in export.widened.items())
        console.print(
            f"Codes stored at other bits than they have, as {export.reason}: {stored}. This "
            f"adds {export.widened_bytes:,} bytes."
        )
    if export.left_out:
        console.print(f"Not said in the file: {' '.join(export.left_out)}")


def show_latency(found: LatencyRecord | LatencyCheck) -> None:
    """Milliseconds of uniform networks, or of a plan's allocations, predicted and measured."""
    ms = "{:.4g}".format
    rows: list[tuple[str, float | None, float]] = []
    if isinstance(found, LatencyCheck):
        seconds = {name: _clocked(a, found.clock) for name, a in found.allocations.items()}
        rows = [(n, a.predicted_s, seconds[n]) for n, a in found.allocations.items()]
    else:
        for network in found.networks:
            if network.role == "uniform":
                name = found.kernels[network.kernels[0]]
                measured = _clocked(network, found.clock)
                rows.append((f"uniform {name}", network.predicted_s, measured))
    if not rows:
        print(f"Latency by {found.runtime}.")
        return
    table = Table("", "predicted\n(ms)", "measured\n(ms)", box=box.SIMPLE, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, predicted, measured in rows:
        shown = "-" if predicted is None else ms(1e3 * predicted)
        table.add_row(name, shown, ms(1e3 * measured))
    console = _printed(table)
    time = "processor time" if found.clock == "cpu" else "time on the clock"
    console.print(
        f"{time.capitalize()} of a call of {plural(found.batch_size, 'example')} in "
        f"{found.runtime}, {plural(found.threads, 'thread')}; least of "
        f"{plural(found.rounds, 'round')}."
    )


def _clocked(timed: TimedNetwork | TimedAllocation, clock: str) -> float:
    return timed.cpu_s if clock == "cpu" else timed.wall_s


def show_plan(plan: Plan) -> None:
    """Solutions and baselines: status, gap, one prediction of all, every cost.

    Names of the same allocation share a row; a cost over its budget is marked.
    """
    rows: dict[Allocation, list[PlannedAllocation]] = {}
    for a in plan.allocations:
        if a.role in ("solution", "baseline") and a.asked != "random":
            rows.setdefault(a.allocation, []).append(a)
    shown = [group[0] for group in rows.values()]
    predictor = shown_prediction([a.predictions for a in shown])
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("allocation", no_wrap=True)
    table.add_column("proof\n(gap in %)", justify="right")
    if predictor is not None:
        title = predictor.heading.replace(" by ", "\nby ").replace(" (", "\n(")
        table.add_column(title, justify="right", no_wrap=True)
    divisors, costs = {}, known_costs()
    for name in shown[0].costs if shown else ():
        divisors[name], unit = costs[name].scale(max(a.costs[name] for a in shown))
        title = costs[name].title + (f"\n({unit})" if unit else "")
        table.add_column(title, justify="right")
    marked = False
    for group in rows.values():
        a = group[0]
        cells = ["\n= ".join(each.name for each in group), _proof(group)]
        if predictor is not None:
            cells.append(f"{a.predictions[predictor.name]:.3g}")
        over = plan.exceeded(a.costs)
        marked |= bool(over)
        cells += [
            f"{a.costs[name] / divisor:.3g}{'*' if name in over else ' '}"
            for name, divisor in divisors.items()
        ]
        table.add_row(*cells)
    console = _printed(table)
    if marked:
        console.print("* over the budget of the plan")


def show_gaps(plan: Plan) -> None:
    """How far every solver is from the best bound over all budgets, and its seconds."""
    if all(a.role != "sweep" for a in plan.allocations):
        return  # one budget: the table of allocations says it
    from jmpq.report.measured import gap_rows

    rows = gap_rows({"allocations": [vars(a) for a in plan.allocations]})
    by: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if not math.isnan(row["gap"]):
            by.setdefault((row["asked"], row["metric"]), []).append(row)
    table = Table(
        box=box.SIMPLE, pad_edge=False, title="gap to the best bound over the budgets"
    )
    table.add_column("solver and metric", no_wrap=True)
    for title in ("budgets", "optimal", "median gap\n(%)", "worst gap\n(%)", "mean time\n(s)"):
        table.add_column(title, justify="right")
    for (solver, metric), found in sorted(by.items()):
        gaps = [row["gap"] for row in found]
        seconds = [row["wall_s"] for row in found]
        table.add_row(
            f"{solver}/{metric}",
            str(len(found)),
            str(sum(gap <= OPTIMALITY for gap in gaps)),
            _percent(statistics.median(gaps)),
            _percent(max(gaps)),
            f"{statistics.mean(seconds):.2g}",
        )
    _printed(table)


def _percent(gap: float) -> str:
    return "0" if gap <= OPTIMALITY else f"{100 * gap:.2g}"


def _printed(table: Table) -> Console:
    """Print a table whole: its lines wrap in a narrow terminal, and no number is cut."""
    console = Console()
    wide = console.options.update(max_width=1000)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)
    return console


def _proof(group: Sequence[PlannedAllocation]) -> str:
    """The best that was proven of one allocation, by whichever metric."""
    gaps = [a.gap for a in group if a.gap is not None]
    if not gaps:
        return "-"
    return "optimal" if min(gaps) <= OPTIMALITY else _percent(min(gaps))


def show_recommendation(recommendation: Recommendation | None) -> None:
    """Which allocation to use."""
    if recommendation is None:
        print("No recommendation: no solution of the plan is within its budgets.")
    else:
        print(f"\n{recommendation}")
