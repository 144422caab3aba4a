"""Fine-tuned ResNet-20: what is won back, and by what."""

from collections.abc import Mapping

import numpy as np

from experiments.claims.claim import Claim, Json, Made, select

NAME = "finetune_resnet20"
MADE = {
    NAME: Made(
        sha256="f1ec91140020a5c7",
        modules=("experiments.finetune",),
        stale="Made at commit 93e6c90; no rival allocation of equal size was fine-tuned; "
        "not made again.",
    )
}
MIXED = "exact, 2.5 bits"


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    result = results[NAME]

    def top1(allocation: str, method: str, correct: str) -> list[tuple[int, float]]:
        found = select(result["rows"], allocation=allocation, method=method, correct=correct)
        return [(i, 100 * row["measured"]["top1"]) for i, row in found]

    def path(allocation: str, method: str, correct: str) -> tuple[str | int, ...]:
        return (NAME, "rows", top1(allocation, method, correct)[0][0], "measured", "top1")

    def mean(*of: str) -> float:
        return float(np.mean([value for _, value in top1(*of)]))

    def tuned(allocation: str, method: str, start: str) -> list[tuple[int, float]]:
        """Fine-tuned rows by where they start."""
        found = select(result["rows"], allocation=allocation, method=method)
        return [(i, 100 * r["measured"]["top1"]) for i, r in found if r["start"] == start]

    def mean_tuned(*of: str) -> float:
        return float(np.mean([value for _, value in tuned(*of)]))

    def path_tuned(*of: str) -> tuple[str | int, ...]:
        return (NAME, "rows", tuned(*of)[0][0], "measured", "top1")

    from_gptq, plain = ("lsq", "gptq"), (("ste", "nearest"), ("lsq", "nearest"))
    whole, nearest = 100 * result["float"]["top1"], mean(MIXED, "nearest", "none")
    corrected = mean(MIXED, "nearest", "batch_norm")
    return [
        Claim(
            id="finetune.recovered",
            says="At 2.5 bits 250 steps win back 93 to 97 % of what rounding to nearest loses.",
            value=min(
                (mean_tuned(MIXED, *way) - nearest) / (whole - nearest)
                for way in (*plain, from_gptq)
            ),
            least=0.93,
            most=0.97,
            decides=path(MIXED, "nearest", "none"),
        ),
        Claim(
            id="finetune.statistics",
            says="Most of that is the statistics estimated again before the first step: 75 "
            "to 85 % of the loss.",
            value=(corrected - nearest) / (whole - nearest),
            least=0.75,
            most=0.85,
            decides=path(MIXED, "nearest", "batch_norm"),
        ),
        Claim(
            id="finetune.training",
            says="What training itself adds to it is 2 to 4 points, with learned scales or "
            "without.",
            value=max(mean_tuned(MIXED, *way) for way in plain) - corrected,
            least=2,
            most=4,
            decides=path(MIXED, "nearest", "batch_norm"),
        ),
        Claim(
            id="finetune.gptq_corrected",
            says="Rounded by GPTQ and corrected, the network of 2.5 bits loses 2.0 to 2.5 "
            "points untrained.",
            value=whole - mean(MIXED, "gptq", "batch_norm"),
            least=2.0,
            most=2.5,
            decides=path(MIXED, "gptq", "batch_norm"),
        ),
        Claim(
            id="finetune.from_gptq",
            says="Fine-tuned from there it loses 0.8 to 1.2 points.",
            value=whole - mean_tuned(MIXED, *from_gptq),
            least=0.8,
            most=1.2,
            decides=path_tuned(MIXED, *from_gptq),
        ),
        Claim(
            id="finetune.three",
            says="At uniform 3 bits fine-tuning adds nothing to GPTQ with new statistics "
            "(one seed).",
            value=mean_tuned("uniform W3", *from_gptq)
            - mean("uniform W3", "gptq", "batch_norm"),
            most=0.0,
            decides=path_tuned("uniform W3", *from_gptq),
        ),
        Claim(
            id="finetune.near_three",
            says="The fine-tuned allocation of 2.5 bits is within 1 point of uniform 3 bits.",
            value=mean("uniform W3", "gptq", "batch_norm") - mean_tuned(MIXED, *from_gptq),
            most=1,
            decides=path_tuned(MIXED, *from_gptq),
        ),
    ]
