"""Curvature beside PyHessian and CLADO: what was compared with what."""

from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made

NAME = "bench_curvature"
MADE = {
    NAME: Made(
        sha256="cd243134a53cc662",
        modules=("experiments.bench.curvature",),
        stale="Made at commit 9366fcc: calls of PyHessian's eigenvalues and density are "
        "first calls, jmpq's are second ones, compilation apart; not made again.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    threads = results[NAME]["threads"]
    one, two = (threads[n]["parts"] for n in ("1", "2"))

    def first(parts: Json, part: str) -> float:
        return parts[part]["jmpq"]["first_s"] / parts[part]["pyhessian"]["first_s"]

    table = threads["1"]["summary"]["seconds"]["rows"]
    traces = ("per-layer traces", "½δᵀHδ, every layer and bit")
    at = (NAME, "threads", "1")
    pairs = one["pairs"]["torch"]
    return [
        Claim(
            id="bench.curvature.density_first",
            says="First call against first call, compilation included, jmpq's spectral "
            "density takes at least 1.2 times as long as PyHessian's (1 thread and 2).",
            value=min(first(one, "density"), first(two, "density")),
            least=1.2,
            decides=(*at, "parts", "density", "jmpq", "first_s"),
        ),
        Claim(
            id="bench.curvature.hvp",
            says="Compiled, PyHessian takes 0.9 to 1.5 times as long as jmpq for a product H·v "
            "on 2 threads: level.",
            value=threads["2"]["summary"]["seconds"]["rows"]["one product H·v"]["ratio"],
            least=0.9,
            most=1.5,
            decides=(NAME, "threads", "2", "summary", "seconds", "rows", "one product H·v",
                     "ratio"),
        ),
        Claim(
            id="bench.curvature.traces",
            says="Compiled, exact traces by layer and ½δᵀHδ of every layer and bit are at "
            "least 7 times as fast as PyHessian's estimates (1 thread).",
            value=min(table[name]["ratio"] for name in traces),
            least=7,
            decides=(*at, "summary", "seconds", "rows", traces[1], "ratio"),
        ),
        Claim(
            id="bench.curvature.clado_extrapolated",
            says="The time of CLADO's pairs is extrapolated at least 100-fold from "
            "those that were timed.",
            value=pairs["seconds"][0] / sum(pairs["seconds_each"]),
            least=100,
            decides=(*at, "parts", "pairs", "torch", "seconds", 0),
        ),
    ]  # fmt: skip
