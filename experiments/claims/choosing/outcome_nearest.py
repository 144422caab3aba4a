"""Outcomes on ResNet-20 rounded to nearest, three draws, 2,000 test images."""

from collections.abc import Mapping

from experiments.claims.choosing.outcome import GN, Rows
from experiments.claims.claim import COMPOSED, OLD_RANDOM, Claim, Json, Made, t_value

NAME = "outcome_resnet20_nearest"
MADE = {
    NAME: Made(
        sha256="13b45378668069d5",
        modules=("experiments.outcome",),
        stale="Made at commit 308fd42; at 6c12bca optima and uniform rows were the same, to "
        "the digit, random and reversed rows were not.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    w = Rows(NAME, results[NAME], "w")
    random = [v for i in range(10) for v in w.values(4.0, f"random/{i}").values()]
    return [
        Claim(
            id="outcome.nearest.uniform",
            says="Rounded to nearest, Gauss-Newton's optimum is 1.0 to 1.6 points above "
            "uniform 4 bits.",
            value=-w.points(4.0, "uniform").mean,
            least=1.0,
            most=1.6,
            decides=w.path(4.0, GN),
        ),
        Claim(
            id="outcome.nearest.uniform_3",
            says="At the size of 3 bits it is 11 to 13 points above them.",
            value=-w.points(3.0, "uniform").mean,
            least=11,
            most=13,
            decides=w.path(3.0, GN),
        ),
        Claim(
            id="outcome.nearest.squared_error",
            says="Rounded to nearest at 3 bits, squared error is behind Gauss-Newton "
            "(paired t over 3 "
            "draws at least 5).",
            value=-t_value(w.points(3.0, "exact/squared_error")),
            least=5,
            decides=w.path(3.0, "exact/squared_error"),
        ),
        Claim(
            id="outcome.nearest.composed",
            says="The main effects of composed logits choose 1.5 to 2.5 points worse than "
            "Gauss-Newton at 3 and at 4 bits, rounded to nearest.",
            value=max(w.points(b, "exact/composed").mean for b in (3.0, 4.0)),
            least=-2.5,
            most=-1.5,
            decides=w.path(4.0, "exact/composed"),
            stale=COMPOSED,
        ),
        Claim(
            id="outcome.nearest.composed_t",
            says="At 4 bits that is beyond the spread of the draws (paired t at least 3).",
            value=-t_value(w.points(4.0, "exact/composed")),
            least=3,
            decides=w.path(4.0, "exact/composed"),
            stale=COMPOSED,
        ),
        Claim(
            id="outcome.nearest.hawq",
            says="Rounded to nearest, HAWQ-V2's traces by 4 probes a batch lose 2 to 3 "
            "points at 3 "
            "bits.",
            value=w.points(3.0, "exact/hawq_trace").mean,
            least=-3,
            most=-2,
            decides=w.path(3.0, "exact/hawq_trace"),
        ),
        Claim(
            id="outcome.nearest.random",
            says="Random allocations of 4 bits' size have a mean top-1 of 73 % in this "
            "file, and of 60 % by the code of 6c12bca.",
            value=100 * sum(random) / len(random),
            least=72,
            most=74,
            decides=w.path(4.0, "random/0"),
            stale=OLD_RANDOM,
        ),
        Claim(
            id="outcome.nearest.uniform_lost",
            says="Rounded to nearest, uniform 3 bits lose 16 to 18 points of top-1.",
            value=100 * (results[NAME]["float"]["top1"] - w.values(3.0, "uniform")[0]),
            least=16,
            most=18,
            decides=w.path(3.0, "uniform"),
        ),
    ]
