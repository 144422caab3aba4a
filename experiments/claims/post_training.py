"""Rounding, corrections and equalisation without training."""

from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made, Path, select

NAME, RANGES = "post_training", "equalization"
MADE = {
    NAME: Made(
        sha256="c7e499ceb7bfe379",
        modules=("experiments.post_training",),
        stale="Made at commit ef15803 from a tree that was not committed; at 6c12bca one "
        "row was the same, to the digit.",
    ),
    RANGES: Made(
        sha256="465aef644659464a",
        modules=("experiments.equalization",),
        stale="Made at commit 32588b5; not made again.",
    ),
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    result, ranges = results[NAME], results[RANGES]
    whole = 100 * result["float"]["top1"]

    def one(rounding: str, correct: str, bits: int, key: str = "top1") -> tuple[float, Path]:
        ((i, row),) = select(result["rows"], rounding=rounding, correct=correct,
                             allocation=f"uniform W{bits}")  # fmt: skip
        scale = 100 if key == "top1" else 1
        return scale * row["measured"][key], (NAME, "rows", i, "measured", key)

    def saved(rounding: str) -> tuple[float, float]:
        """Top-1 at 2 bits without new statistics, and with them."""
        return one(rounding, "none", 2)[0], one(rounding, "batch_norm", 2)[0]

    def mixed(bits: int) -> float:
        ((_, row),) = select(result["rows"], rounding="gptq", correct="none",
                             allocation=f"exact, size of W{bits}")  # fmt: skip
        return 100 * row["measured"]["top1"] - one("gptq", "none", bits)[0]

    def equal(network: str, granularity: str, bits: int) -> tuple[float, Path]:
        ((i, row),) = select(ranges["rows"], network=network, granularity=granularity,
                             w_bits=bits, a_bits=32)  # fmt: skip
        return 100 * row["measured"]["top1"], (RANGES, "rows", i, "measured", "top1")

    floats = {name: 100 * each["top1"] for name, each in ranges["float"].items()}
    return [
        Claim(
            id="post_training.gptq",
            says="Rounding by the layers' Hessians at uniform 3 bits loses at most 0.5 "
            "points of "
            "top-1.",
            value=whole - one("gptq", "none", 3)[0],
            most=0.5,
            decides=one("gptq", "none", 3)[1],
        ),
        Claim(
            id="post_training.nearest",
            says="Rounding to nearest at uniform 3 bits loses 15 to 20 points.",
            value=whole - one("nearest", "none", 3)[0],
            least=15,
            most=20,
            decides=one("nearest", "none", 3)[1],
        ),
        Claim(
            id="post_training.bias_harms",
            says="Correcting the mean alone makes the network worse by 10 points or more at "
            "uniform 3 bits rounded to nearest and at 2 bits rounded by Hessians.",
            value=min(one(r, "none", b)[0] - one(r, "bias", b)[0]
                      for r, b in (("nearest", 3), ("gptq", 2))),
            least=10,
            decides=one("nearest", "bias", 3)[1],
        ),
        Claim(
            id="post_training.bias_nearest_2",
            says="At 2 bits rounded to nearest it makes it less bad: KL falls by more than "
            "half.",
            value=one("nearest", "bias", 2, "kl")[0] / one("nearest", "none", 2, "kl")[0],
            most=0.5,
            decides=one("nearest", "bias", 2, "kl")[1],
        ),
        Claim(
            id="equalization.caps",
            says="Taking the caps off ReLU6 costs MobileNetV1 9 to 11 points of top-1.",
            value=floats["published"] - floats["without caps"],
            least=9,
            most=11,
            decides=(RANGES, "float", "without caps", "top1"),
        ),
        Claim(
            id="equalization.folded",
            says="With batch normalisation folded, one scale a tensor destroys it at 8 "
            "bits: top-1 is 1 % at most.",
            value=equal("folded", "tensor", 8)[0],
            most=1,
            decides=equal("folded", "tensor", 8)[1],
        ),
        Claim(
            id="equalization.equalised",
            says="Equalised it keeps all but 2 points at 8 bits of what it has without "
            "caps.",
            value=floats["equalised"] - equal("equalised", "tensor", 8)[0],
            most=2,
            decides=equal("equalised", "tensor", 8)[1],
        ),
        Claim(
            id="post_training.four",
            says='At uniform 4 bits it loses none that 8,976 images detect.',
            value=(whole - one("gptq", "none", 4)[0]) / 0.29,
            most=1,
            decides=one("gptq", "none", 4)[1],
        ),
        Claim(
            id="post_training.mixed",
            says="With GPTQ, choosing bits by layer changes top-1 by at most 0.2 points at "
            "the sizes of 3 and 4 bits.",
            value=max(abs(mixed(b)) for b in (3, 4)),
            most=0.2,
            decides=one("gptq", "none", 4)[1],
        ),
        Claim(
            id="post_training.batch_norm",
            says="At 2 bits top-1 is 62 % or less as rounded, and 77 % or more with new "
            "batch statistics.",
            value=max(max(saved(r)[0] / 62, 77 / saved(r)[1]) for r in ("nearest", "gptq")),
            most=1,
            decides=one("gptq", "none", 2)[1],
        ),
        Claim(
            id="equalization.eight",
            says="At 8 bits the published network, not folded, is 7 to 8 points ahead of "
            "the equalised one.",
            value=equal("published", "tensor", 8)[0] - equal("equalised", "tensor", 8)[0],
            least=7,
            most=8,
            decides=equal("published", "tensor", 8)[1],
        ),
        Claim(
            id="equalization.six",
            says='At 6 bits the equalised network is more than 20 points ahead.',
            value=equal("equalised", "tensor", 6)[0] - equal("published", "tensor", 6)[0],
            least=20,
            decides=equal("equalised", "tensor", 6)[1],
        ),
        Claim(
            id="equalization.four",
            says="At 4 bits rounding to nearest leaves nothing: top-1 is below 1 %, "
            "whatever the ranges.",
            value=max(equal(n, "channel", 4)[0] for n in floats),
            most=1,
            decides=equal("equalised", "channel", 4)[1],
        ),
    ]  # fmt: skip
