"""What steps return, as tables on the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table

from jmpq.problem import COSTS, Plan
from jmpq.run.artifacts import LayerTable


def show_layers(layers: LayerTable) -> None:
    """Every layer, and their sums."""
    table = Table("layer", "kind", "kernel", "parameters", "MACs", "input")
    for layer in layers.layers:
        kernel, given = ("x".join(map(str, s)) for s in (layer.kernel_shape, layer.input_shape))
        counts = (f"{layer.parameters:,}", f"{layer.macs:,}")
        table.add_row(layer.name, layer.kind, kernel, *counts, given)
    console = Console()
    console.print(table)
    parameters = sum(layer.parameters for layer in layers.layers)
    macs = sum(layer.macs for layer in layers.layers)
    console.print(
        f"{len(layers.layers)} layers, {parameters:,} parameters, {macs:,} MACs per "
        f"example; {layers.other_parameters:,} other parameters stay unquantized."
    )
    if layers.data_note:
        console.print(layers.data_note)
    if layers.equalized:
        pairs = ", ".join(f"{one} - {two}" for one, two in layers.equalized)
        console.print(f"Ranges equalised: {pairs}.")


def show_plan(plan: Plan) -> None:
    """Solutions and baselines: status, predicted loss, gap and every cost."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("allocation", no_wrap=True)
    for title in ("status", "predicted", "gap"):
        table.add_column(title, no_wrap=True, justify="right")
    shown = [
        a
        for a in plan.allocations
        if a.role in ("solution", "baseline") and a.asked != "random"
    ]
    divisors = {}
    for name in shown[0].costs if shown else ():
        divisors[name], unit = COSTS[name].scale(max(a.costs[name] for a in shown))
        title = COSTS[name].title + (f"\n({unit})" if unit else "")
        table.add_column(title, justify="right")
    for a in shown:
        numbers = ["-" if x is None else f"{x:.3g}" for x in (a.predicted_loss, a.gap)]
        costs = [f"{a.costs[name] / divisor:.3g}" for name, divisor in divisors.items()]
        table.add_row(a.name, a.status or "-", *numbers, *costs)
    console = Console()
    console.width = max(console.width, 90)
    console.print(table)
