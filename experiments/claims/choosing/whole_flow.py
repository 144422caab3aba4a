"""The whole flow on a decoder, EfficientNet-Lite0 and a small vision transformer."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from experiments.claims.claim import Claim, Json, Made, Path

NAME = "whole_flow"
MADE = {
    NAME: Made(
        sha256="bcff34f8ce5a1afc",
        modules=("experiments.whole_flow",),
        stale="Other parts of the project have changed since; the decoder and "
        "the first draw of EfficientNet-Lite0 were made before probes were an option, with one "
        "a batch.",
    )
}
DECODER = "stories260k"
EXACT, HAWQ = "exact/gauss_newton", "exact/hawq_trace"
ROUNDINGS = ("nearest", "gptq")
INPUTS = ("A8", "")
Setting = tuple[int, str, str, str]  # budget, inputs, rounding, draw


@dataclasses.dataclass(frozen=True)
class Flow:
    """The cells of one network."""

    result: Json
    network: str

    def settings(
        self, budgets: Sequence[int], roundings: Sequence[str] = ROUNDINGS
    ) -> list[Setting]:
        """Those of all draws that were run."""
        cells = [name.split("/") for name in self.result["cells"]]
        return [
            (budget, inputs, rounding, draw)
            for network, rounding, draw in cells
            if network == self.network and rounding in roundings
            for budget in budgets
            for inputs in INPUTS
        ]

    def at(self, name: str, setting: Setting) -> tuple[Json, Path]:
        """An allocation, and where it stands; `uniform` is that of the budget's bits."""
        budget, inputs, rounding, draw = setting
        cell = f"{self.network}/{rounding}/{draw}"
        wanted = f"uniform/W{budget}{inputs}" if name == "uniform" else name
        ((i, row),) = [
            (i, row) for i, row in enumerate(self.result["cells"][cell]["allocations"])
            if (row["name"], row["budget"], row["inputs"]) == (wanted, budget, inputs)
        ]  # fmt: skip
        return row, (NAME, "cells", cell, "allocations", i)

    def kl(self, name: str, setting: Setting) -> float:
        """Measured KL divergence on the evaluation examples."""
        return self.at(name, setting)[0]["measured"]["evaluation"]["kl"]

    def ratios(self, one: str, other: str, settings: Sequence[Setting]) -> list[float]:
        """KL of one allocation over that of another."""
        return [self.kl(one, setting) / self.kl(other, setting) for setting in settings]

    def foretold(self, settings: Sequence[Setting]) -> list[float]:
        """Measured over predicted KL of the exact optimum."""
        return [
            self.kl(EXACT, each) / self.at(EXACT, each)[0]["predictions"]["gauss_newton"]
            for each in settings
        ]

    def path(self, name: str, setting: Setting) -> Path:
        """Path of the measured KL divergence."""
        return (*self.at(name, setting)[1], "measured", "evaluation", "kl")


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    decoder = Flow(results[NAME], DECODER)
    three, four, six = (decoder.settings([bits]) for bits in (3, 4, 6))
    first = three[0]

    def share(ratios: Sequence[float], least: float, most: float) -> float:
        """Share of the ratios within limits."""
        return statistics.mean(least <= ratio <= most for ratio in ratios)

    near = decoder.settings([3], ["nearest"])
    lite0 = Flow(results[NAME], "efficientnet_lite0")
    of_lite0 = {bits: lite0.settings([bits], ["nearest"]) for bits in (3, 4, 6)}

    vit = Flow(results[NAME], "vit_cifar")
    of_vit = {bits: vit.settings([bits]) for bits in (3, 4, 6)}
    all_vit = [each for settings in of_vit.values() for each in settings]
    hawq = vit.ratios(EXACT, HAWQ, all_vit)

    def top1(name: str, bits: int) -> list[float]:
        """Percent of EfficientNet-Lite0's images, inputs at 8 bits and float."""
        return [
            100 * lite0.at(name, each)[0]["measured"]["evaluation"]["top1"]
            for each in of_lite0[bits]
        ]

    def below(name: str, bits: int) -> list[float]:
        """Images of 100 that are lost to the float network, rounded to nearest."""
        cells = [
            f"{lite0.network}/{rounding}/{draw}" for _, _, rounding, draw in of_lite0[bits]
        ]
        floats = [
            100 * results[NAME]["cells"][cell]["float"]["evaluation"]["top1"] for cell in cells
        ]
        return [one - other for one, other in zip(floats, top1(name, bits), strict=True)]

    return [
        Claim(
            id="whole_flow.decoder_three",
            says="On the decoder, at the size of 3 bits the optimum has 8 to 20 % less KL than "
            "uniform bits in every draw, with either rounding and either inputs.",
            value=share(decoder.ratios(EXACT, "uniform", three), 0.8, 0.92),
            least=1,
            decides=decoder.path("uniform", first),
        ),
        Claim(
            id="whole_flow.decoder_four",
            says="At the size of 4 bits it has less KL than uniform bits in 11 of 12 cases, by "
            "5 % at most.",
            value=sum(0.95 <= r < 1 for r in decoder.ratios(EXACT, "uniform", four)),
            least=11,
            most=11,
            decides=decoder.path("uniform", four[0]),
        ),
        Claim(
            id="whole_flow.decoder_six",
            says="At the size of 6 bits it is within 0.2 % of uniform bits.",
            value=share(decoder.ratios(EXACT, "uniform", six), 0.998, 1.002),
            least=1,
            decides=decoder.path("uniform", six[0]),
        ),
        Claim(
            id="whole_flow.decoder_foretold",
            says="On the decoder the measured KL of the optimum is 0.88 to 1.22 of the "
            "predicted one at the sizes of 4 and 6 bits.",
            value=share(decoder.foretold([*four, *six]), 0.88, 1.22),
            least=1,
            decides=decoder.path(EXACT, four[0]),
        ),
        Claim(
            id="whole_flow.decoder_foretold_three",
            says="At the size of 3 bits it is 1.6 to 2 times the predicted one.",
            value=share(decoder.foretold(three), 1.6, 2),
            least=1,
            decides=decoder.path(EXACT, first),
        ),
        Claim(
            id="whole_flow.decoder_gptq",
            says="Rounded by GPTQ, the optimum of the decoder has 28 to 34 % less KL than "
            "rounded to nearest at the sizes of 3 and 4 bits.",
            value=share(
                [
                    decoder.kl(EXACT, (bits, inputs, "gptq", draw))
                    / decoder.kl(EXACT, (bits, inputs, "nearest", draw))
                    for bits, inputs, _, draw in [*near, *decoder.settings([4], ["nearest"])]
                ],
                0.66,
                0.72,
            ),
            least=1,
            decides=decoder.path(EXACT, decoder.settings([3], ["gptq"])[0]),
        ),
        Claim(
            id="whole_flow.decoder_greedy",
            says="The greedy search is within 4 % of the optimum's KL on the decoder.",
            value=share(
                decoder.ratios("greedy/gauss_newton", EXACT, [*three, *four, *six]), 0.96, 1.04
            ),
            least=1,
            decides=decoder.path("greedy/gauss_newton", first),
        ),
        Claim(
            id="whole_flow.decoder_reversed",
            says="The reversed order has at least five times the KL of the optimum.",
            value=max(decoder.ratios(EXACT, "reversed", [*three, *four, *six])),
            most=0.2,
            decides=decoder.path(EXACT, first),
        ),
        Claim(
            id="whole_flow.lite0_four",
            says="EfficientNet-Lite0, rounded to nearest, has a top-1 of 78 to 82 % at the "
            "size of 4 bits by the optimum, and of 11 to 13 % with uniform bits.",
            value=share([*top1(EXACT, 4), *(x + 68 for x in top1("uniform", 4))], 77.5, 82.5),
            least=1,
            decides=(*lite0.at(EXACT, of_lite0[4][0])[1], "measured", "evaluation", "top1"),
        ),
        Claim(
            id="whole_flow.lite0_kl",
            says="Its optimum has at most 15 % of the KL of uniform bits at the size of 3 "
            "bits, 5 % at that of 4 bits and 9 % at that of 6 bits.",
            value=max(
                max(lite0.ratios(EXACT, "uniform", of_lite0[bits])) / most
                for bits, most in ((3, 0.15), (4, 0.05), (6, 0.09))
            ),
            most=1,
            decides=lite0.path(EXACT, of_lite0[4][0]),
        ),
        Claim(
            id="whole_flow.lite0_six",
            says="At the size of 6 bits it is at most one of 100 images below the float "
            "network, uniform bits 3 to 6 images.",
            value=share([*below(EXACT, 6), *(x - 4.5 for x in below("uniform", 6))], -1.6, 1.6),
            least=1,
            decides=(*lite0.at(EXACT, of_lite0[6][0])[1], "measured", "evaluation", "top1"),
        ),
        Claim(
            id="whole_flow.lite0_foretold",
            says="The measured KL is 0.7 to 1.35 times the predicted one at the sizes of 4 and "
            "6 bits.",
            value=share(lite0.foretold([*of_lite0[4], *of_lite0[6]]), 0.7, 1.35),
            least=1,
            decides=lite0.path(EXACT, of_lite0[4][0]),
        ),
        Claim(
            id="whole_flow.lite0_greedy",
            says="The greedy search has 0.7 to 1.04 of the optimum's KL there.",
            value=share(
                lite0.ratios(
                    "greedy/gauss_newton",
                    EXACT,
                    [each for s in of_lite0.values() for each in s],
                ),
                0.695,
                1.045,
            ),
            least=1,
            decides=lite0.path("greedy/gauss_newton", of_lite0[4][0]),
        ),
        Claim(
            id="whole_flow.lite0_gptq",
            says="Rounded by GPTQ on 32 images the optimum has 16 to 30 % of the KL of uniform "
            "bits at the sizes of 3 and 4 bits.",
            value=share(
                lite0.ratios(EXACT, "uniform", lite0.settings([3, 4], ["gptq"])), 0.16, 0.3
            ),
            least=1,
            decides=lite0.path(EXACT, lite0.settings([3], ["gptq"])[0]),
        ),
        Claim(
            id="whole_flow.lite0_gptq_six",
            says="At the size of 6 bits it has 1.5 to 1.6 times the KL of uniform bits.",
            value=share(
                lite0.ratios(EXACT, "uniform", lite0.settings([6], ["gptq"])), 1.5, 1.6
            ),
            least=1,
            decides=lite0.path(EXACT, lite0.settings([6], ["gptq"])[0]),
        ),
        Claim(
            id="whole_flow.lite0_gptq_foretold",
            says="The measured KL is 7 to 14 times the predicted one there.",
            value=share(lite0.foretold(lite0.settings([3, 4, 6], ["gptq"])), 7, 14),
            least=1,
            decides=lite0.path(EXACT, lite0.settings([4], ["gptq"])[0]),
        ),
        Claim(
            id="whole_flow.lite0_hawq",
            says="On EfficientNet-Lite0 the optimum by Gauss-Newton has at most 23 % of the KL "
            "of that by HAWQ-V2's traces, of 4 to 12 probes.",
            value=max(lite0.ratios(EXACT, HAWQ, lite0.settings([3, 4, 6]))),
            most=0.23,
            decides=lite0.path(EXACT, of_lite0[3][0]),
        ),
        Claim(
            id="whole_flow.vit_nearest",
            says="On the vision transformer, rounded to nearest, the optimum has 12 to 28 % "
            "less KL than uniform bits at the sizes of 3 and 6 bits, in every draw.",
            value=share(
                vit.ratios(EXACT, "uniform", vit.settings([3, 6], ["nearest"])), 0.72, 0.882
            ),
            least=1,
            decides=vit.path(EXACT, of_vit[3][0]),
        ),
        Claim(
            id="whole_flow.vit_four",
            says="At that of 4 bits it has 0.84 to 1.05 of the KL of uniform bits there.",
            value=share(
                vit.ratios(EXACT, "uniform", vit.settings([4], ["nearest"])), 0.84, 1.05
            ),
            least=1,
            decides=vit.path(EXACT, of_vit[4][0]),
        ),
        Claim(
            id="whole_flow.vit_gptq",
            says="With GPTQ the choice gives less: 0.89 to 1.11 of the KL of uniform bits.",
            value=share(
                vit.ratios(EXACT, "uniform", vit.settings([3, 4, 6], ["gptq"])), 0.89, 1.11
            ),
            least=1,
            decides=vit.path(EXACT, vit.settings([3], ["gptq"])[0]),
        ),
        Claim(
            id="whole_flow.vit_hawq",
            says="HAWQ-V2's traces, by 50 probes, choose worse on the vision transformer in 33 "
            "of 36 cases: the optimum by Gauss-Newton has 35 % less KL in the median.",
            value=statistics.median(hawq),
            least=0.645,
            most=0.655 if sum(ratio < 1 for ratio in hawq) == 33 else 0,
            decides=vit.path(EXACT, of_vit[3][0]),
        ),
        Claim(
            id="whole_flow.vit_foretold",
            says="On the vision transformer the measured KL of the optimum is 0.9 to 1.7 times "
            "the predicted one.",
            value=share(vit.foretold(all_vit), 0.9, 1.7),
            least=1,
            decides=vit.path(EXACT, of_vit[4][0]),
        ),
    ]
