"""Predictions on ResNet-20 from 192 images, scored on those and on 1,024 others."""

import math
from collections.abc import Mapping

import numpy as np

from experiments.claims.claim import Claim, Json, Made

NAME = "prediction_resnet20"
MADE = {
    NAME: Made(
        sha256="a974e7a0a391abe3",
        modules=("experiments.prediction",),
        source_sha256="e3aedac357247bc58e6ab788b945a998b7744e672977eb9860f09da5dfeea892",
        stale="Logits and outcomes were measured before number formats entered the quantizers; "
        "predictions and scores are those of the present code.",
    )
}
FEW = "wa/2-3-4-8"


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    sets = results[NAME]["sets"]
    middle = {how: [abs(math.log(each["scale"][how][1])) for each in sets.values()]
              for how in ("composed", "transferred")}  # fmt: skip
    gains = [each["rho_gain"] for each in sets.values()]
    few = sets[FEW]["rho"]["evaluation"]
    short = [
        each["rho_of_measuring"][0] - each["rho"]["evaluation"]["composed"][0]
        for name, each in sets.items()
        if name != FEW
    ]
    return [
        Claim(
            id="prediction.transfer_rank",
            says="Transferring the changes to 2,048 float logits does not change the rank "
            "correlation with other images on ResNet-20: no paired interval of the six leaves "
            "out zero.",
            value=max(max(low, -high) for _, low, high in gains),
            most=0.0,
            decides=(NAME, "sets", FEW, "rho_gain"),
        ),
        Claim(
            id="prediction.transfer_scale",
            says="It brings the scale nearer: the median of predicted over measured KL is off "
            "by less than half as much (mean absolute logarithm over the six sets).",
            value=float(np.mean(middle["transferred"]) / np.mean(middle["composed"])),
            most=0.5,
            decides=(NAME, "sets", FEW, "scale", "transferred"),
        ),
        Claim(
            id="prediction.composed_near_ceiling",
            says="But for activations at 2 bits, composed logits from 192 images rank "
            "allocations for other images within 0.05 of what measuring on those images would.",
            value=max(short),
            most=0.05,
            decides=(NAME, "sets", "w/3-4-8", "rho_of_measuring"),
        ),
        Claim(
            id="prediction.activations_2_bits",
            says="With activations at 2 bits neither prediction ranks better than 0.86, where "
            "measuring on the same 192 images reaches 0.98.",
            value=max(few["composed"][0], few["transferred"][0]),
            most=0.86,
            decides=(NAME, "sets", FEW, "rho", "evaluation", "composed"),
        ),
        Claim(
            id="prediction.cost",
            says="The float logits take less than a tenth of the processor time of the "
            "changes of all moves.",
            value=results[NAME]["spent"]["float_logits_cpu_s"]
            / results[NAME]["spent"]["changes_cpu_s"],
            most=0.1,
            decides=(NAME, "spent", "float_logits_cpu_s"),
        ),
    ]
