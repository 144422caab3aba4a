"""MobileNetV1 and SqueezeNet on ImageNet samples, weights rounded to nearest, one draw."""

import math
from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made, Path

NAME = "imagenet"
MADE = {
    NAME: Made(
        sha256="7b7bcef692a4e024",
        modules=("experiments.imagenet",),
        stale="Made at commits e71cd04 (MobileNetV1) and 894a9fc (SqueezeNet): HAWQ-V2 by 8 "
        "and 12 probes in all; not made again.",
    )
}
MOBILE, SQUEEZE = "mobilenet_v1_0.75", "squeezenet1_1"


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""

    def row(network: str, method: str, budget: str = "W4") -> tuple[Json, Path]:
        rows = results[NAME]["networks"][network]["budgets"][budget]["allocations"]
        (i,) = (i for i, row in enumerate(rows) if row["name"] == method)
        return rows[i], (NAME, "networks", network, "budgets", budget, "allocations", i)

    def measured(
        network: str, method: str, budget: str = "W4"
    ) -> tuple[dict[str, float], Path]:
        found, path = row(network, method, budget)
        return found["measured"], (*path, "measured")

    def top1(network: str, method: str, budget: str) -> float:
        return 100 * measured(network, method, budget)[0]["top1"]

    def optimism(budget: str) -> float:
        """Predicted over measured KL of Gauss-Newton's optimum on MobileNetV1."""
        found, _ = row(MOBILE, "exact/gauss_newton", budget)
        return found["predicted_loss"] / found["measured"]["kl"]

    def kl(network: str, method: str) -> float:
        return measured(network, method)[0]["kl"]

    def path(network: str, method: str, key: str = "kl") -> Path:
        return (*measured(network, method)[1], key)

    hawq, others = measured(SQUEEZE, "exact/hawq_trace")[0], [
        measured(SQUEEZE, f"exact/{m}")[0] for m in ("gauss_newton", "empirical_fisher")
    ]  # fmt: skip
    apart = [
        (other["kl"] - hawq["kl"]) / math.hypot(other["kl_sem"], hawq["kl_sem"])
        for other in others
    ]
    solved = [
        f"{s}/{m}" for s in ("exact", "greedy") for m in ("gauss_newton", "empirical_fisher")
    ]
    return [
        Claim(
            id="imagenet.squeezenet.hawq",
            says="On SqueezeNet at 4 bits HAWQ-V2's traces choose better than Gauss-Newton "
            "and the empirical Fisher, by more than 3 standard errors of KL.",
            value=min(apart),
            least=3,
            decides=path(SQUEEZE, "exact/hawq_trace"),
        ),
        Claim(
            id="imagenet.mobilenet.exact",
            says="On MobileNetV1 at 4 bits the exact optimum of Gauss-Newton has a smaller "
            "KL divergence than its greedy allocation.",
            value=kl(MOBILE, "exact/gauss_newton") / kl(MOBILE, "greedy/gauss_newton"),
            most=0.7,
            decides=path(MOBILE, "exact/gauss_newton"),
        ),
        Claim(
            id="imagenet.mobilenet.exact_fisher",
            says="With the empirical Fisher it is the other way round.",
            value=kl(MOBILE, "exact/empirical_fisher") / kl(MOBILE, "greedy/empirical_fisher"),
            least=1.05,
            decides=path(MOBILE, "greedy/empirical_fisher"),
        ),
        Claim(
            id="imagenet.mobilenet.useless",
            says="At 4 bits none of these MobileNetV1 allocations is of use: top-1 is 20 % "
            "at most.",
            value=max(measured(MOBILE, m)[0]["top1"] for m in solved),
            most=0.2,
            decides=path(MOBILE, "exact/gauss_newton", "top1"),
        ),
        Claim(
            id="imagenet.mobilenet.six",
            says="At the size of 6 bits MobileNetV1 keeps 77 to 79 % top-1 by Gauss-Newton, "
            "and 58 to 60 % with uniform bits.",
            value=max(
                abs(top1(MOBILE, "exact/gauss_newton", "W6") - 78),
                abs(top1(MOBILE, "uniform/W6", "W4") - 59),
            ),
            most=1,
            decides=(*measured(MOBILE, "exact/gauss_newton", "W6")[1], "top1"),
        ),
        Claim(
            id="imagenet.mobilenet.six_kl",
            says="Its KL divergence at 6 bits is at most a quarter of that of uniform bits.",
            value=measured(MOBILE, "exact/gauss_newton", "W6")[0]["kl"]
            / measured(MOBILE, "uniform/W6", "W4")[0]["kl"],
            most=0.25,
            decides=(*measured(MOBILE, "exact/gauss_newton", "W6")[1], "kl"),
        ),
        Claim(
            id="imagenet.mobilenet.predicted",
            says="On MobileNetV1 Gauss-Newton predicts 75 to 85 % of the measured KL "
            "divergence at 6 bits.",
            value=optimism("W6"),
            least=0.75,
            most=0.85,
            decides=(*row(MOBILE, "exact/gauss_newton", "W6")[1], "predicted_loss"),
        ),
        Claim(
            id="imagenet.mobilenet.predicted_four",
            says="At 4 bits it predicts 45 to 50 % of it.",
            value=optimism("W4"),
            least=0.45,
            most=0.5,
            decides=(*row(MOBILE, "exact/gauss_newton")[1], "predicted_loss"),
        ),
        Claim(
            id="imagenet.mobilenet.hawq",
            says="With 1 probe a batch, 8 in all, the sum that HAWQ-V2 predicts on "
            "MobileNetV1 is below −20.",
            value=max(
                row(MOBILE, "exact/hawq_trace", b)[0]["predicted_loss"] for b in ("W4", "W6")
            ),
            most=-20,
            decides=(*row(MOBILE, "exact/hawq_trace")[1], "predicted_loss"),
        ),
        Claim(
            id="imagenet.squeezenet.four",
            says="SqueezeNet at the size of 4 bits keeps 52 to 55 % top-1 by every metric.",
            value=max(
                abs(top1(SQUEEZE, f"exact/{m}", "W4") - 53.5)
                for m in ("gauss_newton", "empirical_fisher", "hawq_trace")
            ),
            most=1.5,
            decides=(*measured(SQUEEZE, "exact/gauss_newton")[1], "top1"),
        ),
        Claim(
            id="imagenet.squeezenet.uniform",
            says="Uniform 4 bits keep 33 to 35 % there.",
            value=top1(SQUEEZE, "uniform/W4", "W4"),
            least=33,
            most=35,
            decides=(*measured(SQUEEZE, "uniform/W4")[1], "top1"),
        ),
        Claim(
            id="imagenet.squeezenet.six",
            says="At 6 bits its loss of top-1 is below one standard error of 872 images.",
            value=max(
                (
                    results[NAME]["networks"][SQUEEZE]["float"]["evaluation"]["top1"]
                    - measured(SQUEEZE, f"exact/{m}", "W6")[0]["top1"]
                )
                / results[NAME]["networks"][SQUEEZE]["float"]["evaluation"]["top1_sem"]
                for m in ("gauss_newton", "empirical_fisher", "hawq_trace")
            ),
            most=1,
            decides=(*measured(SQUEEZE, "exact/gauss_newton", "W6")[1], "top1"),
        ),
        Claim(
            id="imagenet.squeezenet.negative",
            says="3 probes a batch leave HAWQ-V2 no layer with a negative trace on SqueezeNet.",
            value=len(results[NAME]["networks"][SQUEEZE]["negative_layers"]["hawq_trace"]),
            most=0,
            decides=(NAME, "networks", SQUEEZE, "negative_layers", "hawq_trace"),
        ),
    ]
