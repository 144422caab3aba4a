"""all-MiniLM-L6-v2 on STS-B: groups, mixed bits, Q-BERT's rule, predictions."""

from collections.abc import Mapping

import numpy as np

from experiments.claims.claim import Claim, Json, Made, Path, select, spearman

NAME = "minilm"
MADE = {
    NAME: Made(
        sha256="a75d51cf2be7190a",
        modules=("experiments.bert.minilm",),
        stale="Made at commit 93e6c90, resumed from older states of the code; not made again.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    joint = results[NAME]["joint"]

    def one(method: str, bits: float, groups: int = 128) -> tuple[int, Json]:
        (found,) = select(joint, mode="w", bits=bits, groups=groups, method=method)
        return found

    def path(method: str, bits: float, key: str, groups: int = 128) -> Path:
        return (NAME, "joint", one(method, bits, groups)[0], "measured", key)

    def value(method: str, bits: float, key: str, groups: int = 128) -> float:
        return one(method, bits, groups)[1]["measured"][key]

    weights = [row for row in joint if row["mode"] == "w" and row["groups"] == 128]
    losses = np.array([row["measured"]["loss"] for row in weights])
    sizes = np.array([row["size_bytes"] for row in weights])
    predicted = np.array([row["predicted"]["gauss_newton"] for row in weights])
    bits = np.array([row["bits"] for row in weights])
    within = [spearman(predicted[bits == b], losses[bits == b]) for b in (4.0, 3.0, 2.5)]
    same = "exact/gauss_newton/encoder_layer"
    gn = "exact/gauss_newton"

    def left(bits: float, one: tuple[str, int], other: tuple[str, int]) -> float:
        """Lost Spearman of one method and number of groups over that of another."""
        return value(one[0], bits, "drop", one[1]) / value(other[0], bits, "drop", other[1])

    eight = select(joint, mode="wa", bits=8.0, groups=128, method="uniform")[0]
    four = [row["measured"] for row in weights if row["bits"] == 4.0]
    alone = {row["bits"]: row["measured"]["drop"] for row in results[NAME]["activations"]}
    (embedded,) = (row["measured"]["drop"] for row in results[NAME]["embeddings"]
                   if len(row["tables"]) == 3 and row["bits"] == 2)  # fmt: skip
    return [
        Claim(
            id="minilm.rule_equal_granularity",
            says="Where both decide for whole encoder layers (2.5 bits, 128 groups) "
            "Q-BERT's rule has the higher Spearman correlation, 0.796 against 0.787.",
            value=value("qbert", 2.5, "spearman") - value(same, 2.5, "spearman"),
            least=0.005,
            decides=path("qbert", 2.5, "spearman"),
        ),
        Claim(
            id="minilm.rule_equal_granularity_loss",
            says="In the squared loss, which it minimises, the knapsack is ahead there.",
            value=value(same, 2.5, "loss") / value("qbert", 2.5, "loss"),
            most=0.9,
            decides=path(same, 2.5, "loss"),
        ),
        Claim(
            id="minilm.rule_matrix_granularity",
            says="A knapsack over single matrices is ahead of the rule at 2.5 bits with 128 "
            "groups: 0.014 of Spearman is lost, not 0.024.",
            value=value("exact/gauss_newton", 2.5, "spearman")
            - value("qbert", 2.5, "spearman"),
            least=0.005,
            decides=path("exact/gauss_newton", 2.5, "spearman"),
        ),
        Claim(
            id="minilm.bytes_predict",
            says="Over all budgets together, minus the bytes of an allocation correlates at "
            "least 0.95 with its loss: a correlation that pools budgets says nothing about a "
            "metric.",
            value=spearman(-sizes, losses),
            least=0.95,
            decides=path("uniform", 8.0, "loss"),
        ),
        Claim(
            id="minilm.within_budget",
            says="Within a budget (weights, 128 groups, 6 allocations each) "
            "Gauss-Newton's rank correlation is at most 0.5 at 4, 3 and 2.5 bits: no "
            "evidence for it.",
            value=max(within),
            most=0.5,
            decides=path("exact/gauss_newton", 2.5, "loss"),
        ),
        Claim(
            id="minilm.eight_bits",
            says="8 bits for weights alone lose less than 0.001 of Spearman (128 groups).",
            value=value("uniform", 8.0, "drop"),
            most=0.001,
            decides=path("uniform", 8.0, "drop"),
        ),
        Claim(
            id="minilm.uniform_three",
            says="At 2.5 bits mixed bits lose less than a third of what uniform 2 bits lose "
            "(128 groups).",
            value=value("exact/gauss_newton", 2.5, "drop") / value("uniform", 2.5, "drop"),
            most=0.333,
            decides=path("exact/gauss_newton", 2.5, "drop"),
        ),
        Claim(
            id="minilm.eight_bits_all",
            says="8 bits for weights and activations lose 0.001 to 0.003 of Spearman.",
            value=eight[1]["measured"]["drop"],
            least=0.001,
            most=0.003,
            decides=(NAME, "joint", eight[0], "measured", "drop"),
        ),
        Claim(
            id="minilm.four_bits",
            says="4 bits with 128 groups lose less than these pairs can detect: the drop is "
            "below 1 standard error.",
            value=max(row["drop"] / row["drop_sem"] for row in four),
            most=1,
            decides=path("uniform", 4.0, "drop"),
        ),
        Claim(
            id="minilm.four_spread",
            says="At 4 bits with 128 groups all allocations are within 0.005 of each other.",
            value=max(row["spearman"] for row in four) - min(row["spearman"] for row in four),
            most=0.005,
            decides=path("uniform", 4.0, "spearman"),
        ),
        Claim(
            id="minilm.three",
            says="At 3 bits either 128 groups or mixed bits leave at most 40 % of the loss "
            "of uniform bits with 1 group.",
            value=max(
                left(3.0, ("uniform", 128), ("uniform", 1)), left(3.0, (gn, 1), ("uniform", 1))
            ),
            most=0.4,
            decides=path(gn, 3.0, "drop", 1),
        ),
        Claim(
            id="minilm.two_half",
            says="At 2.5 bits it takes both: together they lose at most 55 % of what the "
            "better one loses alone.",
            value=max(left(2.5, (gn, 128), ("uniform", 128)), left(2.5, (gn, 128), (gn, 1))),
            most=0.55,
            decides=path(gn, 2.5, "drop"),
        ),
        Claim(
            id="minilm.activations",
            says="Alone, activations of 8 bits lose 0.002 of Spearman, 6 bits 0.027 and 4 "
            "bits 0.054.",
            value=max(abs(alone[b] - lost) for b, lost in ((8, 0.002), (6, 0.027), (4, 0.054))),
            most=0.001,
            decides=(NAME, "activations", 0, "measured", "drop"),
        ),
        Claim(
            id="minilm.embeddings",
            says="The 3 embeddings alone at 2 bits lose 0.008.",
            value=embedded,
            least=0.0075,
            most=0.0085,
            decides=(
                NAME,
                "embeddings",
                next(
                    i
                    for i, row in enumerate(results[NAME]["embeddings"])
                    if len(row["tables"]) == 3 and row["bits"] == 2
                ),
                "measured",
                "drop",
            ),
        ),
    ]
