"""The small vision transformer that the project trains."""

from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made

NAME = "vit_cifar"
MADE = {
    NAME: Made(
        sha256="664fd29213cd2257",
        modules=("experiments.vit_cifar",),
        stale="Other parts of the project have changed since.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    test = results[NAME]["test"]
    return [
        Claim(
            id="vit_cifar.top1",
            says="Its top-1 is 73.3 % on the 10,000 test images (standard error 0.4), after 14 "
            "epochs.",
            value=100 * test["top1"],
            least=73.25,
            most=73.35 if 0.35 < 100 * test["top1_sem"] < 0.45 else 0,
            decides=(NAME, "test", "top1"),
        ),
        Claim(
            id="vit_cifar.time",
            says="It was trained in an hour and a half of one core, beside other work.",
            value=results[NAME]["seconds"] / 3600,
            least=1.4,
            most=1.6,
            decides=(NAME, "seconds"),
        ),
    ]
