"""bert_tiny on SST-2: what 872 sentences can tell."""

import statistics
from collections.abc import Mapping

from experiments.claims.claim import Claim, Json, Made, select

NAME = "sst2"
MADE = {
    NAME: Made(
        sha256="8362ff0e39b2a71a",
        modules=("experiments.bert.sst2",),
        stale="Made at commit e2462a4; not made again.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    result = results[NAME]

    def at(method: str, key: str) -> tuple[float, tuple[str | int, ...]]:
        ((i, row),) = select(result["joint"], mode="w", bits=2.5, method=method)
        return row["measured"][key], (NAME, "joint", i, "measured", key)

    error = result["float"]["top1_sem"]
    uniform, gauss_newton = at("uniform", "top1"), at("exact/gauss_newton", "top1")
    return [
        Claim(
            id="sst2.accuracy_blind",
            says="At 2.5 bits accuracy does not tell Gauss-Newton's allocation from uniform "
            "bits: the difference is below 2 standard errors.",
            value=abs(uniform[0] - gauss_newton[0]) / error,
            most=2,
            decides=uniform[1],
        ),
        Claim(
            id="sst2.kl_tells",
            says="The KL divergence does: at 2.5 bits uniform bits have at least 10 times "
            "Gauss-Newton's.",
            value=at("uniform", "kl")[0] / at("exact/gauss_newton", "kl")[0],
            least=10,
            decides=at("exact/gauss_newton", "kl")[1],
        ),
        Claim(
            id="sst2.rule",
            says="Q-BERT's rule, which decides for whole encoder layers, has 3 to 10 times it.",
            value=at("qbert", "kl")[0] / at("exact/gauss_newton", "kl")[0],
            least=3,
            most=10,
            decides=at("qbert", "kl")[1],
        ),
        Claim(
            id="sst2.embeddings",
            says="Where the embeddings give up bits for the encoder, KL is 0.0002 at most.",
            value=at("exact/gauss_newton/embeddings", "kl")[0],
            most=0.0002,
            decides=at("exact/gauss_newton/embeddings", "kl")[1],
        ),
        Claim(
            id="sst2.tuned",
            says="Fine-tuning only moves the network: KL is at least twice that after "
            "rounding.",
            value=min(
                statistics.mean(
                    r["measured"]["kl"] for r in result["tuned"] if r["method"] == m
                )
                for m in ("ste", "lsq")
            )
            / at("exact/gauss_newton", "kl")[0],
            least=2,
            decides=at("exact/gauss_newton", "kl")[1],
        ),
    ]
