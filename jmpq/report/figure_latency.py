"""Figure 21: predicted against measured latency of whole networks."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from jmpq.problem.costs import known_costs
from jmpq.report.contents import Json
from jmpq.report.style import PALETTE, NothingToDrawError, new_figure, style

# Kind of a network, how it is named, drawn and coloured.
_KINDS = (
    ("designed", "fitted", "o", "#b0b0b0"),
    ("held_out", "held out", "s", PALETTE[0]),
    ("baseline", "uniform", "^", PALETTE[2]),
    ("solution", "solution of the plan", "D", PALETTE[1]),
)


def latency_figure(latency: Json | None, check: Json | None, plan: Json) -> Figure:
    """Draw predicted against measured seconds, with equality.

    Args:
        latency: The content of ``latency.json``: networks of the fit and held-out ones.
        check: The content of ``latency_check.json``: allocations of the plan.
        plan: The content of ``plan.json``.

    Raises:
        NothingToDrawError: If no whole network was measured.
    """
    points = latency_points(latency, check, plan)
    if not points:
        raise NothingToDrawError("no whole network was measured")
    largest = max(max(x, y) for _, x, y in points)
    divisor, _ = known_costs()["latency_s"].scale(largest)
    with style():
        figure = new_figure(3.2, width=3.6)
        axes = figure.subplots()
        for kind, label, marker, color in _KINDS:
            mine = [(x / divisor, y / divisor) for k, x, y in points if k == kind]
            if mine:
                x, y = zip(*mine, strict=True)
                axes.plot(x, y, marker, ms=4, ls="", color=color, label=label)
        least = min(min(x, y) for _, x, y in points) / divisor
        ends = [0.95 * least, 1.05 * largest / divisor]
        axes.plot(ends, ends, "k--", lw=0.8)
        unit = known_costs()["latency_s"].label(largest).removeprefix("latency ")
        axes.set_xlabel(f"predicted latency {unit}")
        axes.set_ylabel(f"measured latency {unit}")
        axes.legend(loc="upper left")
    return figure


def latency_points(
    latency: Json | None, check: Json | None, plan: Json
) -> Sequence[tuple[str, float, float]]:
    """Kind, predicted and measured seconds of every network."""
    points = []
    if latency is not None:
        for network in latency["networks"]:
            kind = "held_out" if network["role"] == "held_out" else "designed"
            measured = network[f"{latency['clock']}_s"]
            points.append((kind, network["predicted_s"], measured))
    roles = {a["name"]: a["role"] for a in plan["allocations"]}
    if check is not None:
        for name, found in check["allocations"].items():
            predicted = found["predicted_s"]
            predicted = found["cost_s"] if predicted is None else predicted
            if predicted is not None:
                kind = "solution" if roles.get(name) == "solution" else "baseline"
                points.append((kind, predicted, found[f"{check['clock']}_s"]))
    return points


def measured_latency(check: Json | None) -> dict[str, float]:
    """Measured seconds of allocations by name."""
    if check is None:
        return {}
    return {name: x[f"{check['clock']}_s"] for name, x in check["allocations"].items()}
