"""Number formats: where mixing them pays and where it does not."""

import statistics
from collections.abc import Mapping
from typing import Any

from experiments.claims.claim import Claim, Json, Made, Path

NAME = "formats"
MADE = {
    NAME: Made(
        sha256="29dcb3c46e3d13be",
        modules=("experiments.formats",),
        source_sha256="5d7cedde697504a3fcb3f7c77223e0d6470575664922cb9bea3e785e8746f793",
        stale="ResNet-20 and the decoder: made by the code of commit 7d5df0c; since then fake "
        "quantization was split into files and rows of keys and values were added, which "
        "kernels do not see. EfficientNet-Lite0 and MiniLM: by that of commit 5217788 with "
        "these networks; since then inputs in MX are quantized by other operations. The vision "
        "transformer: by that of commit 1be4b07.",
    ),
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    result = results[NAME]
    draws = result["config"]["draws"]

    def at(model: str, draw: int, **wanted: Any) -> tuple[Json, Path]:
        rows = result["cells"][f"{model}/{draw}"]["rows"]
        ((i, row),) = [
            (i, row) for i, row in enumerate(rows)
            if all(row[key] == value for key, value in wanted.items())
        ]  # fmt: skip
        return row, (NAME, "cells", f"{model}/{draw}", "rows", i)

    def exact(model: str, draw: int, candidates: str, bits: float) -> tuple[Json, Path]:
        return at(model, draw, candidates=candidates, effective_bits=bits, solver="exact")

    def kl(row: tuple[Json, Path]) -> float:
        measured = row[0]["measured"]
        return measured["loss"] if "spearman" in measured else measured["kl"]

    def ratios(
        model: str, bits: float, one: str = "all", other: str = "integers"
    ) -> list[float]:
        return [kl(exact(model, d, one, bits)) / kl(exact(model, d, other, bits))
                for d in draws]  # fmt: skip

    def to_uniform(model: str, bits: float, name: str) -> list[float]:
        uniform = [
            kl(at(model, d, candidates="all", effective_bits=None, solver=f"uniform {name}"))
            for d in draws
        ]
        return [
            kl(exact(model, d, "all", bits)) / u for d, u in zip(draws, uniform, strict=True)
        ]

    def decides(model: str, bits: float, candidates: str = "all") -> Path:
        return (*exact(model, 0, candidates, bits)[1], "measured", "kl")

    nested = [
        exact(model, d, "all", b)[0]["predicted_loss"]
        / exact(model, d, "integers", b)[0]["predicted_loss"]
        for model in ("resnet20", "stories260k") for d in draws
        for b in result["config"]["budgets"]
    ]  # fmt: skip
    reversed_ratio = [
        kl(at(m, d, candidates="all", effective_bits=b, solver="reversed"))
        / kl(exact(m, d, "all", b))
        for m in ("resnet20", "stories260k") for d in draws for b in (4.25, 4.5, 6.0)
    ]  # fmt: skip
    decoder, network = "stories260k", "resnet20"

    def gain(model: str, bits: float, one: str = "all") -> float:
        """Percent of KL below integers, mean over draws."""
        return 100 * (1 - statistics.mean(ratios(model, bits, one)))

    def wide(model: str) -> list[float]:
        return [
            kl(at(model, d, candidates="all", effective_bits=None, solver="uniform fp6_e3m2"))
            / kl(at(model, d, candidates="all", effective_bits=None, solver="uniform fp6_e2m3"))
            for d in draws
        ]

    same_bits = [
        100 * (1 - r)
        for b, name in ((4.25, "mxfp4"), (4.5, "nvfp4"))
        for r in to_uniform(decoder, b, name)
    ]
    eight = [r for m in (decoder, network) for r in ratios(m, 8.0, "floats")]
    exponents = [r for m in (decoder, network) for r in wide(m)]
    low = [
        found[0]["measured"]["kl"] / found[0]["predicted_loss"]
        for d in draws
        for found in (exact(decoder, d, "all", bits) for bits in (3.0, 3.5))
    ]
    budgets = result["config"]["budgets"]
    sentences = "minilm_l6"
    lost = [
        result["cells"][f"{sentences}/{d}"]["float"]["spearman"]
        - exact(sentences, d, "all", 4.5)[0]["measured"]["spearman"]
        for d in draws
    ]
    images = "efficientnet_lite0"

    def best_uniform(model: str, draw: int, bits: float) -> float:
        """Least KL of a uniform format of at most so many bits."""
        return min(
            kl((row, ()))
            for row in result["cells"][f"{model}/{draw}"]["rows"]
            if row["solver"].startswith("uniform ") and row["costs"]["average_bits"] <= bits
        )

    vision, bits_of_vision = "vit_cifar", (3.5, 4.25, 4.5, 6.0, 8.0)
    beside_integers = [statistics.mean(ratios(vision, b)) for b in (3.0, *bits_of_vision)]
    floats_of_vision = [r for b in (4.25, 4.5, 6.0, 8.0) for r in ratios(vision, b, "floats")]

    return [
        Claim(
            id="formats.vit_level",
            says="On the vision transformer mixing pays nowhere: in the mean over draws its KL "
            "is within 5 % of that of integers at every budget.",
            value=max(abs(r - 1) for r in beside_integers),
            most=0.05,
            decides=decides(vision, 4.25),
        ),
        Claim(
            id="formats.vit_floats",
            says="Floats alone have at least 1.35 times the KL of integers there, in every "
            "draw from 4.25 effective bits.",
            value=min(floats_of_vision),
            least=1.35,
            decides=decides(vision, 4.5, "integers"),
        ),
        Claim(
            id="formats.vit_layers",
            says="At 4.25 effective bits integers by layer have less than a third of the KL "
            "of every uniform format of up to 4.5.",
            value=max(
                kl(exact(vision, d, "integers", 4.25)) / best_uniform(vision, d, 4.51)
                for d in draws
            ),
            most=1 / 3,
            decides=decides(vision, 4.25, "integers"),
        ),
        Claim(
            id="formats.lite0_pays",
            says="On EfficientNet-Lite0 mixing pays in every draw: at 4.25 and 4.5 effective "
            "bits its KL is at least 22 % below that of integers.",
            value=max(r for b in (4.25, 4.5) for r in ratios(images, b)),
            most=0.78,
            decides=decides(images, 4.25),
        ),
        Claim(
            id="formats.lite0_range",
            says="It pays from 3.5 to 6 effective bits in every draw, by 6 % or more.",
            value=max(r for b in (3.5, 4.25, 4.5, 6.0) for r in ratios(images, b)),
            most=0.94,
            decides=decides(images, 6.0),
        ),
        Claim(
            id="formats.lite0_layers",
            says="Every uniform format of up to 4.51 bits ruins EfficientNet-Lite0; integers "
            "by layer at 4.5 effective bits have at most a twentieth of the KL of the best.",
            value=max(
                kl(exact(images, d, "integers", 4.5)) / best_uniform(images, d, 4.51)
                for d in draws
            ),
            most=1 / 20,
            decides=decides(images, 4.5, "integers"),
        ),
        Claim(
            id="formats.lite0_floats",
            says="Floats alone are no better than integers there at 4.25 and 4.5 effective "
            "bits, in the mean.",
            value=statistics.mean(
                r for b in (4.25, 4.5) for r in ratios(images, b, "floats", "integers")
            ),
            least=1.0,
            decides=decides(images, 4.5, "floats"),
        ),
        Claim(
            id="formats.lite0_six",
            says="At 6 effective bits floats alone have at least four times the KL of integers "
            "on EfficientNet-Lite0.",
            value=min(ratios(images, 6.0, "floats", "integers")),
            least=4,
            decides=decides(images, 6.0, "floats"),
        ),
        Claim(
            id="formats.minilm_pays",
            says="On MiniLM mixing pays at every budget and in every draw: the divergence of "
            "similarities is at least 9 % below that of integers.",
            value=max(r for b in budgets for r in ratios(sentences, b)),
            most=0.91,
            decides=(*exact(sentences, 0, "all", 3.5)[1], "measured", "loss"),
        ),
        Claim(
            id="formats.minilm_most",
            says="On MiniLM the divergence at 4.25 and 4.5 effective bits is 40 to 45 % below "
            "that of integers, in the mean.",
            value=statistics.mean([*ratios(sentences, 4.25), *ratios(sentences, 4.5)]),
            least=0.55,
            most=0.6,
            decides=(*exact(sentences, 0, "all", 4.5)[1], "measured", "loss"),
        ),
        Claim(
            id="formats.minilm_floats",
            says="On MiniLM floats alone have half the divergence of integers at 4.25 and 4.5 "
            "effective bits, in every draw to 57 %.",
            value=max(
                r for b in (4.25, 4.5) for r in ratios(sentences, b, "floats", "integers")
            ),
            most=0.58,
            decides=(*exact(sentences, 0, "floats", 4.5)[1], "measured", "loss"),
        ),
        Claim(
            id="formats.minilm_uniform",
            says="Against uniform NVFP4 at 4.5 effective bits the optimum over all formats has "
            "at most 65 % of the divergence on MiniLM.",
            value=max(to_uniform(sentences, 4.5, "nvfp4")),
            most=0.65,
            decides=(*exact(sentences, 0, "all", 4.5)[1], "measured", "loss"),
        ),
        Claim(
            id="formats.minilm_rank",
            says="At 4.5 effective bits MiniLM keeps its rank correlation to 0.1 points.",
            value=max(lost),
            most=0.001,
            decides=(*exact(sentences, 0, "all", 4.5)[1], "measured", "spearman"),
        ),
        Claim(
            id="formats.nested",
            says="The predicted loss of the optimum over all formats is never above that over "
            "integers.",
            value=max(nested),
            most=1 + 1e-6,
            decides=(*exact("resnet20", 0, "all", 4.5)[1], "predicted_loss"),
        ),
        Claim(
            id="formats.decoder_pays",
            says="On the decoder mixing pays in every draw: at 4.25, 4.5 and 6 effective bits "
            "its KL is at least 7 % below that of integers.",
            value=max(max(ratios("stories260k", b)) for b in (4.25, 4.5, 6.0)),
            most=0.93,
            decides=decides("stories260k", 4.25),
        ),
        Claim(
            id="formats.decoder_most",
            says="The gain over integers is 15 to 25 % at 4.25 and at 6 effective bits.",
            value=statistics.mean([*ratios("stories260k", 4.25), *ratios("stories260k", 6.0)]),
            least=0.75,
            most=0.85,
            decides=decides("stories260k", 6.0),
        ),
        Claim(
            id="formats.decoder_floats",
            says="At 4.5 effective bits floats alone do as well as all formats on the decoder, "
            "to 4 % in the mean.",
            value=statistics.mean(ratios("stories260k", 4.5, "all", "floats")),
            least=0.96,
            most=1.04,
            decides=decides("stories260k", 4.5, "floats"),
        ),
        Claim(
            id="formats.few_bits",
            says="At 3 and 3.5 effective bits mixing does not pay on the decoder: KL is not "
            "lower than with integers in the mean.",
            value=statistics.mean([*ratios("stories260k", 3.0), *ratios("stories260k", 3.5)]),
            least=1.0,
            decides=decides("stories260k", 3.0),
        ),
        Claim(
            id="formats.resnet_level",
            says="On ResNet-20 mixing is level with integers from 3.5 to 4.5 effective bits: "
            "the mean ratio of KL is within 10 % of one.",
            value=statistics.mean(
                [r for b in (3.5, 4.25, 4.5) for r in ratios("resnet20", b)]
            ),
            least=0.9,
            most=1.1,
            decides=decides("resnet20", 4.25),
        ),
        Claim(
            id="formats.resnet_six",
            says="At 6 effective bits it pays on ResNet-20 in every draw: KL is at least 30 % "
            "below that of integers.",
            value=max(ratios("resnet20", 6.0)),
            most=0.7,
            decides=decides("resnet20", 6.0),
        ),
        Claim(
            id="formats.eight",
            says="At 8 effective bits integers take over: they and small floats of 6 bits make "
            "the optimum, and KL is that of integers to 10 %.",
            value=statistics.mean([*ratios("stories260k", 8.0), *ratios("resnet20", 8.0)]),
            least=0.9,
            most=1.1,
            decides=decides("stories260k", 8.0),
        ),
        Claim(
            id="formats.layers_over_formats",
            says="Which layer gets the bits matters more than the format: at 4.5 effective "
            "bits integers by layer have at most two thirds of the KL of uniform NVFP4 on "
            "ResNet-20.",
            value=max(
                kl(exact("resnet20", d, "integers", 4.5))
                / kl(at("resnet20", d, candidates="all", effective_bits=None,
                        solver="uniform nvfp4"))
                for d in draws
            ),
            most=2 / 3,
            decides=decides("resnet20", 4.5, "integers"),
        ),
        Claim(
            id="formats.uniform",
            says="Against uniform NVFP4 at 4.5 effective bits the optimum over all formats has "
            "at most 60 % of the KL on ResNet-20 and 85 % on the decoder.",
            value=max(
                max(to_uniform("resnet20", 4.5, "nvfp4")) / 0.6,
                max(to_uniform("stories260k", 4.5, "nvfp4")) / 0.85,
            ),
            most=1.0,
            decides=decides("resnet20", 4.5),
        ),
        Claim(
            id="formats.reversed",
            says="The reversed order is a control: its KL is at least ten times that of the "
            "optimum over all formats at 4.25 to 6 effective bits.",
            value=min(reversed_ratio),
            least=10,
            decides=decides("stories260k", 4.25),
        ),
        Claim(
            id="formats.decoder_gains",
            says="Below that of integers KL is 15 to 19 % at 4.25 bits, 9 to 13 % at 4.5 "
            "and 19 to 23 % at 6, in the mean over draws.",
            value=max(
                abs(gain(decoder, b) - x) for b, x in ((4.25, 17), (4.5, 11), (6.0, 21))
            ),
            most=2,
            decides=decides(decoder, 4.25),
        ),
        Claim(
            id="formats.decoder_uniform",
            says="Against uniform formats of the same effective bits (MXFP4, NVFP4) it is "
            "15 to 28 % lower.",
            value=max(max(same_bits) / 28, 15 / min(same_bits)),
            most=1,
            decides=decides(decoder, 4.5),
        ),
        Claim(
            id="formats.resnet_floats",
            says="Floats alone are 10 to 20 % ahead of integers on ResNet-20 at 4.25 and "
            "4.5 bits.",
            value=max(abs(gain(network, b, "floats") - 15) for b in (4.25, 4.5)),
            most=5,
            decides=decides(network, 4.5, "floats"),
        ),
        Claim(
            id="formats.floats_eight",
            says='At 8 bits floats alone have 6 to 12 times the KL of integers.',
            value=max(max(eight) / 12, 6 / min(eight)),
            most=1,
            decides=decides(network, 8.0, "floats"),
        ),
        Claim(
            id="formats.mantissa",
            says='Uniform, fp6_e3m2 has 2.9 to 6.7 times the KL of fp6_e2m3.',
            value=max(max(exponents) / 6.7, 2.9 / min(exponents)),
            most=1,
            decides=(*at(network, 0, candidates="all", effective_bits=None,
                          solver="uniform fp6_e3m2")[1], "measured", "kl"),
        ),
        Claim(
            id="formats.few_predicted",
            says="On the decoder, measured KL is at least 1.4 times the predicted one at 3 "
            "and 3.5 bits.",
            value=min(low),
            least=1.4,
            decides=decides(decoder, 3.5),
        ),
    ]  # fmt: skip
