"""The table of `prediction`, from its JSON alone."""

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
TITLES = {"resnet20": "ResNet-20", "resnet32": "ResNet-32", "resnet44": "ResNet-44"}


def prediction_table(results: Sequence[Json]) -> str:
    """Rank correlations with measured KL and scales, one row a network and set of bits."""
    first = results[0]["config"]
    images = f"{first['fidelity']['examples']} images"
    others = f"{sum(first['fidelity']['evaluation']):,} others"
    lines = [
        f"Spearman's ρ with the KL measured on the {images} that the logits come from, and on "
        f"{others}, with 95 % intervals; *scale*: median of predicted over measured KL there.",
        "",
        "| network | bits | composed, same images | composed, others | transferred, others | "
        f"measured on the {images}, others | scale: composed, transferred |",
        "| --- |" + " --- |" * 6,
    ]
    for result in results:
        network = TITLES.get(result["network"], result["network"])
        for name, found in result["sets"].items():
            rho, scale = found["rho"], found["scale"]
            cells = [
                network,
                bits_of(name),
                _interval(rho["calibration"]["composed"]),
                _interval(rho["evaluation"]["composed"]),
                _interval(rho["evaluation"]["transferred"]),
                _interval(found["rho_of_measuring"]),
                f"{scale['composed'][1]:.2f}, {scale['transferred'][1]:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bits_of(name: str) -> str:
    """Name of a set for readers.

    >>> bits_of("wa/2-3-4-8"), bits_of("w/4-8")
    ('W and A of 2, 3, 4, 8', 'W of 4, 8')
    """
    kinds, _, bits = name.partition("/")
    return f"{'W and A' if kinds == 'wa' else 'W'} of {bits.replace('-', ', ')}"


def _interval(found: Sequence[float]) -> str:
    value, low, high = found
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
