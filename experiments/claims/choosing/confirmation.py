"""The default on ResNet-32, on which it was not chosen: better, level or worse than rivals."""

from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made, Path
from experiments.figures.confirmation import DEFAULT, verdict

NAME = "confirmation"
MADE = {
    NAME: Made(
        sha256="812a082e9d825330",
        modules=("experiments.confirmation",),
        stale="Other parts of the project have changed since.",
    )
}
PART = "resnet32/W"
THREE = "size_bytes=W3"
COMPOSED = ("composed/exact", "composed/search")


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    rows = results[NAME]["parts"][PART]["rows"]
    rivals = [(i, row) for i, row in enumerate(rows) if row["method"] != DEFAULT]

    def at(method: str, rounding: str, budget: str = THREE) -> tuple[int, Json]:
        """Position and row of a method."""
        wanted = (method, rounding, budget)
        return next((i, row) for i, row in rivals
                    if (row["method"], row["rounding"], row["budget"]) == wanted)  # fmt: skip

    def count(what: str, value: str, *methods: str, without: tuple[str, str] = ("", "")) -> int:
        """Rows of some methods, or of all, that are better, level or worse."""
        return sum(
            verdict(row, value) == what
            for _, row in rivals
            if (not methods or row["method"] in methods)
            and (row["rounding"], row["budget"]) != without
        )

    def path(method: str, rounding: str, value: str = "kl", budget: str = THREE) -> Path:
        index = at(method, rounding, budget)[0]
        return (NAME, "parts", PART, "rows", index, f"{value}_difference", "p_holm")

    def gain(method: str) -> float:
        """Part of the default's KL that a method has less, rounded to nearest at 3 bits."""
        row = at(method, "nearest")[1]
        return -row["kl_difference"]["mean"] / (
            row["kl"]["mean"] - row["kl_difference"]["mean"]
        )

    index = at(COMPOSED[0], "nearest")[0]
    return [
        Claim(
            id="confirmation.uniform",
            says="On ResNet-32 the default has less KL than uniform bits in 5 of 6 settings, "
            "and is level in the other.",
            value=count("worse", "kl", "uniform") - 10 * count("better", "kl", "uniform"),
            least=5,
            most=5,
            decides=path("uniform", "gptq"),
        ),
        Claim(
            id="confirmation.composed_few_bits",
            says="Rounded to nearest at the size of 3 bits, composed logits choose better: "
            "their main effects and the search on them have 23 to 32 % less KL.",
            value=sum(verdict(at(m, "nearest")[1], "kl") == "better" and 0.23 <= gain(m) <= 0.32
                      for m in COMPOSED),
            least=2,
            decides=(NAME, "parts", PART, "rows", index, "kl_difference", "mean"),
        ),
        Claim(
            id="confirmation.nowhere_else",
            says="In none of the 5 other settings does any of the 8 rivals have less KL than "
            "the default.",
            value=count("better", "kl", without=("nearest", THREE)),
            most=0,
            decides=(*path("composed/search", "gptq")[:-1], "mean"),
        ),
        Claim(
            id="confirmation.search_gptq",
            says="With GPTQ at the size of 3 bits the search on composed logits has more KL "
            "than the default.",
            value=float(verdict(at("composed/search", "gptq")[1], "kl") == "worse"),
            least=1,
            decides=path("composed/search", "gptq"),
        ),
        Claim(
            id="confirmation.main_effects_4",
            says="At the size of 4 bits the main effects of composed logits have more KL than "
            "the default, with either rounding.",
            value=sum(verdict(at("composed/exact", r, "size_bytes=W4")[1], "kl") == "worse"
                      for r in ("nearest", "gptq")),
            least=2,
            decides=path("composed/exact", "gptq", budget="size_bytes=W4"),
        ),
        Claim(
            id="confirmation.fisher",
            says="The empirical Fisher is level with the default in all 6 settings.",
            value=count("level", "kl", "empirical_fisher/exact"),
            least=6,
            decides=path("empirical_fisher/exact", "gptq"),
        ),
        Claim(
            id="confirmation.squared_error",
            says="Squared error has more KL at the size of 3 bits, with either rounding, and "
            "is level elsewhere.",
            value=sum(verdict(at("squared_error/exact", r)[1], "kl") == "worse"
                      for r in ("nearest", "gptq"))
            + 10 * count("level", "kl", "squared_error/exact"),
            least=42,
            most=42,
            decides=path("squared_error/exact", "gptq"),
        ),
        Claim(
            id="confirmation.hawq",
            says="HAWQ-V2 has more KL in 1 of 6 settings, GPTQ at the size of 3 bits, and is "
            "level in 5.",
            value=count("level", "kl", "hawq_trace/exact")
            if verdict(at("hawq_trace/exact", "gptq")[1], "kl") == "worse" else -1,
            least=5,
            most=5,
            decides=path("hawq_trace/exact", "gptq"),
        ),
        Claim(
            id="confirmation.top1",
            says="No rival has more top-1 than the default in any of the 6 settings, as far as "
            "3 draws tell.",
            value=count("better", "top1"),
            most=0,
            decides=path("composed/search", "nearest", "top1"),
        ),
    ]  # fmt: skip
