"""Weights on their grid, and the loss in the plane of the leading eigenvectors."""

from collections.abc import Mapping

import numpy as np

from experiments.claims.claim import Claim, Json, Made

NAME = "landscape"
MADE = {
    NAME: Made(
        sha256="fc86da81c5affe07",
        modules=("experiments.perturbation.landscape",),
        source_sha256="2dd501f19be6537bb6fe5841d9bb374fa16e70b74ba2a1ab48f021d7ad80868c",
        stale="Made at commit 5275ede; other parts of the project have changed since.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    result = results[NAME]
    plane, middle = result["plane"], len(result["plane"]["steps"]) // 2
    two = [(i, row) for i, row in enumerate(result["histograms"]) if row["bits"] == 2]
    parts = {
        bits: (d["first"] ** 2 + d["second"] ** 2) / d["squared"]
        for bits, d in plane["delta"].items()
    }
    surfaces = {bits: np.array(rows) for bits, rows in plane["loss"].items()}

    def rise(bits: str) -> float:
        """Loss in the middle above that of the float network."""
        return surfaces[bits][middle, middle] - surfaces["32"][middle, middle]

    def falls(bits: str) -> float:
        """Loss in the middle above the least one of the plane."""
        return surfaces[bits][middle, middle] - surfaces[bits].min()

    return [
        Claim(
            id="landscape.zero",
            says="At 2 bits the grid keeps three codes, and 45 to 65 % of the weights of these "
            "layers become zero.",
            value=max(abs(row["zero"] - 0.55) for _, row in two),
            most=0.1,
            decides=(NAME, "histograms", two[0][0], "zero"),
        ),
        Claim(
            id="landscape.plane",
            says="Less than 0.1 % of ‖δ‖² lies in the plane at 2, 3 and 4 bits.",
            value=max(parts.values()),
            most=0.001,
            decides=(NAME, "plane", "delta", "4", "first"),
        ),
        Claim(
            id="landscape.rise",
            says="Yet the loss in its middle is at least 0.2 nats above that of the float "
            "network at 4 bits, and 1.2 at 3 bits.",
            value=min(rise("4") / 0.2, rise("3") / 1.2),
            least=1,
            decides=(NAME, "plane", "loss", "3", middle, middle),
        ),
        Claim(
            id="landscape.aside",
            says="The rounded network is at no minimum of the plane: along it the loss falls "
            "by at least 0.15 nats at 4 bits and 0.6 at 3 bits.",
            value=min(falls("4") / 0.15, falls("3") / 0.6),
            least=1,
            decides=(NAME, "plane", "loss", "4", middle, middle),
        ),
        Claim(
            id="landscape.float",
            says="The float network is at the minimum of the plane, to 0.01 nats.",
            value=falls("32"),
            most=0.01,
            decides=(NAME, "plane", "loss", "32", middle, middle),
        ),
    ]
