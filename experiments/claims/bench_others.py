"""Evaluation, the whole flow, and forms of the convolution: times and memory."""

import statistics
from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made

FLOW, EVALUATION, CONVOLUTION = "bench_flow", "bench_evaluation", "bench_convolution"
FORMATS = "bench_evaluation_formats"
MADE = {
    FLOW: Made(
        sha256="f725d36c823aa1b2",
        modules=("experiments.bench.flow",),
        stale="Made beside other work on the machine; the project has changed since.",
    ),
    EVALUATION: Made(
        sha256="c26d8188c4548822",
        modules=("experiments.bench.evaluation",),
        stale="Made at commit 931d704, PyTorch eager, not compiled; not made again.",
    ),
    FORMATS: Made(
        sha256="735290d7b0dcb427",
        modules=("experiments.bench.evaluation_formats",),
        stale="Made beside other jobs (load 12 to 15), at a commit that was moved since.",
    ),
    CONVOLUTION: Made(
        sha256="57669e3bd9b3f8ee",
        modules=("experiments.bench.convolution",),
        stale="Made at commit c8baa81, on another processor than bench_curvature; not made "
        "again.",
    ),
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    sides = results[EVALUATION]["sides"]
    median = {name: statistics.median(side["seconds_per_candidate"])
              for name, side in sides.items()}  # fmt: skip
    most = max(
        (at["peak_rss_bytes"], ("networks", name, "stages", metric))
        for name, found in results[FLOW]["networks"].items()
        for metric, at in found["stages"].items()
        if at["planned"]
    )
    stage = ("networks", "mobilenet_v2", "stages", "gauss_newton")
    peak = results[FLOW]
    for key in stage:
        peak = peak[key]
    rows = results[CONVOLUTION]["rows"]

    def whole(form: str, key: str) -> float:
        return sum(row["count"] * row[key] for row in rows if row["form"] == form)

    def most_passes(network: str) -> float:
        found = results[FORMATS]["networks"][network]
        floats = statistics.median(found["float_s"])
        return max(statistics.median(row["jmpq_s"]) for row in found["rows"].values()) / floats

    base = "convolution, NHWC"
    forms = {row["form"] for row in rows} - {base, "convolution, NCHW"}
    times = ("forward_s", "by_input_s", "by_kernel_s")
    kernel = next(i for i, row in enumerate(rows) if row["form"] == base)
    return [
        Claim(
            id="bench.evaluation.torch",
            says="One compiled program measures a candidate 1.5 to 2.5 times as fast as "
            "PyTorch's eager fake quantization (one thread, ResNet-20).",
            value=median["torch"] / median["jmpq"],
            least=1.5,
            most=2.5,
            decides=(EVALUATION, "sides", "jmpq", "seconds_per_candidate"),
        ),
        Claim(
            id="bench.evaluation.formats",
            says="On ResNet-20 measuring an allocation of any format, inputs too, takes at "
            "most 1.2 float forward passes.",
            value=most_passes("resnet20"),
            most=1.2,
            decides=(
                FORMATS,
                "networks",
                "resnet20",
                "rows",
                "MX, kernels and inputs",
                "jmpq_s",
            ),
        ),
        Claim(
            id="bench.evaluation.formats_decoder",
            says="On the decoder it takes 1.2 to 1.4: more than the 1.2 that were wanted.",
            value=most_passes("stories260k"),
            least=1.2,
            most=1.4,
            decides=(
                FORMATS,
                "networks",
                "stories260k",
                "rows",
                "NVFP4, kernels and inputs",
                "jmpq_s",
            ),
        ),
        Claim(
            id="bench.flow.memory",
            says="Asked for 4 GB, the process of every sensitivity had at most 4.4 GB "
            "resident; MobileNetV2's had less than 3 GB.",
            value=most[0] / 1e9 if peak["peak_rss_bytes"] < 3e9 else 9.0,
            most=4.4,
            decides=(FLOW, *most[1], "peak_rss_bytes"),
        ),
        Claim(
            id="bench.convolution.forms",
            says="No other form of ResNet-20's convolutions that was tried is faster in any "
            "of the three passes.",
            value=min(whole(f, t) / whole(base, t) for f in forms for t in times),
            least=1.0,
            decides=(CONVOLUTION, "rows", kernel, "by_kernel_s"),
        ),
        Claim(
            id="bench.evaluation.rebuilt",
            says="The same network rebuilt and compiled for every candidate takes 3 to 3.5 "
            "times as long.",
            value=median["rebuilt"] / median["jmpq"],
            least=3,
            most=3.5,
            decides=(EVALUATION, "sides", "jmpq", "seconds_per_candidate"),
        ),
        Claim(
            id="bench.convolution.product",
            says="By the convolutions alone a product is 6 to 7 forward passes: 2 (forward "
            "+ both gradients).",
            value=2 * sum(whole(base, t) for t in times) / whole(base, "forward_s"),
            least=6,
            most=7,
            decides=(CONVOLUTION, "rows", kernel, "by_kernel_s"),
        ),
    ]
