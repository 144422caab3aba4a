"""A budget on latency: how well it is predicted, whether it holds, what it gives."""

from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made, Path, paired, t_value

NAME, BEST, UNIFORM = "latency", "exact/measured_kl", "uniform/W8A8"
MADE = {
    NAME: Made(
        sha256="a0f76016bc50faa0",
        modules=("experiments.latency",),
        stale="ResNet-20 was made first; other parts of the project have changed since.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    networks = results[NAME]["networks"]

    def of_draws(*keys: str | int, network: str = "") -> list[tuple[float, Path]]:
        """Numbers of all draws with their paths, of one network or of all."""
        found = []
        for key, record in networks.items():
            for i, draw in enumerate(record["draws"] if key.startswith(network) else []):
                value = draw
                for part in keys:
                    value = value[part]
                found.append((value, (NAME, "networks", key, "draws", i, *keys)))
        return found

    def ratios(one: list[tuple[float, Path]], other: list[tuple[float, Path]]):
        return [(a / b, path) for (a, path), (b, _) in zip(one, other, strict=True)]

    def less_kl(network: str) -> tuple[float, Path]:
        """Greatest KL of a draw as a part of uniform W8A8's."""
        kl = of_draws("latency", "allocations", BEST, "measured", "kl", network=network)
        uniform = of_draws("latency", "allocations", UNIFORM, "measured", "kl", network=network)
        return max(ratios(kl, uniform))

    def points(name: str) -> dict[int, float]:
        """Top-1 of MobileNetV1 in percent, by draw, the mean of the runtimes."""
        found: dict[int, list[float]] = {}
        for value, path in of_draws(
            "latency", "allocations", name, "measured", "top1", network="mobilenet"
        ):
            found.setdefault(int(path[4]), []).append(100 * value)
        return {draw: sum(values) / len(values) for draw, values in found.items()}

    chosen = of_draws("latency", "allocations", BEST, "cpu_s")
    limits = of_draws("latency", "limits", "latency_s")
    by_size = ratios(of_draws("size", "allocations", BEST, "cpu_s"), chosen)
    first = of_draws("solves", 0, "cpu_s")
    gains = paired(points(BEST), points(UNIFORM))
    errors = [(found["latency"]["held_out_error"], (NAME, "networks", key, "latency",
              "held_out_error")) for key, found in networks.items()]  # fmt: skip
    return [
        Claim(
            id="latency.held_out",
            says="Networks that the fit did not see are predicted within 9 % in the mean.",
            value=max(errors)[0],
            most=0.09,
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
            id="latency.kl.resnet20",
            says="Within 0.6 of float's time ResNet-20's KL is at least 27 % below that of "
            "uniform W8A8, in every draw.",
            value=less_kl("resnet20")[0],
            most=0.73,
            decides=less_kl("resnet20")[1],
        ),
        Claim(
            id="latency.kl.mobilenet",
            says="Within 0.6 of float's time MobileNetV1's KL is at least 60 % below that of "
            "uniform W8A8, in every draw.",
            value=less_kl("mobilenet")[0],
            most=0.40,
            decides=less_kl("mobilenet")[1],
        ),
        Claim(
            id="latency.top1.mobilenet",
            says="There its top-1 is 1 to 2 points above uniform W8A8 in the mean (paired t "
            "over 3 draws at least 5).",
            value=gains.mean if t_value(gains) >= 5 else -1.0,
            least=1.0,
            most=2.0,
            decides=(
                NAME,
                "networks",
                "mobilenet_v1_0.75/openvino",
                "draws",
                0,
                "latency",
                "allocations",
                BEST,
                "measured",
                "top1",
            ),
        ),
        Claim(
            id="latency.size",
            says="The best network of the same size is slower in 11 of 12 draws.",
            value=sum(ratio > 1 for ratio, _ in by_size),
            least=11,
            most=11,
            decides=min(each for each in by_size if each[0] > 1)[1],
        ),
    ]
