"""What steps return, as tables on the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from jmpq.allocation import Allocation
from jmpq.network.layers import layer_type
from jmpq.problem import COSTS, Plan, PlannedAllocation
from jmpq.problem.shown import shown_prediction
from jmpq.problem.solution import OPTIMALITY
from jmpq.run.artifacts import Export, LayerTable
from jmpq.run.planning.recommendation import Recommendation


def show_layers(layers: LayerTable) -> None:
    """Every layer, and their sums."""
    table = Table("layer", "type", "kernel", "parameters", "MACs", "input")
    for layer in layers.layers:
        kernel, given = ("x".join(map(str, s)) for s in (layer.kernel_shape, layer.input_shape))
        counts = (f"{layer.parameters:,}", f"{layer.macs:,}")
        table.add_row(layer.name, layer_type(layer), kernel, *counts, given)
    console = Console()
    console.print(table)
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
    table.add_row("payload, bytes", f"{export.payload_bytes:,}", f"{export.size_bytes:,}", "")
    table.add_row("file, bytes", f"{export.file_bytes:,}", "", "")
    if (checked := export.agreement) and export.runtime:
        if checked["top1"] is not None:
            top1 = (f"{100 * (checked[key] or 0):.2f}" for key in ("top1", "top1_jmpq"))
            table.add_row("top-1, %", *top1, "")
        same = 100 * (checked["same_class"] or 0)
        table.add_row("same class as jmpq, %", f"{same:.2f}", "", "")
        for key in ("mean", "largest"):
            table.add_row(f"{key} difference of logits", f"{checked[key]:.2g}", "", "")
        for size, found in export.cpu_ms.items():
            times = (f"{found[key]:.3g}" for key in ("exported", "float"))
            one, other = times
            table.add_row(f"CPU time, batch {size}, ms", one, "", other)
    console = Console()
    console.print(table)
    if checked:
        examples = f"{int(checked['examples'] or 0):,} evaluation examples"
        console.print(f"Run in {export.runtime} on {examples}.")
    if export.widened:
        stored = ", ".join(f"{name} at {bits}" for name, bits in export.widened.items())
        console.print(
            "Codes stored at more bits than they have, as the format has no such type: "
            f"{stored}."
        )


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
    divisors = {}
    for name in shown[0].costs if shown else ():
        divisors[name], unit = COSTS[name].scale(max(a.costs[name] for a in shown))
        title = COSTS[name].title + (f"\n({unit})" if unit else "")
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
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    if marked:
        console.print("* over the budget of the plan")


def _proof(group: Sequence[PlannedAllocation]) -> str:
    """The best that was proven of one allocation, by whichever metric."""
    gaps = [a.gap for a in group if a.gap is not None]
    if not gaps:
        return "-"
    return "optimal" if min(gaps) <= OPTIMALITY else f"{100 * min(gaps):.2g}"


def show_recommendation(recommendation: Recommendation | None) -> None:
    """Which allocation to use."""
    if recommendation is None:
        print("No recommendation: no solution of the plan is within its budgets.")
    else:
        print(f"\n{recommendation}")
