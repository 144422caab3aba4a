"""Formats of keys and values: chosen by the knapsack against uniform at equal bytes."""

import math
from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made, Path
from jmpq.formats import Choice

NAME, KEYS = "kv_cache", "layers/0/self_attn/k_proj:keys"
MADE = {
    NAME: Made(
        sha256="3f9dd29d20bd103c",
        modules=("experiments.decoder.kv_cache",),
        stale="Made from a tree that was not committed; its rows of keys and values are those "
        "of the commit after it.",
    ),
}


def is_choice(text: str) -> bool:
    """Whether a text is the label of a choice."""
    try:
        return bool(Choice.parse(text))
    except ValueError:
        return False


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    cells = results[NAME]["cells"]

    def at(draw: str, candidates: str, bits: float | None, solver: str) -> tuple[Json, Path]:
        rows = cells[draw]["rows"]
        ((i, row),) = [
            (i, row) for i, row in enumerate(rows)
            if (row["candidates"], row["bits"], row["solver"]) == (candidates, bits, solver)
        ]  # fmt: skip
        return row, (NAME, "cells", draw, "rows", i, "measured")

    def kl(found: tuple[Json, Path]) -> float:
        return found[0]["measured"]["kl"]

    def exact(draw: str, bits: float, candidates: str = "integers") -> tuple[Json, Path]:
        return at(draw, candidates, bits, "exact")

    def uniform(draw: str, name: str) -> tuple[Json, Path]:
        return at(draw, "all", None, f"uniform {name}")

    def ratio(bits: int) -> float:
        """Greatest KL of the optimum over that of uniform integers of so many bits."""
        name = f"int{bits}"
        return max(kl(exact(d, float(bits))) / kl(uniform(d, name)) for d in cells)

    def saved(bits: int) -> float:
        """Least part of the rise in perplexity of uniform integers that the optimum saves."""
        parts = []
        for draw, cell in cells.items():
            all_ = (
                cell["float"],
                uniform(draw, f"int{bits}")[0]["measured"],
                exact(draw, float(bits))[0]["measured"],
            )
            whole, same, best = (math.exp(min(x["loss"], 700)) for x in all_)
            parts.append((same - best) / (same - whole))
        return min(parts)

    def widths(role: str) -> list[int]:
        """Bits of keys or values at 4 bits in the mean, of every layer and draw."""
        return [
            Choice.parse(choice).a_bits if is_choice(choice) else 0
            for draw in cells
            for row, choice in exact(draw, 4.0)[0]["allocation"].items()
            if row.endswith(role)
        ]

    first = next(iter(cells))
    return [
        Claim(
            id="kv_cache.half",
            says="At the bytes of uniform 3, 4 and 5 bits the optimum over integers has at "
            "most 62 % of the KL, in every draw, at 3 and 4 bits 52 %.",
            value=max(ratio(3) / 0.52, ratio(4) / 0.52, ratio(5) / 0.62),
            most=1.0,
            decides=(*exact(first, 4.0)[1], "kl"),
        ),
        Claim(
            id="kv_cache.perplexity",
            says="At the bytes of 4 bits it saves at least 45 % of the rise in perplexity of "
            "uniform integers, at those of 3 bits 55 %.",
            value=min(saved(4) / 0.45, saved(3) / 0.55),
            least=1,
            decides=(*exact(first, 4.0)[1], "loss"),
        ),
        Claim(
            id="kv_cache.six",
            says="At the bytes of 6 bits it saves 20 % of the KL or more.",
            value=ratio(6),
            most=0.8,
            decides=(*exact(first, 6.0)[1], "kl"),
        ),
        Claim(
            id="kv_cache.keys",
            says="At 4 bits in the mean keys take 5 bits and values 3 in every layer and draw.",
            value=min(widths("keys")) - max(widths("values")),
            least=2,
            most=2,
            decides=(*exact(first, 4.0)[1][:-1], "allocation", KEYS),
        ),
        Claim(
            id="kv_cache.blocks",
            says="Uniform MXFP4 and NVFP4, with blocks of a token's features, have 8 times the "
            "KL of 4-bit integers with a scale a channel, or more.",
            value=min(
                kl(uniform(d, name)) / kl(uniform(d, "int4"))
                for d in cells
                for name in ("mxfp4", "nvfp4")
            ),
            least=8,
            decides=(*uniform(first, "nvfp4")[1], "kl"),
        ),
        Claim(
            id="kv_cache.mixing",
            says="Adding them to the candidates changes KL by less than 10 % at every budget.",
            value=max(
                abs(kl(exact(d, b, "all")) / kl(exact(d, b)) - 1)
                for d in cells
                for b in results[NAME]["config"]["bits"]
            ),
            most=0.1,
            decides=(*exact(first, 4.0, "all")[1], "kl"),
        ),
        Claim(
            id="kv_cache.little_left",
            says='From the bytes of 6 bits on perplexity is within 0.03 of the float network.',
            value=max(
                math.exp(min(exact(d, 6.0)[0]["measured"]["loss"], 700))
                - math.exp(cell["float"]["loss"])
                for d, cell in cells.items()
            ),
            most=0.03,
            decides=(*exact(first, 6.0)[1], "loss"),
        ),
    ]  # fmt: skip
