"""A budget on latency: how well it is predicted, whether it holds, what it gives."""

from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made, Path

NAME, BEST = "latency", "exact/measured_kl"
MADE = {
    NAME: Made(
        sha256="7bb6ad42078a352e",
        modules=("experiments.latency",),
        stale="Made at commit 73a207b; other parts of the project have changed since.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    networks = results[NAME]["networks"]

    def of_draws(*keys: str | int) -> list[tuple[float, Path]]:
        """Numbers of all networks and draws, with their paths."""
        found = []
        for key, network in networks.items():
            for i, draw in enumerate(network["draws"]):
                value = draw
                for part in keys:
                    value = value[part]
                found.append((value, (NAME, "networks", key, "draws", i, *keys)))
        return found

    def ratios(one: list[tuple[float, Path]], other: list[tuple[float, Path]]):
        return [(a / b, path) for (a, path), (b, _) in zip(one, other, strict=True)]

    chosen = of_draws("latency", "allocations", BEST, "cpu_s")
    limits = of_draws("latency", "limits", "latency_s")
    kl = of_draws("latency", "allocations", BEST, "measured", "kl")
    uniform = of_draws("latency", "allocations", "uniform/W8A8", "measured", "kl")
    by_size = of_draws("size", "allocations", BEST, "cpu_s")
    first = of_draws("solves", 0, "cpu_s")
    errors = [(found["latency"]["held_out_error"], (NAME, "networks", key, "latency",
              "held_out_error")) for key, found in networks.items()]  # fmt: skip
    return [
        Claim(
            id="latency.held_out",
            says="Networks that the fit did not see are predicted within 6 % in the mean.",
            value=max(errors)[0],
            most=0.06,
            decides=max(errors)[1],
        ),
        Claim(
            id="latency.holds",
            says="The measured time of the chosen network is within the budget in every draw.",
            value=max(ratios(chosen, limits))[0],
            most=1.0,
            decides=max(ratios(chosen, limits))[1],
        ),
        Claim(
            id="latency.first",
            says="The first solution of a budget may be a fifth slower than the budget.",
            value=max(ratios(first, limits))[0],
            least=1.15,
            decides=max(ratios(first, limits))[1],
        ),
        Claim(
            id="latency.kl",
            says="Within 0.6 of float's time its KL is at least 27 % below that of uniform "
            "W8A8, in every draw.",
            value=max(ratios(kl, uniform))[0],
            most=0.73,
            decides=max(ratios(kl, uniform))[1],
        ),
        Claim(
            id="latency.size",
            says="The best network of the same size is slower in every draw.",
            value=min(ratios(by_size, chosen))[0],
            least=1.0,
            decides=min(ratios(by_size, chosen))[1],
        ),
    ]
