"""The whole flow on ResNet-20 with activations, one draw of 1,024 calibration images."""

from collections.abc import Mapping

from experiments.claims.claim import OLD_RANDOM, Claim, Json, Made, Path

NAME = "resnet20_cifar10"
MADE = {
    NAME: Made(
        sha256="c7774bb58155c5a7",
        modules=("experiments.resnet20_cifar10",),
        stale="Made at commit b3e8fa5; at 6c12bca Gauss-Newton's optimum and the uniform "
        "row were the same, to the digit, random rows were not.",
    )
}


def _train_gain(result: Json) -> float:
    """Points of top-1 that exact search has over greedy, HAWQ-V2 from training images."""
    rows = {row["name"]: row for row in result["runs"]["train"]["allocations"]}
    exact, greedy = (
        rows[f"{s}/hawq_trace"]["measured"]["evaluation"]["top1"] for s in ("exact", "greedy")
    )
    return 100 * (exact - greedy)


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    rows = results[NAME]["runs"]["heldout"]["allocations"]

    def one(name: str, key: str) -> tuple[float, Path]:
        (i,) = (i for i, row in enumerate(rows) if row["name"] == name)
        path = (NAME, "runs", "heldout", "allocations", i, "measured", "evaluation", key)
        return rows[i]["measured"]["evaluation"][key], path

    def slack(source: str, metric: str, key: str) -> tuple[float, Path]:
        """How much worse exact is than greedy, in standard errors."""
        found = {row["name"]: (i, row) for i, row in
                 enumerate(results[NAME]["runs"][source]["allocations"])}  # fmt: skip
        i, exact = found[f"exact/{metric}"]
        values = [x["measured"]["evaluation"] for x in (exact, found[f"greedy/{metric}"][1])]
        worse = values[0][key] - values[1][key]
        path = (NAME, "runs", source, "allocations", i, "measured", "evaluation", key)
        return (-worse if key == "top1" else worse) / values[0][f"{key}_sem"], path

    second = ("gauss_newton", "empirical_fisher", "hawq_trace")
    slacks = [slack(s, m, k) for s in ("heldout", "train") for m in second
              for k in ("top1", "kl")]  # fmt: skip
    best, uniform = one("exact/gauss_newton", "top1"), one("uniform/W4A4", "top1")
    random = [one(f"random/{i}", "top1")[0] for i in range(10)]
    return [
        Claim(
            id="resnet20.uniform",
            says="Gauss-Newton's optimum is 0.8 to 1.4 points of top-1 above uniform W4A4 "
            "at its "
            "size and bit operations (rounded to nearest, one draw).",
            value=100 * (best[0] - uniform[0]),
            least=0.8,
            most=1.4,
            decides=best[1],
        ),
        Claim(
            id="resnet20.uniform_kl",
            says="Its KL divergence is a third lower.",
            value=one("exact/gauss_newton", "kl")[0] / one("uniform/W4A4", "kl")[0],
            most=0.7,
            decides=one("exact/gauss_newton", "kl")[1],
        ),
        Claim(
            id="resnet20.random",
            says="Ten random allocations at the same cost are below uniform bits in the mean.",
            value=100 * (uniform[0] - sum(random) / len(random)),
            least=1,
            decides=one("random/0", "top1")[1],
            stale=OLD_RANDOM,
        ),
        Claim(
            id="resnet20.fisher",
            says="The empirical Fisher is 1.2 to 1.6 points above it.",
            value=100 * (one("exact/empirical_fisher", "top1")[0] - uniform[0]),
            least=1.2,
            most=1.6,
            decides=one("exact/empirical_fisher", "top1")[1],
        ),
        Claim(
            id="resnet20.hawq",
            says="The HAWQ-V2 trace stays 1 to 2 points below uniform bits.",
            value=100 * (uniform[0] - one("exact/hawq_trace", "top1")[0]),
            least=1,
            most=2,
            decides=one("exact/hawq_trace", "top1")[1],
        ),
        Claim(
            id="resnet20.destroyed",
            says="The first-order term and squared error leave a top-1 of 45 % at most.",
            value=100
            * max(one(f"exact/{m}", "top1")[0] for m in ("first_order", "squared_error")),
            most=45,
            decides=one("exact/first_order", "top1")[1],
        ),
        Claim(
            id="resnet20.exact",
            says="With second-order metrics exact search is at most 1 standard error worse "
            "than greedy in top-1 and in KL.",
            value=max(slacks)[0],
            most=1,
            decides=max(slacks)[1],
        ),
        Claim(
            id="resnet20.exact_loss",
            says="In the increase of the loss it is once 1.1 standard errors worse "
            "(Gauss-Newton, held-out images).",
            value=slack("heldout", "gauss_newton", "increase")[0],
            least=1.0,
            most=1.2,
            decides=slack("heldout", "gauss_newton", "increase")[1],
        ),
        Claim(
            id="resnet20.exact_better",
            says="Once, with HAWQ-V2 traces of training images, it is 2.5 to 3.5 points "
            "better.",
            value=_train_gain(results[NAME]),
            least=2.5,
            most=3.5,
            decides=(*slack("train", "hawq_trace", "top1")[1][:-1], "top1"),
        ),
    ]
